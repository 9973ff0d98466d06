"""The reward: named checks over one reply, combined into a number, with words about what is missing.

Every reply is judged once: the score is cached by row and reply, and `calls` counts the real evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from pydantic import ValidationError

from nslora.tools.errors import RewardError
from nslora.tools.rewards.checks import Check, CheckResult, Contains, ExactMatch, JsonSchema, Length, Regex, UpperCase
from nslora.tools.rewards.numeric import Numeric
from nslora.tools.rewards.score import Score

if TYPE_CHECKING:
    from nslora.tools.schema import Example

Combine = Literal["mean", "all"]

# The sentence with which feedback ends, on a line of its own; the suggestion follows to the end of the text.
SUGGESTION_PREFIX = "A reply that would be right here: "

BUILT_IN: Mapping[str, type[Check]] = {
    "exact_match": ExactMatch,
    "contains": Contains,
    "numeric": Numeric,
    "regex": Regex,
    "json_schema": JsonSchema,
    "length": Length,
    "upper_case": UpperCase,
}


class Reward:
    """Scores replies: cached by row and reply, real evaluations counted in `calls`.

    combine "mean" is the mean of the checks by weight; "all" gives 1.0 where every check is at 1, else 0.0.
    costly: each evaluation costs money, so the classifier asks as little as it can. noise: the largest change of mind
    about one reply, None where it is not known and is measured.
    Raises RewardError, naming the row, where a user's function raises or gives no number in [0, 1].
    """

    def __init__(
        self, checks: Sequence[Check], combine: Combine = "mean", *, costly: bool = False, noise: float | None = None
    ) -> None:
        names = [check.name for check in checks]
        if not names:
            raise RewardError("A reward needs at least one check: list some under reward.checks.")
        for name in names:
            if names.count(name) > 1:
                raise RewardError(f"Two checks are named {name!r}: give each its own `name`.")
        if combine not in get_args(Combine):
            raise RewardError(f"Unknown reward.combine {combine!r} (known: {', '.join(get_args(Combine))}).")
        self.checks, self.combine, self.calls = tuple(checks), combine, 0
        self.costly, self.noise = costly, noise
        self.tolerance: float | None = None  # what the classifier found when it asked twice
        self._scores: dict[tuple[str, str, str], Score] = {}
        self._suggestions: dict[tuple[str, str], str | None] = {}

    def __call__(self, example: Example, reply: str) -> Score:
        key = (example.id, example.question, reply)
        if key not in self._scores:
            self._scores[key] = self.fresh(example, reply)
        return self._scores[key]

    def fresh(self, example: Example, reply: str) -> Score:
        """The score of a reply, evaluated anew: for measuring how firm a reward is."""
        bare, offered = self._judge(example, reply)
        if bare.passed:
            return Score(bare.value, bare.checks, "", reply)
        suggestion = self.suggestion(example)
        if suggestion is None and offered is not None and self._judge(example, offered)[0].passed:
            suggestion = offered
        shown = "" if suggestion is None else f"\n{SUGGESTION_PREFIX}{suggestion}"
        return Score(bare.value, bare.checks, bare.feedback + shown, suggestion)

    def suggestion(self, example: Example) -> str | None:
        """A reply that earns full reward on this row: the reference, mended by each check in turn, then verified.

        None where that does not earn it, where the row has no reference, or where a check hides what is right.
        """
        key = (example.id, example.question)
        if key not in self._suggestions:
            self._suggestions[key] = self._suggest(example)
        return self._suggestions[key]

    def anew(self) -> Reward:
        """The same reward, with nothing remembered: for rows whose ids are not this task's own."""
        return Reward(self.checks, self.combine, costly=self.costly, noise=self.noise)

    def problem(self, example: Example) -> str | None:
        """Why some check cannot judge this row, as the end of a sentence; None where all can."""
        return next((problem for check in self.checks if (problem := check.problem(example))), None)

    @property
    def spec(self) -> dict[str, Any]:
        """The reward as plain values, for the task's hash."""
        spec: dict[str, Any] = {"combine": self.combine, "checks": [check.spec for check in self.checks]}
        return spec | ({"costly": True} if self.costly else {}) | ({"noise": self.noise} if self.noise else {})

    def _suggest(self, example: Example) -> str | None:
        if example.reference is None or not all(check.tells for check in self.checks):
            return None
        reply = example.reference
        for check in self.checks:
            reply = check.mend(example, reply)
        return reply if self._judge(example, reply)[0].passed else None

    def _judge(self, example: Example, reply: str) -> tuple[Score, str | None]:
        """One evaluation: the score without a suggestion, and what a user's function suggested."""
        self.calls += 1
        verdicts = [(check, check.grade(example, reply)) for check in self.checks]
        values: dict[str, float] = {}
        for check, verdict in verdicts:
            parts = {check.name: verdict.value} if verdict.parts is None else verdict.parts
            values |= {f"{check.name}.{name}" if name in values else name: part for name, part in parts.items()}
        if self.combine == "all":
            value = 1.0 if all(part >= 1.0 for part in values.values()) else 0.0
        else:
            value = sum(c.weight * v.value for c, v in verdicts) / sum(c.weight for c in self.checks)
        words = [_words(check, verdict) for check, verdict in verdicts]
        offered = next((verdict.suggestion for _, verdict in verdicts if verdict.suggestion is not None), None)
        return Score(value, values, " ".join(word for word in words if word)), offered


