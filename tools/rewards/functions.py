"""Reward functions of the user: find them by name, call them, and check that they return a number in [0, 1]."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from nslora.tools.errors import NsloraError, RewardError, UnreachableRewardError
from nslora.tools.rewards.calling import AT_ONCE, TRIES, is_async, is_passing, settled
from nslora.tools.rewards.checks import Check, CheckResult
from nslora.tools.rewards.function_hash import first_text_of
from nslora.tools.rewards.score import Score
from nslora.tools.rewards.signatures import Signature, signature_of

if TYPE_CHECKING:
    from nslora.tools.schema import Example

_ROUNDING = 1e-9
_ONE_BY_ONE = RLock()  # functions that are not async may not be safe in several threads
_WORDS = ("feedback", "reason", "reasoning", "comment", "explanation", "rationale")  # names of what a judge says


class FunctionCheck(Check):
    """A check that calls a function, by the names of its parameters (`signatures.KNOWN`), plus the spec's options.

    The function returns a number in [0, 1], a bool, (number, feedback), {"score", "feedback"}, an object with `.score`
    and `.feedback`, or a Score. "reason", "comment" and the like are feedback too. A function of `completions` returns
    a list with one of these. An async function is awaited.
    """

    function: Callable[..., Any]
    options: dict[str, Any] = Field(default_factory=dict)
    named: bool = Field(False, exclude=True)  # given as module:function: hash the whole module, with its helpers

    @property
    def spec(self) -> dict[str, Any]:
        """The check as plain values, with a hash of the function, so that scores of two versions do not mix.

        For an object, the hash covers its state at first use; `__getstate__` can leave out a clock or a client.
        """
        plain = self.model_dump(exclude_defaults=True, exclude={"function"})
        return {**plain, "code": hashlib.sha256(first_text_of(self.function, whole=self.named).encode()).hexdigest()}

    @cached_property
    def signature(self) -> Signature:
        """How the function is called. Raises RewardError if that cannot be known."""
        return signature_of(self.check, self.function, self.options)

    @property
    def at_once(self) -> int:
        return AT_ONCE if is_async(self.function) else 1

    def problem(self, example: Example) -> str | None:
        if not (lacking := self.signature.lacking(example)):
            return None
        found = ", ".join(map(str, example.fields))
        return (
            f"the reward function {self.check!r} needs {' and '.join(lacking)}, which this row lacks (found: {found})"
        )

    def grade(self, example: Example, reply: str) -> CheckResult:
        where = f"The reward function {self.check!r}, on row {example.id!r} with the reply {reply[:80]!r},"

        def call() -> Any:
            arguments, keywords = self.signature.arguments(example, reply)  # anew: the function may change them
            return self.function(*arguments, **keywords, **self.options)

        try:
            with nullcontext() if self.at_once > 1 else _ONE_BY_ONE:
                result = settled(call)
        except NsloraError:
            raise
        except (Exception, SystemExit) as error:
            raised = f"{where} raised {type(error).__name__}: {error}"
            if is_passing(error):
                raise UnreachableRewardError(
                    f"{raised}, at each of {TRIES} tries; failures like this pass: wait, then begin or resume."
                ) from error
            raise RewardError(
                f"{raised}; fix the function and begin a new run "
                "(scores of two versions do not mix; known replies are not generated again)."
            ) from error
        return _checked(_only(result, where) if self.signature.family == "batch" else result, where)


def function_check(spec: Mapping[str, Any], folder: Path | None = None) -> FunctionCheck:
    """Build the check of a spec `{"check": "package.module:function", ...options}`.

    Raises:
        RewardError: If the function cannot be found or called, or `name` or `weight` is wrong.
    """
    kind = spec["check"]
    function = find_function("check", kind, folder)
    own = {key: spec[key] for key in ("name", "weight", "wanted") if key in spec}
    options = {key: value for key, value in spec.items() if key != "check" and key not in own}
    signature_of(kind, function, options)
    try:
        return FunctionCheck(
            **{"name": kind.partition(":")[2], **own}, check=kind, function=function, options=options, named=True
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise RewardError(f"The check {kind!r} rejects {first['loc'][0]}: {first['msg']}.") from error


def callable_check(function: Callable[..., Any]) -> FunctionCheck:
    """Build the check named "reward" for a callable. Raises RewardError if it cannot be called."""
    name = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(function).__qualname__)}"
    signature_of(name, function, {})
    return FunctionCheck(check=name, name="reward", function=function)


def find_function(what: str, kind: str, folder: Path | None) -> Callable[..., Any]:
    """What `module:function` names, in the task's folder or installed. what: for messages. Raises RewardError."""
    module_name, _, name = kind.partition(":")
    try:
        module = _module(module_name, folder)
    except (Exception, SystemExit) as error:
        missing = str(getattr(error, "name", None) or "").partition(".")[0]
        remedy = "put it beside task.yaml or install it"
        if folder is not None and missing not in ("", module_name) and (folder / f"{missing}.py").is_file():
            remedy = (
                f"a module beside task.yaml cannot import its neighbour {missing!r}, because each task may "
                "have a module of that name: put both into one file, or install them"
            )
        raise RewardError(
            f"The module of the {what} {kind!r} cannot be imported ({type(error).__name__}: {error}): {remedy}."
        ) from error
    function: Any = module
    for part in name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise RewardError(f"The {what} {kind!r} cannot be found: the module {module_name!r} has no callable {name!r}.")
    return function  # type: ignore[no-any-return]


