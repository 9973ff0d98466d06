"""The signatures of reward functions: this package's own, and those of TRL, verifiers, DSPy, GEPA and verl.

The name of the parameter that takes the reply tells whose signature it is. A function with unknown names is refused,
because one that is called with the wrong things gives wrong scores and no error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from types import CodeType
from typing import TYPE_CHECKING, Any

from nslora.tools.errors import RewardError
from nslora.tools.trajectory import Trajectory

if TYPE_CHECKING:
    from nslora.tools.schema import Example

KNOWN = (
    "(question, reference, reply, example) with an agent's trajectory, TRL's (prompts, completions, **columns), TRL's "
    "and verifiers' (prompt, completion, answer, state, info, task), DSPy's (gold or example, pred or prediction, "
    "trace), GEPA's (gold, pred, trace, pred_name, pred_trace) and verl's (data_source, solution_str, ground_truth, "
    "extra_info)"
)
# The parameter that takes the reply, and whose signature it belongs to.
_REPLY = {
    "completions": "batch",
    "completion": "single",
    "solution_str": "verl",
    "pred": "dspy",
    "prediction": "dspy",
}
_NAMES = {
    "own": ("question", "reference", "reply", "example", "trajectory"),
    "batch": ("prompts", "completions"),
    "single": ("prompt", "completion", "answer", "state", "info", "task"),
    "verl": ("data_source", "solution_str", "ground_truth", "extra_info"),
    "dspy": ("gold", "example", "pred", "prediction", "trace", "pred_name", "pred_trace"),
}
_TAKES_COLUMNS = ("batch", "single")  # every other parameter names a column of the row
_REFERENCE = ("answer", "reference", "solution", "ground_truth", "target")  # names of the reference, without a column
# Names of a program's output in DSPy, besides the column that holds the reference.
_OUTPUT = ("answer", "response", "output", "reply", "completion", "prediction", "text", "label", "result", "summary")
_MESSAGE_KEY = "content"


class Record(Mapping[str, Any]):
    """Named values, read as attributes or by key, as DSPy's Example and Prediction are.

    A comparison with anything raises TypeError: `gold == pred` would be False for every reply.
    """

    def __init__(self, kind: str, values: Mapping[str, Any], text: str) -> None:
        self._kind, self._values, self._text = kind, dict(values), text

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"the {self._kind} has no field {name!r} (it has {', '.join(self._values)})")
        return self._values[name]

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __str__(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        if other is None or other is self:
            return other is self
        raise TypeError(f"the {self._kind} is an object: compare one of its fields ({', '.join(self._values)})")

    __hash__ = None  # type: ignore[assignment]

    def toDict(self) -> dict[str, Any]:  # noqa: N802 -- DSPy's name
        """The values as a dict."""
        return dict(self._values)


@dataclass(frozen=True)
class Signature:
    """How a reward function is called.

    Attributes:
        family: "own", "batch", "single", "verl" or "dspy".
        positional: Names of the parameters that take no keyword, in order.
        keywords: Names of the parameters that are given by keyword.
        needed: Names that have no default.
        open: True if the function takes any keyword.
        messages: True if it reads the reply as chat messages, not as text.
    """

    family: str
    positional: tuple[str, ...]
    keywords: tuple[str, ...]
    needed: frozenset[str]
    open: bool
    messages: bool

    def arguments(self, example: Example, reply: str) -> tuple[list[Any], dict[str, Any]]:
        """The arguments for this row and reply: positional ones, and keywords."""
        offered = self._offered(example, reply)
        keywords = {
            name: value
            for name, value in offered.items()
            if name in self.keywords or (self.open and name not in self.positional)
        }
        return [offered[name] for name in takewhile(offered.__contains__, self.positional)], keywords

    def lacking(self, example: Example) -> list[str]:
        """The parameters that this row has no value for."""
        offered = self._offered(example, "")
        return sorted(name for name in self.needed if name not in offered)

    def _offered(self, example: Example, reply: str) -> dict[str, Any]:
        question, reference, columns = example.asked, example.reference, dict(example.fields)
        if self.family == "own":
            given = {"question": question, "reference": reference, "reply": reply, "example": example}
            return given | {"trajectory": example.trajectory or Trajectory()}
        named = {} if reference is None else dict.fromkeys(_REFERENCE, reference)
        if self.family == "verl":
            truth = {} if reference is None else {"ground_truth": reference}
            source = columns.get("data_source", "")
            return {"data_source": source, "solution_str": reply, **truth, "extra_info": columns}
        if self.family == "dspy":
            return self._dspy(example, reply)
        turns = [*example.history, ("user", example.question)]
        prompt = [{"role": role, "content": text} for role, text in turns] if self.messages else question
        completion = [{"role": "assistant", "content": reply}] if self.messages else reply
        if self.family == "batch":
            by_row = {name: [value] for name, value in (named | columns).items()}
            return {**by_row, "prompts": [prompt], "completions": [completion]}
        values = {"info": columns, "task": "default", **named, **columns, "prompt": prompt, "completion": completion}
        answer = {"answer": values["answer"]} if "answer" in values else {}
        state = {"prompt": prompt, "completion": completion, **answer, "info": values["info"], "task": values["task"]}
        state |= {"trajectory": example.trajectory} if example.trajectory else {}
        return {**values, "state": state}

    @staticmethod
    def _dspy(example: Example, reply: str) -> dict[str, Any]:
        reference, columns = example.reference, example.fields
        names = {} if reference is None else {"reference": reference, "answer": reference}
        gold = Record("example", {"question": example.asked, **names, **columns}, str(dict(columns)))
        outputs = [name for name, value in columns.items() if reference is not None and value == reference]
        pred = Record("prediction", dict.fromkeys((*_OUTPUT, *outputs), reply), reply)
        nothing = dict.fromkeys(("trace", "pred_name", "pred_trace"))
        return {"gold": gold, "example": gold, "pred": pred, "prediction": pred, **nothing}


def signature_of(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> Signature:
    """Find out how a function is called.

    Args:
        name: Of the function, for the message.
        function: The reward function.
        options: What the check's spec gives it by keyword.

    Raises:
        RewardError: If a parameter without a default is none of the known names, or an option is none of its own.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise RewardError(f"The reward function {name!r} cannot be called: {error}. Known are {KNOWN}.") from error
    named = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    is_open = any(each.kind is each.VAR_KEYWORD for each in parameters)
    family = next((_REPLY[each.name] for each in named if each.name in _REPLY), "own")
    offered = _NAMES[family]
    free = [each for each in named if each.name not in options or each.name in offered]
    unknown = [each.name for each in free if each.default is each.empty and each.name not in offered]
    if family in _TAKES_COLUMNS:
        unknown = []
    if unknown or not (is_open or any(each.name in offered for each in free)):
        if inspect.isclass(function):
            raise RewardError(f"The reward function {name!r} is a class: give an object of it that can be called.")
        raise RewardError(
            f"The reward function {name!r} has {_described(unknown)}, so nobody knows what to give it: known are "
            f"{KNOWN}; rename its parameters, or give them as options of the check."
        )
    surplus = [] if is_open else [each for each in options if each not in {parameter.name for parameter in named}]
    clash = [each for each in options if each in offered and (is_open or each in {p.name for p in free})]
    if surplus or clash:
        raise RewardError(
            f"The reward function {name!r} cannot be called with the option {(surplus or clash)[0]!r}: it gets "
            f"{', '.join(offered)} and the options {', '.join(options)}, each once and each a parameter of its own."
        )
    wanted = [each for each in free if family in _TAKES_COLUMNS or each.name in offered]
    return Signature(
        family,
        tuple(each.name for each in wanted if each.kind is each.POSITIONAL_ONLY),
        tuple(each.name for each in wanted if each.kind is not each.POSITIONAL_ONLY),
        frozenset(each.name for each in wanted if each.default is each.empty),
        is_open,
        _reads_messages(function),
    )


def _described(unknown: list[str]) -> str:
    if not unknown:
        return "no parameter for the reply"
    return f"the unknown parameter{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}"


def _reads_messages(function: Any) -> bool:
    """Whether a function uses the key "content", as in `completion[0]["content"]`."""
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    function = inspect.unwrap(function)
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = type(function).__call__
    code = getattr(function, "__code__", None)
    return isinstance(code, CodeType) and _holds(code, _MESSAGE_KEY)


def _holds(code: CodeType, constant: str) -> bool:
    return any(each == constant or (isinstance(each, CodeType) and _holds(each, constant)) for each in code.co_consts)
