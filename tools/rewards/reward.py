"""The reward: scores a reply with named checks, combines their values, and says what is missing.

Scores are cached by row and reply; `calls` counts the evaluations that were made.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import ValidationError

from nslora.tools.errors import RewardError
from nslora.tools.rewards.checks import Check, CheckResult, Contains, ExactMatch, JsonSchema, Length, Regex, UpperCase
from nslora.tools.rewards.choice import Choice
from nslora.tools.rewards.json_equal import JsonEqual
from nslora.tools.rewards.judging import JudgingCheck
from nslora.tools.rewards.label import Label
from nslora.tools.rewards.numeric import Numeric
from nslora.tools.rewards.score import Score
from nslora.tools.thinking import split_thinking

if TYPE_CHECKING:
    from nslora.tools.schema import Example

Combine = Literal["mean", "all"]

_COUNTING = Lock()  # `calls`, when rows are scored at once

# Begins the last part of the feedback, on a new line; the suggestion follows, to the end of the text.
SUGGESTION_PREFIX = "A reply that would be right here: "

BUILT_IN: Mapping[str, type[Check]] = {
    "exact_match": ExactMatch,
    "contains": Contains,
    "choice": Choice,
    "label": Label,
    "numeric": Numeric,
    "regex": Regex,
    "json_schema": JsonSchema,
    "json_equal": JsonEqual,
    "length": Length,
    "upper_case": UpperCase,
}
# A check that stands on a package above this one, as `module:function` does: its builder, called with spec and folder.
PLUGGED_IN: Mapping[str, str] = {"judge": "nslora.tools.editor.judge:judge_check"}


class Reward:
    """Scores replies. Caches scores by row and reply.

    Args:
        checks: At least one check, each with a unique name.
        combine: "mean": the mean of the checks, by weight. "all": 1.0 if every check is at 1, else 0.0.
        costly: True if an evaluation costs money; the classifier then evaluates as little as it can. None: if there is
            a judge.
        noise: Largest difference between two scores of one reply. None: the classifier measures it.

    Raises:
        RewardError: If `checks` or `combine` is wrong. A call raises it, with the row's id, if a user's function
            raises or does not return a number in [0, 1].
    """

    def __init__(
        self, checks: Sequence[Check], combine: str = "mean", *, costly: bool | None = None, noise: float | None = None
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
        self.costly, self.noise = bool(self.judges) if costly is None else costly, noise
        self.tolerance: float | None = None  # measured by the classifier
        self._scores: dict[tuple[str, str, str, Any], Score] = {}
        self._suggestions: dict[tuple[str, str], str | None] = {}
        self._place: Any = None  # of the judges

    def __call__(self, example: Example, reply: str) -> Score:
        reply = split_thinking(reply)[1]  # what was only considered is no answer
        key = (example.id, example.asked, reply, example.trajectory)
        if key not in self._scores:
            self._scores[key] = self.fresh(example, reply)
        return self._scores[key]

    @property
    def judges(self) -> tuple[JudgingCheck, ...]:
        """The checks that ask a chat model."""
        return tuple(check for check in self.checks if isinstance(check, JudgingCheck))

    def judge_in(self, place: Any) -> None:
        """Have the judges work in this `JudgePlace`, whose records are to hold all that is scored from now on."""
        if self.judges and place is not self._place:
            self._place = place
            self._scores, self._suggestions = {}, {}
            for check in self.judges:
                check.work_in(place)

    def score_all(self, examples: Sequence[Example], replies: Sequence[str]) -> list[Score]:
        """Score each reply to its row. Rows are scored at once if a check is async or a judge."""
        pairs = list(zip(examples, replies, strict=True))
        if (at_once := max(check.at_once for check in self.checks)) == 1:
            return [self(example, reply) for example, reply in pairs]
        by_row: dict[tuple[str, str], list[tuple[Example, str]]] = {}
        for example, reply in pairs:  # replies to one row in turn, because they share its suggestion
            by_row.setdefault((example.id, example.asked), []).append((example, reply))
        with ThreadPoolExecutor(at_once) as pool:
            waiting = [pool.submit(lambda row: [self(*pair) for pair in row], row) for row in by_row.values()]
            try:
                for each in waiting:
                    each.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [self(example, reply) for example, reply in pairs]

    def fresh(self, example: Example, reply: str) -> Score:
        """Score a reply without the cache, to measure the noise of the reward."""
        bare, offered = self._judge(example, reply)
        if bare.passed:
            return Score(bare.value, bare.checks, "", reply)
        suggestion = self.suggestion(example)
        if suggestion is None and offered is not None and self._judge(example, offered)[0].passed:
            suggestion = offered
        shown = "" if suggestion is None else f"\n{SUGGESTION_PREFIX}{suggestion}"
        return Score(bare.value, bare.checks, bare.feedback + shown, suggestion)

    def suggestion(self, example: Example) -> str | None:
        """Find a reply that earns full reward on this row: the reference, repaired by each check in turn and verified.

        Returns:
            The reply. None if it does not earn full reward, the row has no reference, or a check hides the answer.
        """
        key = (example.id, example.asked)
        if key not in self._suggestions:
            self._suggestions[key] = self._suggest(example)
        return self._suggestions[key]

    @property
    def reveals(self) -> bool:
        """Whether right replies may be shown, in feedback and to editors."""
        return all(getattr(check, "reveal", True) for check in self.checks)

    def anew(self) -> Reward:
        """Copy the reward with empty caches, for rows whose ids are not unique within this task."""
        return Reward(self.checks, self.combine, costly=self.costly, noise=self.noise)

    def fitted(self, examples: Sequence[Example]) -> Reward:
        """The reward whose checks have taken what they need from the train rows, such as labels. Raises RewardError."""
        return Reward(
            [check.fitted(examples) for check in self.checks], self.combine, costly=self.costly, noise=self.noise
        )

    def problem(self, example: Example) -> str | None:
        """Say why a check cannot score this row, as the end of a sentence; None if all can."""
        problems = [self._problem(reading) for reading in _readings(example)]
        return problems[0] if all(problems) else None

    def _problem(self, example: Example) -> str | None:
        return next((problem for check in self.checks if (problem := check.problem(example))), None)

    def label_numbers(self, rows: Sequence[Example], replies: Sequence[str]) -> dict[str, Any]:
        """Macro-F1 and the numbers of each label, by the name of each `label` check."""
        return {check.name: check.numbers(rows, replies) for check in self.checks if isinstance(check, Label)}

    def label_pairs(self, rows: Sequence[Example], replies: Sequence[str]) -> dict[str, list[tuple[str, str | None]]]:
        """The right label and the given one of each reply, by the name of each `label` check; see `Label.pairs`."""
        return {check.name: check.pairs(rows, replies) for check in self.checks if isinstance(check, Label)}

    def remarks(self, examples: Sequence[Example]) -> list[str]:
        """Say what in these rows makes a check earn reward by chance, one sentence or two for each check."""
        return [remark for check in self.checks if (remark := check.remark(examples))]

    @property
    def spec(self) -> dict[str, Any]:
        """The reward as plain values, for the task's hash."""
        return self.spec_of(self.revisions)

    @property
    def revisions(self) -> dict[str, int]:
        """The revision of each check, by its name."""
        return {check.name: check.revision for check in self.checks}

    def spec_of(self, revisions: Mapping[str, int]) -> dict[str, Any]:
        """The spec under these revisions of the checks; 1 for a check that is not named."""
        checks = [check.spec_of(revisions.get(check.name, 1)) for check in self.checks]
        spec: dict[str, Any] = {"combine": self.combine, "checks": checks}
        return spec | ({"costly": True} if self.costly else {}) | ({"noise": self.noise} if self.noise else {})

    def _suggest(self, example: Example) -> str | None:
        if example.reference is None or not self.reveals:
            return None
        reply = example.reference
        for check in self.checks:
            reply = check.mend(example, reply)
        return reply if self._judge(example, reply)[0].passed else None

    def _judge(self, example: Example, reply: str) -> tuple[Score, str | None]:
        """Judge by each right answer of the row that all checks can read; the best score counts, of equals the first.

        Returns:
            The score without suggestion, and the suggestion of a user's function.
        """
        if len(example.answers) < 2 or all(check.all_answers for check in self.checks):
            return self._judge_one(example, reply)
        best = None
        for reading in (each for each in _readings(example) if self._problem(each) is None):
            found = self._judge_one(reading, reply, whole=example)
            if best is None or found[0].value > best[0].value:
                best = found
            if found[0].passed:
                break
        return best or self._judge_one(example, reply)

    def _judge_one(self, example: Example, reply: str, whole: Example | None = None) -> tuple[Score, str | None]:
        with _COUNTING:
            self.calls += 1
        rows = [whole if whole is not None and check.all_answers else example for check in self.checks]
        results = [(check, check.grade(row, reply)) for check, row in zip(self.checks, rows, strict=True)]
        values: dict[str, float] = {}
        for check, result in results:
            parts = {check.name: result.value} if result.parts is None else result.parts
            values |= {f"{check.name}.{name}" if name in values else name: part for name, part in parts.items()}
        if self.combine == "all":
            value = 1.0 if all(part >= 1.0 for part in values.values()) else 0.0
        else:
            value = sum(c.weight * r.value for c, r in results) / sum(c.weight for c in self.checks)
        words = " ".join(filter(None, (_feedback(check, result) for check, result in results)))
        offered = next((result.suggestion for _, result in results if result.suggestion is not None), None)
        return Score(value, values, words), offered


