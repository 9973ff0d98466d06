"""Describe a function as text that is the same in every process, for its hash: its source and the values it binds.

Task hashes depend on every character of these descriptions.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import functools
import hashlib
import inspect
import numbers
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import PurePath
from types import CodeType, FunctionType, ModuleType
from typing import Any

from pydantic import BaseModel

from nslora.tools.files import as_text

PLAIN = (str, bytes, numbers.Number, type(None), datetime.date, datetime.time, datetime.timedelta, PurePath)
BARE_REPR: Any = object.__repr__
Seen = frozenset[int]  # ids of the enclosing values, because a function may refer to itself
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


_KNOWN: dict[tuple[int, str, bool], tuple[Any, str]] = {}


def first_text_of(function: Callable[..., Any], *, whole: bool = False) -> str:
    """Give the first result of `text_of` for this function, or this method of this object, in this process.

    Otherwise a reward that counts its calls or caches its answers would change its hash when it is used.
    """
    held = getattr(function, "__self__", function)  # every access to a bound method makes a new object
    key = (id(held), getattr(function, "__name__", ""), whole)
    if key not in _KNOWN:
        _KNOWN[key] = (held, text_of(function, whole=whole))  # the reference keeps the id valid
    return _KNOWN[key][1]


def text_of(function: Callable[..., Any], *, whole: bool = False, seen: Seen = frozenset()) -> str:
    """Describe a function by its source, or an object by the source of its class.

    The arguments of a `functools.partial` come first. After the source come the values that it does not show: closure
    variables, defaults that are not literals, the state of an object, and the bytecode if the source is not available
    or holds more than this function.

    Args:
        function: A function, method, class, `functools.partial` or callable object.
        whole: True for the source of the whole module.
        seen: Ids of enclosing values; these are not described again.
    """
    seen |= {id(function)}
    bound = ""
    while isinstance(function, functools.partial):
        bound += described([function.args, function.keywords], seen)
        function = function.func
    known = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    source = _source(known)
    text = source if not whole else _source(inspect.getmodule(known)) or source
    return bound + "".join((text, *(f"\n{each}" for each in _left_open(function, source, seen))))


def described(value: Any, seen: Seen = frozenset()) -> str:
    """Describe a value like `repr`, but without addresses, with sets sorted and functions by their source."""
    if id(value) in seen:
        return "..."
    if isinstance(value, PLAIN):
        return repr(value)
    inner = seen | {id(value)}
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{described(key, inner)}: {described(each, inner)}" for key, each in value.items()) + "}"
        )
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(described(each, inner) for each in value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(described(each, inner) for each in value) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(described(each, inner) for each in value) + (",)" if len(value) == 1 else ")")
    if isinstance(value, functools.partial) or inspect.isroutine(value) or inspect.isclass(value):
        return f"{getattr(value, '__qualname__', '')}: {text_of(value, seen=seen)}"
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, BaseModel):
        return (
            f"{type(value).__qualname__}({', '.join(f'{k}={described(v, inner)}' for k, v in value.__repr_args__())})"
        )
    if dataclasses.is_dataclass(value):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.repr}
        return f"{type(value).__qualname__}({', '.join(f'{k}={described(v, inner)}' for k, v in fields.items())})"
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):  # an array: its repr omits the middle
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if type(value).__repr__ is not BARE_REPR:
        with suppress(Exception):  # the repr of a user's class may fail on an incomplete object
            return as_text(repr(value))
    # Describe the state only if it is plain values; a client or a lock differs in each process.
    held = object.__getstate__(value)
    return f"<{type(value).__module__}.{type(value).__qualname__} object>" + (
        described(held, inner) if held and _is_plain(held) else ""
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return _is_plain([*value.keys(), *value.values()])
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


def _source(known: Any) -> str:
    try:
        return inspect.getsource(known)
    except (OSError, TypeError):
        return ""


def _left_open(function: Any, source: str, seen: Seen) -> Iterator[str]:
    """Describe the values that the source of a function, or of an object's class, does not show."""
    if inspect.isclass(function):
        return
    if inspect.ismethod(function):
        owner: Any = function.__self__
        yield "..." if id(owner) in seen else text_of(owner, seen=seen)
        function = function.__func__
    elif not isinstance(function, FunctionType) and hasattr(function, "__wrapped__"):  # functools.cache
        function = inspect.unwrap(function)
    if isinstance(function, FunctionType):
        yield from _left_open_by_definition(function, source, seen)
    elif inspect.isroutine(function):
        yield as_text(repr(function))
    elif held := function.__getstate__():  # a class can define it to leave out a clock or a client
        yield described(held, seen)


def _left_open_by_definition(function: FunctionType, source: str, seen: Seen) -> Iterator[str]:
    definition = _definition(function, source)
    if definition is None:
        yield _compiled(function.__code__)
    if (function.__defaults__ or function.__kwdefaults__) and not (definition and _literal_defaults(definition)):
        yield described([function.__defaults__, function.__kwdefaults__], seen)
    closed_over = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not assigned yet
            closed_over[name] = cell.cell_contents
    if closed_over:
        yield described(closed_over, seen)


def _definition(function: FunctionType, source: str) -> Definition | None:
    """Find the definition of the function in the source; None if it is missing or ambiguous."""
    try:
        tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:  # for example one line of a longer expression
        return None
    kinds = ast.Lambda if function.__name__ == "<lambda>" else (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [each for each in ast.walk(tree) if isinstance(each, kinds)]
    if not found or (len(found) > 1 and isinstance(found[0], ast.Lambda)):
        return None
    return found[0]  # `walk` yields an outer function before inner ones


def _literal_defaults(definition: Definition) -> bool:
    try:
        for each in (*definition.args.defaults, *definition.args.kw_defaults):
            ast.literal_eval(each or "None")
    except ValueError:
        return False
    return True


def _compiled(code: CodeType) -> str:
    consts = [_compiled(each) if isinstance(each, CodeType) else described(each) for each in code.co_consts]
    return repr((code.co_code, code.co_names, code.co_varnames, consts))
