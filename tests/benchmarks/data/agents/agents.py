"""The agents of bench-agents: LangChain's ReAct agent with one tool."""

import ast
import operator
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool

OPERATIONS: Mapping[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
MOST_CHARACTERS = 200  # of an expression


@tool
def calculator(expression: str) -> str:
    """Works out an expression."""
    try:
        return str(_value(ast.parse(expression[:MOST_CHARACTERS].strip(" ="), mode="eval").body))
    except (SyntaxError, ValueError) as error:
        return f"error: {error}"


def _value(node: ast.AST) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATIONS:
        return int(OPERATIONS[type(node.op)](_value(node.operand)))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return int(OPERATIONS[type(node.op)](_value(node.left), _value(node.right)))
    raise ValueError("only whole numbers, +, -, * and brackets")


@tool
def add_days(date: str, days: int) -> str:
    """Adds days to a date."""
    try:
        return (datetime.strptime(date, "%m/%d/%Y") + timedelta(days=days)).strftime("%m/%d/%Y")
    except (ValueError, OverflowError):
        return "error: the date must be MM/DD/YYYY"


def make_arithmetic(chat: Any, prompts: Any) -> Any:
    """An agent with a calculator."""
    return create_agent(chat, tools=[calculator], system_prompt=prompts["solver"])


def make_date(chat: Any, prompts: Any) -> Any:
    """An agent that can add days to a date."""
    return create_agent(chat, tools=[add_days], system_prompt=prompts["solver"])