def _module(name: str, folder: Path | None) -> Any:
    """Import a module from the task's folder, else an installed one.

    A module from the folder gets a unique name in `sys.modules`, because every task may have a `reward.py`.
    """
    path = None if folder is None else folder / Path(*name.split(".")).with_suffix(".py")
    if path is None or not path.is_file():
        return importlib.import_module(name)
    source = path.read_bytes()
    own_name = f"nslora_task_{hashlib.sha256(str(path).encode() + source).hexdigest()[:16]}"
    if own_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(own_name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is not a Python module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[own_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[own_name]
            raise
    return sys.modules[own_name]


def _only(result: Any, where: str) -> Any:
    """The reward of the one completion that a function of `completions` was given."""
    rewards = list(result) if isinstance(result, Sequence) or hasattr(result, "tolist") else [result, None]
    if isinstance(result, str) or len(rewards) != 1:
        raise RewardError(
            f"{where} returned {result!r}: with `completions`, it must return a list with one reward for each."
        )
    return rewards[0]


def _checked(result: Any, where: str) -> CheckResult:
    """Convert what a function returned. Raises RewardError, beginning with `where`, if it is invalid."""
    if isinstance(result, Score):
        return _from_score(result, where)
    feedback: Any = ""
    if isinstance(result, Mapping):
        if "score" not in result:
            found = ", ".join(map(str, result))
            raise RewardError(f"{where} returned a mapping without the key 'score' (found: {found}).")
        result, feedback = result["score"], _words(result.get)
    elif hasattr(result, "score"):
        result, feedback = result.score, _words(lambda name: getattr(result, name, None))
    elif isinstance(result, tuple | list) and len(result) == 2:
        result, feedback = result
    if not isinstance(feedback, str | None):
        raise RewardError(f"{where} returned {feedback!r} as feedback: return text beside the number.")
    return CheckResult(_number(result, where), feedback or "")


def _words(get: Callable[[str], Any]) -> Any:
    """What a judge says beside its number: the first of the names that holds anything."""
    return next((found for name in _WORDS if (found := get(name))), "")


def _from_score(score: Score, where: str) -> CheckResult:
    checks = score.checks or {}
    # Encoding replaces unpaired surrogates, which a checkpoint cannot store.
    parts = {str(name).encode("utf-8", "replace").decode(): _number(part, where) for name, part in checks.items()}
    value = _number(score.value, where)
    if parts and (value == 1) != (min(parts.values()) == 1):
        raise RewardError(
            f"{where} returned a Score of {value:g} with the checks {parts}: it must be 1 if all checks are 1, "
            "and less otherwise; add a check for whatever else it counts."
        )
    if not isinstance(score.suggestion, str | None):
        raise RewardError(
            f"{where} returned a Score with the suggestion {score.suggestion!r}: it must be a reply (text) or None."
        )
    return CheckResult(value, str(score.feedback or ""), parts or None, score.suggestion)


def _number(value: Any, where: str) -> float:
    """Check for a number in [0, 1], and remove rounding errors."""
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not -_ROUNDING <= number <= 1 + _ROUNDING:
        raise RewardError(f"{where} returned {value!r}: it must return a number from 0 to 1.")
    # 0.7 + 0.2 + 0.1 is 0.9999999999999999; of 0.0 and -0.0, max gives the first.
    return 1.0 if number >= 1 - _ROUNDING else max(0.0, number)
