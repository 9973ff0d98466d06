"""The choice of the next update: train weights, edit the prompt, or finish. Pure functions of a RouterInput.

The default, `neurosymbolic`, weighs what the failures need (classifier) against the progress that each kind of update
still makes (monitoring signal): see `tools/router/expected_gain.py`. The others are baselines and ablations. All
share the stop rules of `tools/router/reasons.py`. Only a fixed order and a user's own function run a saturated kind.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nslora.tools.errors import NsloraError, SettingsError
from nslora.tools.named import object_named
from nslora.tools.router.expected_gain import (
    DEFAULTS,
    StrategySettings,
    affordability,
    best_of,
    expected_gains,
    needs_of,
)
from nslora.tools.router.inputs import RouterDecision, RouterInput, Strategy, evidence, open_kinds
from nslora.tools.router.monitoring_signal import DEFAULTS as SIGNAL
from nslora.tools.router.monitoring_signal import SignalSettings, Update, closed, progress_of
from nslora.tools.router.reasons import WORDS, need_words, signal_words, why_nothing_goes, why_stop, why_this_kind
from nslora.tools.schema import KINDS, Kind

NO_GAINS: Mapping[Kind, float] = {}
ONCE = "once"  # behind a step of an order: one update instead of as many as go


class _Chosen:
    """A choice below the stop rules that all strategies share."""

    def choose(self, router_input: RouterInput) -> RouterDecision:
        return must_finish(router_input) or self._choose(router_input)

    def _choose(self, router_input: RouterInput) -> RouterDecision:
        raise NotImplementedError


@dataclass(frozen=True)
class Neurosymbolic(_Chosen):
    """Classifier and signal together: the default."""

    settings: StrategySettings = DEFAULTS
    name: str = "neurosymbolic"

    def _choose(self, router_input: RouterInput) -> RouterDecision:
        router_input = without_vain_tries(router_input, self.settings)
        needs = needs_of(router_input, self.settings)
        wanted = [kind for kind in open_kinds(router_input) if needs[kind] > 0]
        if not wanted:
            return _finish(why_nothing_goes(router_input), router_input)
        gains = expected_gains(router_input, self.settings)
        kind = best_of(wanted, gains, router_input, self.settings.tie_share)
        return _go(kind, why_this_kind(kind, wanted, gains, router_input, self.settings), router_input, gains)


@dataclass(frozen=True)
class SingleKind(_Chosen):
    """One kind of update until it is saturated."""

    kind: Kind
    name: str

    def _choose(self, router_input: RouterInput) -> RouterDecision:
        if router_input.progress[self.kind].saturated:
            return _finish(
                f"{signal_words(router_input, self.kind)}; strategy {self.name} has no other kind.", router_input
            )
        return _go(self.kind, f"Strategy {self.name}: {signal_words(router_input, self.kind)}", router_input)


@dataclass(frozen=True)
class RandomChoice(_Chosen):
    """Any kind that is not saturated, drawn by task, seed and round.

    By the seed alone it would draw the same kinds on every task, and a mean over tasks would be of one draw.
    """

    name: str = "random"

    def _choose(self, router_input: RouterInput) -> RouterDecision:
        kinds = open_kinds(router_input)
        if not kinds:
            return _finish(why_nothing_goes(router_input), router_input)
        kind = random.Random(f"{router_input.task}-{router_input.seed}-{router_input.round}").choice(kinds)
        return _go(kind, f"Drawn by chance (seed {router_input.seed}, round {router_input.round})", router_input)


@dataclass(frozen=True)
class FixedOrder(_Chosen):
    """Steps in a fixed order. Each step repeats its kind until that is saturated, counted from the step's start.

    once: whether each step ends after a single update instead, kept or dropped.
    """

    steps: tuple[Kind, ...]
    once: tuple[bool, ...]
    signal: SignalSettings = SIGNAL

    @property
    def name(self) -> str:
        return " -> ".join(f"{kind} {ONCE}" if once else kind for kind, once in zip(self.steps, self.once, strict=True))

    def _choose(self, router_input: RouterInput) -> RouterDecision:
        position = self.position(router_input.history)
        if position >= len(self.steps):
            return _finish(f"The order {self.name} is done: {self._last_words()}.", router_input)
        kind = self.steps[position]
        words = f"Step {position + 1} of {len(self.steps)} of the order {self.name}"
        return _go(kind, words, router_input)

    def position(self, history: Sequence[Update]) -> int:
        """Index of the step in force, from the updates so far; len(steps) once the order is done."""
        position, start = 0, 0
        for end in range(1, len(history) + 1):
            if position < len(self.steps) and self._is_over(position, history[start:end]):
                position, start = position + 1, end
        return position

    def _is_over(self, step: int, since: Sequence[Update]) -> bool:
        """Whether the step is over, from the updates since its start (at least one)."""
        return self.once[step] or progress_of(self.steps[step], since, self.signal).saturated

    def _last_words(self) -> str:
        return "its last step was one update" if self.once[-1] else "its last step is saturated"


@dataclass(frozen=True)
class WithoutClassifier(_Chosen):
    """Ablation: the signal alone. Stays with a kind until it is saturated, then the other; starts with the cheaper."""

    name: str = "neurosymbolic-without-classifier"

    def _choose(self, router_input: RouterInput) -> RouterDecision:
        kinds = open_kinds(router_input)
        if not kinds:
            return _finish(why_nothing_goes(router_input), router_input)
        last = router_input.history[-1].kind if router_input.history else None
        kind = last if last in kinds else min(kinds, key=lambda kind: router_input.cost_tokens.get(kind, 0.0))
        return _go(kind, f"By the signal alone: {signal_words(router_input, kind)}", router_input)


@dataclass(frozen=True)
class WithoutSignal(_Chosen):
    """Ablation: the classifier alone. A kind whose last updates were all dropped is done for good."""

    settings: StrategySettings = DEFAULTS
    name: str = "neurosymbolic-without-signal"

    def _choose(self, router_input: RouterInput) -> RouterDecision:
        router_input = without_vain_tries(router_input, self.settings)
        vain = router_input.progress["lora"].evidence.get("in_vain")
        needs, costs = needs_of(router_input, self.settings), affordability(router_input, self.settings)
        wanted = [kind for kind in KINDS if needs[kind] > 0 and not self.done(kind, router_input.history)]
        wanted = [kind for kind in wanted if kind != "lora" or not vain]
        if not wanted and vain:
            return _finish(why_nothing_goes(router_input), router_input)
        if not wanted:
            drops = self.settings.drops_without_signal
            return _finish(f"Every kind wanted was dropped {drops} times in a row.", router_input)
        gains: dict[Kind, float] = {kind: needs[kind] * costs[kind] for kind in KINDS}
        kind = best_of(wanted, gains, router_input, self.settings.tie_share)
        return _go(kind, f"By the classifier alone: {need_words(kind, router_input)}", router_input, gains)

    def done(self, kind: Kind, history: Sequence[Update]) -> bool:
        """Whether the last few updates of this kind were all dropped."""
        last = [update.kept for update in history if update.kind == kind][-self.settings.drops_without_signal :]
        return len(last) == self.settings.drops_without_signal and not any(last)


@dataclass(frozen=True)
class UserChoice(_Chosen):
    """A user's own function of a RouterInput; it returns a RouterDecision or the name of an action."""

    name: str
    function: Callable[[RouterInput], object]

    def _choose(self, router_input: RouterInput) -> RouterDecision:
        try:
            answer = self.function(router_input)
        except NsloraError:
            raise
        except Exception as error:
            message = f"Strategy {self.name} raised {type(error).__name__} in round {router_input.round}: {error}."
            raise SettingsError(message) from error
        if isinstance(answer, RouterDecision) and answer.action in (*KINDS, "finish"):
            strange = [value for value in answer.evidence.values() if not isinstance(value, str | int | float)]
            if strange:
                raise SettingsError(
                    f"Strategy {self.name} returned evidence that is no number or text "
                    f"({type(strange[0]).__name__}), which no checkpoint takes: leave it out."
                )
            return answer
        if answer == "finish":
            return _finish(f"Strategy {self.name} ended the run.", router_input)
        for kind in KINDS:
            if answer == kind:
                return _go(kind, f"Chosen by {self.name}", router_input)
        raise SettingsError(
            f"Strategy {self.name} returned {answer!r}; return 'lora', 'textgrad', 'finish' or a RouterDecision."
        )