def _readings(example: Example) -> list[Example]:
    """The row, once for each of its right answers."""
    if len(example.answers) < 2:
        return [example]
    return [replace(example, reference=answer, answers=()) for answer in example.answers]


def _feedback(check: Check, result: CheckResult) -> str:
    parts = result.parts.values() if result.parts is not None else [result.value]
    if all(part >= 1.0 for part in parts):
        return ""
    return result.feedback or f"The check {check.name!r} gave {result.value:g} of 1."


def build_reward(
    spec: Sequence[Any] | Callable[..., Any], *, combine: str = "mean", folder: Path | None = None
) -> Reward:
    """Build a reward.

    Args:
        spec: Check specs (`{"check": "contains", "field": "key"}`, or a name alone), or a callable.
        combine: "mean" or "all"; see `Reward`.
        folder: Searched first for the module of `module:function`.

    Raises:
        RewardError: If a check is unknown or rejects its options.
    """
    if callable(spec):
        from nslora.tools.rewards.functions import callable_check

        return Reward([callable_check(spec)], combine)
    specs = [spec] if isinstance(spec, str | Mapping) else spec
    return Reward([build_check(check, folder) for check in specs], combine)


def build_check(spec: Any, folder: Path | None = None) -> Check:
    """Build one check from its spec. Raises RewardError."""
    options = {"check": spec} if isinstance(spec, str) else spec
    if not isinstance(options, Mapping) or not isinstance(options.get("check"), str):
        raise RewardError(f"A check needs its kind under the key `check`, but got {spec!r}; {_known()}.")
    kind = options["check"]
    if ":" in kind:
        from nslora.tools.rewards.functions import function_check

        return function_check(options, folder)
    if kind in PLUGGED_IN:
        module, _, name = PLUGGED_IN[kind].partition(":")
        build: Callable[..., Check] = getattr(importlib.import_module(module), name)
        return build(options, folder)
    if kind not in BUILT_IN:
        raise RewardError(f"Unknown check {kind!r}: {_known()}.")
    try:
        return BUILT_IN[kind].model_validate({"name": kind, **options})
    except ValidationError as error:
        raise rejected(error, BUILT_IN[kind], kind) from error


def rejected(error: ValidationError, model: type[Any], kind: str) -> RewardError:
    """The error for options that a check does not take."""
    return RewardError(f"The check {kind!r} rejects its options: {first_problem(error, model)}.")


def first_problem(error: ValidationError, model: type[Any]) -> str:
    """Describe the first error of a pydantic validation: the field, what is wrong, the value."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        for key in first["loc"][:-1]:
            annotation = model.model_fields[str(key)].annotation  # a model, or `model | None`
            model = next(each for each in (*get_args(annotation), annotation) if hasattr(each, "model_fields"))
        known = ", ".join(sorted(field.alias or name for name, field in model.model_fields.items()))
        return f"unknown field {place!r} (known: {known}){more}"
    if first["type"] == "missing":
        return f"the field {place!r} is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    came = "" if isinstance(first["input"], Mapping) else f" (came: {str(first['input'])[:80]!r})"
    return f"{place}: {message[:1].lower()}{message[1:]}{came}{more}" if place else f"{message}{came}{more}"


def _known() -> str:
    return f"known are {', '.join((*BUILT_IN, *PLUGGED_IN))}, and your own as package.module:function"
