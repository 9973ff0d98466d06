"""The budget inside the graph: which updates it still allows, and how long and how much one may take."""

import time
from dataclasses import replace

from nslora.graph.state import AdaptationState
from nslora.tools.budget import Expected, Spent, affordable_epochs, blocked, expected_seconds, spent_of
from nslora.tools.lab import Lab
from nslora.tools.policy import Advance, Burst
from nslora.tools.prompt import Prompt
from nslora.tools.signal import KINDS, Kind
from nslora.tools.situation import Decision, Situation

DECIDES = "neurosymbolic"


def within_budget(choice: Decision, situation: Situation, state: AdaptationState, lab: Lab) -> Decision:
    """The choice where the budget allows it; else the other kind, if it is open and allowed; else the end.

    Only the strategy that decides by itself gives way to the other kind: whoever asked for one kind gets no other.
    """
    if choice.action == "finish" or not has_budget(lab):
        return choice
    closed = blocked(lab.settings, spent(state), expected(state, lab), tokens_per_epoch(lab, state))
    if choice.action not in closed:
        return choice
    other: Kind = next(kind for kind in KINDS if kind != choice.action)
    reason = f"Budget: {closed[choice.action]}"
    if lab.settings.strategy != DECIDES or other in closed or situation.progress[other].saturated:
        return replace(choice, action="finish", reason=f"{reason}.")
    return replace(choice, action=other, reason=f"{reason}; {other} is within it.")


def has_budget(lab: Lab) -> bool:
    settings = lab.settings
    return any(cap is not None for cap in (settings.max_seconds, settings.max_train_tokens, settings.editing.max_calls,
                                           settings.editing.max_tokens, settings.editing.max_cost))


def spent(state: AdaptationState) -> Spent:
    return spent_of(state["rounds"], state["wall_s"])


def expected(state: AdaptationState, lab: Lab) -> Expected:
    """Expected seconds per step, from this run's own measurements."""
    settings, task = lab.settings, lab.task
    measured = [each for each in (state["start_measured"], state["kept_measured"], state["measured"]) if each]
    rows = len(task.validation) + min(settings.train_sample, len(task.train))
    return expected_seconds(state["rounds"], max((each["wall_s"] for each in measured), default=0.0), rows,
                            len(task.train), len(task.test), settings.lora.epochs)


def tokens_per_epoch(lab: Lab, state: AdaptationState) -> int:
    """Most tokens that one epoch over all train rows takes, under the kept prompt or that of waiting remade data."""
    if lab.settings.max_train_tokens is None:
        return 0
    pool = state["remade"]
    prompt: Prompt = lab.prompts.get(pool["prompt"] if pool and pool["waiting"] else state["kept"]["prompt"])
    replies = {row.id: row.reference or "" for row in lab.task.train}
    return sum(lab.count_tokens([*prompt.messages(row.question),
                                        {"role": "assistant", "content": replies[row.id]}]) for row in lab.task.train)


def fitted(burst: Burst, state: AdaptationState, lab: Lab) -> Burst:
    """The burst with as many epochs as the train tokens that are left allow; 0 where not even one fits.

    The count is an upper bound, since the template's opening of a next turn is in it.
    """
    if lab.settings.max_train_tokens is None:
        return burst
    per_epoch = most_tokens(burst, lab) // burst.epochs
    return replace(burst, epochs=affordable_epochs(lab.settings, spent(state), per_epoch))


def most_tokens(burst: Burst, lab: Lab) -> int:
    """Tokens of all epochs of a burst, an upper bound."""
    return burst.epochs * sum(lab.count_tokens([*row.dialogue, {"role": "assistant", "content": row.completion}])
                              for row in burst.rows)


class Steps:
    """Passes progress on, and remembers how far a burst came that ended before its end."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.share = advance, 0.0

    def __call__(self, done: int, total: int) -> None:
        self.share = done / total
        self.advance(done, total)


def deadline(state: AdaptationState, lab: Lab) -> float | None:
    """Until when (time.monotonic) an update may work, so that its evaluation and the test still fit; None: no limit."""
    if lab.settings.max_seconds is None:
        return None
    needed = expected(state, lab)
    left = lab.settings.max_seconds - state["wall_s"] - lab.clock.seconds - needed.evaluate_s - needed.finish_s
    return time.monotonic() + left
