"""The choice of the next update: train weights, edit the prompt, or finish. Pure functions of a RouterInput.

The default, `neurosymbolic`, weighs what the failures need (classifier) against what each kind of update costs, and
with `routing.use_signal` against the progress that it still makes (monitoring signal): `tools/router/expected_gain.py`.
The others are baselines and ablations, which go by the signal. All share the stop rules of `tools/router/reasons.py`.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from nslora.tools.errors import NsloraError, SettingsError
from nslora.tools.named import object_named
from nslora.tools.router.expected_gain import (
    DEFAULTS,
    StrategySettings,
    best_of,
    expected_gains,
    needs_of,
)
from nslora.tools.router.inputs import RouterDecision, RouterInput, evidence, open_kinds
from nslora.tools.router.monitoring_signal import DEFAULTS as SIGNAL
from nslora.tools.router.monitoring_signal import Progress, SignalSettings, Update, closed, progress_of
from nslora.tools.router.reasons import WORDS, signal_words, why_nothing_goes, why_stop, why_this_kind
from nslora.tools.schema import KINDS, Kind

NO_GAINS: Mapping[Kind, float] = {}
WITH_SIGNAL, WITHOUT_SIGNAL = "neurosymbolic-with-signal", "neurosymbolic-without-signal"
ONCE = "once"  # behind a step of an order: one update instead of as many as go


class Chosen:
    """A choice below the stop rules that all strategies share."""

    def choose(self, router_input: RouterInput) -> RouterDecision:
        return must_finish(router_input) or self._choose(router_input)

    def seen(self, router_input: RouterInput) -> RouterInput:
        """The input with the kinds closed that this strategy's own rules close."""
        return router_input

    def _choose(self, router_input: RouterInput) -> RouterDecision:
        raise NotImplementedError


@dataclass(frozen=True)
class Neurosymbolic(Chosen):
    """What the failures need against what an update costs, with `use_signal` weighed by the signal: the default."""

    settings: StrategySettings = DEFAULTS
    name: str = "neurosymbolic"

    def _choose(self, router_input: RouterInput) -> RouterDecision:
        router_input = without_vain_tries(router_input, self.settings)
        seen = self.seen(router_input)
        needs = needs_of(seen, self.settings)
        wanted = [kind for kind in open_kinds(seen) if needs[kind] > 0]
        if not wanted:
            return _finish(why_nothing_goes(seen), router_input)
        gains = expected_gains(seen, self.settings)
        kind = best_of(wanted, gains, seen, self.settings.tie_share)
        # The decision records the signal as it is, used or not.
        return _go(kind, why_this_kind(kind, wanted, gains, seen, self.settings), router_input, gains)

    def seen(self, router_input: RouterInput) -> RouterInput:
        router_input = without_vain_tries(router_input, self.settings)
        return router_input if self.settings.use_signal else without_signal(router_input, self.settings)


@dataclass(frozen=True)
class SingleKind(Chosen):
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
class RandomChoice(Chosen):
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
class FixedOrder(Chosen):
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
class WithoutClassifier(Chosen):
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
class UserChoice(Chosen):
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


def strategy_named(name: str, *, settings: StrategySettings = DEFAULTS, signal: SignalSettings | None = None) -> Chosen:
    """The strategy of that name. Raises SettingsError, with the known names, if there is none."""
    wanted = name.strip()
    known: dict[str, Chosen] = {
        "neurosymbolic": Neurosymbolic(settings),
        "lora": SingleKind("lora", "lora"),
        "textgrad": SingleKind("textgrad", "textgrad"),
        "random": RandomChoice(),
        "neurosymbolic-without-classifier": WithoutClassifier(),
        **{
            name: Neurosymbolic(settings.model_copy(update={"use_signal": name == WITH_SIGNAL}), name)
            for name in (WITH_SIGNAL, WITHOUT_SIGNAL)
        },
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


def without_signal(router_input: RouterInput, settings: StrategySettings) -> RouterInput:
    """The input with every kind at full headroom, and closed once it was dropped too often since an update was kept."""
    progress = dict(router_input.progress)
    since = list(takewhile(lambda update: not update.kept, reversed(router_input.history)))
    for kind, found in router_input.progress.items():
        if any(found.evidence.get(why) for why in ("given_up", "no_material", "in_vain")):
            continue  # closed, whatever the signal says
        drops = sum(update.kind == kind for update in since)
        tries = sum(update.kind == kind for update in router_input.history)
        plain = Progress(kind, 1.0, False, {"tries": float(tries), "drops": float(drops)})
        progress[kind] = closed(plain, "dropped") if drops >= settings.drops_without_signal else plain
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