def _words(check: Check, verdict: CheckResult) -> str:
    parts = verdict.parts.values() if verdict.parts is not None else [verdict.value]
    if all(part >= 1.0 for part in parts):
        return ""
    return verdict.feedback or f"The check {check.name!r} gave {verdict.value:g} of 1."


def build_reward(
    spec: Sequence[Any] | Callable[..., Any], *, combine: str = "mean", folder: Path | None = None
) -> Reward:
    """A reward from check specs (`{"check": "contains", "field": "key"}`, or a name alone) or from a callable.

    folder is where `module:function` is looked for first. Raises RewardError for a check that is unknown or refuses
    its options.
    """
    if callable(spec):
        from nslora.tools.rewards.functions import callable_check

        return Reward([callable_check(spec)], cast("Combine", combine))
    if isinstance(spec, str | Mapping):
        spec = [spec]
    return Reward([build_check(check, folder) for check in spec], cast("Combine", combine))


def build_check(spec: Any, folder: Path | None = None) -> Check:
    """One check from its spec. Raises RewardError."""
    options = {"check": spec} if isinstance(spec, str) else spec
    if not isinstance(options, Mapping) or not isinstance(options.get("check"), str):
        raise RewardError(f"A check needs its kind under the key `check`, but this came: {spec!r}; {_known()}.")
    kind = options["check"]
    if ":" in kind:
        from nslora.tools.rewards.functions import function_check

        return function_check(options, folder)
    if kind not in BUILT_IN:
        raise RewardError(f"Unknown check {kind!r}: {_known()}.")
    try:
        return BUILT_IN[kind].model_validate({"name": kind, **options})
    except ValidationError as error:
        raise RewardError(f"The check {kind!r} refuses its options: {first_problem(error, BUILT_IN[kind])}.") from error


def first_problem(error: ValidationError, model: type[Any]) -> str:
    """The first problem of a validation as words: the field, what is wrong, what came."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the whole"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        known = ", ".join(sorted(field.alias or name for name, field in model.model_fields.items()))
        return f"unknown field {place!r} (known: {known}){more}"
    if first["type"] == "missing":
        return f"the field {place!r} is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    came = "" if isinstance(first["input"], Mapping) else f" (came: {str(first['input'])[:80]!r})"
    return f"{place}: {message[:1].lower()}{message[1:]}{came}{more}"


def _known() -> str:
    return f"known are {', '.join(BUILT_IN)}, and your own as package.module:function"