def strategy_named(
    name: str, *, settings: StrategySettings = DEFAULTS, signal: SignalSettings | None = None
) -> Strategy:
    """The strategy of that name. Raises SettingsError, with the known names, if there is none."""
    wanted = name.strip()
    known: dict[str, Strategy] = {
        "neurosymbolic": Neurosymbolic(settings),
        "lora": SingleKind("lora", "lora"),
        "textgrad": SingleKind("textgrad", "textgrad"),
        "random": RandomChoice(),
        "neurosymbolic-without-classifier": WithoutClassifier(),
        "neurosymbolic-without-signal": WithoutSignal(settings),
    }
    if wanted in known:
        return known[wanted]
    if "->" in wanted:
        parts = [part.split() for part in wanted.split("->")]
        steps = tuple(kind for part in parts for kind in KINDS if part in ([kind], [kind, ONCE]))
        if len(steps) == len(parts):
            return FixedOrder(steps, tuple(len(part) > 1 for part in parts), signal or SIGNAL)
    elif ":" in wanted:
        return UserChoice(wanted, object_named("strategy", wanted))
    raise SettingsError(
        f"No strategy {name!r}; known are {', '.join(known)}, an order such as 'textgrad -> lora' or "
        "'textgrad once -> lora', or your own function as 'package.module:function'."
    )


def without_vain_tries(router_input: RouterInput, settings: StrategySettings) -> RouterInput:
    """The input with weights closed if training jobs were dropped from the start, and nothing has been kept since.

    Another job would learn the same rows from the same start: only its draws and, after a dropped edit, remade rows
    would differ. A job that failed was not measured, and does not count.
    """
    history, most = router_input.history, settings.tries_from_start
    vain = sum(update.kind == "lora" and not update.failed for update in history)
    if most is None or vain < most or any(update.kept for update in history):
        return router_input
    progress = {**router_input.progress, "lora": closed(router_input.progress["lora"], "in_vain")}
    return replace(router_input, progress=progress)


def must_finish(router_input: RouterInput) -> RouterDecision | None:
    """The end that holds under every strategy, if there is one; `why_stop` has the rules."""
    reason = why_stop(
        reward=router_input.validation_reward,
        target=router_input.target,
        failures=router_input.failures if router_input.need else 0,
        rounds_done=router_input.round,
        max_rounds=router_input.round + router_input.rounds_left,
    )
    return _finish(f"{reason[0].upper()}{reason[1:]}.", router_input) if reason else None


def _go(kind: Kind, reason: str, router_input: RouterInput, gains: Mapping[Kind, float] = NO_GAINS) -> RouterDecision:
    expected = {f"{each}_expected": value for each, value in gains.items()}
    return RouterDecision(kind, f"{reason}; {WORDS[kind]}.", {**evidence(router_input), **expected})


def _finish(reason: str, router_input: RouterInput) -> RouterDecision:
    return RouterDecision("finish", reason, evidence(router_input))
