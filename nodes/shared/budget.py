"""The budget inside the graph: which updates it still allows, and how long and how much one may take."""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from nslora.graph.state import AdaptationState
from nslora.tools.dataset.remade import hinted, with_hint
from nslora.tools.editor.calls import Usage
from nslora.tools.errors import BudgetError, SettingsError
from nslora.tools.inference.flops import TERA, FlopRates, answered
from nslora.tools.policy import Advance, Burst
from nslora.tools.prompt import Prompt, normalise
from nslora.tools.router.inputs import Decision, Situation
from nslora.tools.schema import KINDS, Dialogue, Example, Kind
from nslora.tools.workspace.budget import Expected, Spent, affordable_epochs, blocked, expected_seconds, spent_of
from nslora.tools.workspace.workspace import Lab

DECIDES = ("neurosymbolic", "random")       # strategies, by the beginning of their names, that ask for no fixed kind
APPROVAL_ROWS = 8
END_TOKENS = 8          # that a chat template writes around a reply, in counts that must be upper bounds


def within_budget(choice: Decision, situation: Situation, state: AdaptationState, lab: Lab) -> Decision:
    """The choice where the budget allows it; else the other kind, if it is open and allowed; else the end.

    Only strategies that decide by themselves give way to the other kind: whoever asked for one kind gets no other.
    """
    if choice.action == "finish" or not has_budget(lab):
        return choice
    closed = blocked(lab.settings, spent(state), expected(state, lab), tokens_per_epoch(lab, state))
    if choice.action not in closed:
        return choice
    other: Kind = next(kind for kind in KINDS if kind != choice.action)
    reason = f"Budget: {closed[choice.action]}"
    if not decides(lab.settings.strategy) or other in closed or situation.progress[other].saturated:
        return replace(choice, action="finish", reason=f"{reason}.")
    return replace(choice, action=other, reason=f"{reason}; {other} is within it.")


def decides(strategy: str) -> bool:
    """Whether a built-in strategy chooses between the kinds by itself; a user's own (`module:function`) says what it
    wants."""
    return strategy.startswith(DECIDES) and ":" not in strategy


def has_budget(lab: Lab) -> bool:
    settings = lab.settings
    return any(cap is not None for cap in (settings.max_seconds, settings.max_train_tokens, settings.max_tflop,
                                           settings.editing.max_calls, settings.editing.max_tokens,
                                           settings.editing.max_cost))


def spent(state: AdaptationState) -> Spent:
    start = state["start_measured"]
    return spent_of(state["rounds"], state["wall_s"], start["flop"] if start else 0.0)


def expected(state: AdaptationState, lab: Lab) -> Expected:
    """Expected seconds per step, from this run's own measurements; compute by formula."""
    settings, task = lab.settings, lab.task
    measured = [each for each in (state["start_measured"], state["kept_measured"], state["measured"]) if each]
    rows = len(task.validation) + min(settings.train_sample, len(task.train))
    seconds = expected_seconds(state["rounds"], max((each["wall_s"] for each in measured), default=0.0), rows,
                               len(task.train), len(task.test), settings.lora.epochs)
    if settings.max_tflop is None:
        return seconds
    rates, prompt = flop_rates(lab), next_prompt(state, lab)
    burst = rates.training * tokens_per_epoch(lab, state) + evaluation_flop(prompt, state, lab)
    # The edited prompt is not known yet; what it is too long for is left out afterwards, by `affordable_remakes`.
    edit = evaluation_flop(lab.prompts.get(state["kept"]["prompt"]), state, lab)
    return replace(seconds, update_tflop={"lora": burst / TERA, "textgrad": edit / TERA})


def flop_rates(lab: Lab) -> FlopRates:
    """Model FLOPs of a token. Raises SettingsError where the policy does not say, so that no cap could be kept."""
    if not lab.flop_rates.forward or not lab.flop_rates.training:
        raise SettingsError(f"max_tflop is set, but the policy {lab.policy.name} does not say what a token costs: its "
                            "describe() wants forward_flop_per_token and training_flop_per_token.")
    return lab.flop_rates


def next_prompt(state: AdaptationState, lab: Lab) -> Prompt:
    """The prompt that a burst would train under: of waiting remade data, else the kept one."""
    pool = state["remade"]
    return lab.prompts.get(pool["prompt"] if pool and pool["waiting"] else state["kept"]["prompt"])


def evaluation_flop(prompt: Prompt, state: AdaptationState, lab: Lab) -> float:
    """Most model FLOPs that a candidate with this prompt takes after its update: to be measured and, where a person is
    asked about updates, the screening that they are shown.
    """
    if state["approve"] == "nothing":
        return measuring_flop(prompt, state, lab)
    kept = lab.prompts.get(state["kept"]["prompt"])
    shown = [each.messages(row.question) for each in (kept, prompt) for row in approval_rows(state, lab)]
    return measuring_flop(prompt, state, lab) + replies_flop(shown, lab)


def measuring_flop(prompt: Prompt, state: AdaptationState, lab: Lab) -> float:
    """Most model FLOPs that the evaluation of a candidate with this prompt takes."""
    scored = lab.token_counts([answered(prompt.messages(row.question), row.reference)
                               for row in lab.task.validation if row.reference])
    asked = [prompt.messages(row.question) for row in lab.measured_rows(state["round"])]
    return replies_flop(asked, lab) + lab.flop_rates.forward * sum(scored)


def replies_flop(dialogues: Sequence[Dialogue], lab: Lab) -> float:
    """Most model FLOPs that replies to these dialogues take."""
    longest = lab.task.max_new_tokens + END_TOKENS
    return lab.flop_rates.forward * sum(count + longest for count in lab.token_counts(dialogues))


def approval_rows(state: AdaptationState, lab: Lab) -> tuple[Example, ...]:
    """The train rows on which a person is shown what a proposal brings."""
    return lab.train_sample(state["round"])[:APPROVAL_ROWS]


def screening_fits(prompts: Sequence[Prompt], rows: Sequence[Example], state: AdaptationState, lab: Lab,
                   spent_flop: float) -> bool:
    """Whether the budget holds an answer to each of these train rows under each prompt, the dearest one's evaluation
    reserved. spent_flop: by this update so far."""
    if lab.settings.max_tflop is None:
        return True
    needed = replies_flop([prompt.messages(row.question) for prompt in prompts for row in rows], lab)
    needed += spent_flop + max(evaluation_flop(prompt, state, lab) for prompt in prompts)
    return needed <= (lab.settings.max_tflop - spent(state).tflop) * TERA


def editing_flop(usage: Usage, lab: Lab) -> float:
    """Model FLOPs of an edit's calls where the policy is its own editor."""
    return lab.flop_rates.forward * usage.tokens if lab.settings.editor == "policy" else 0.0


def editing_tokens(state: AdaptationState, lab: Lab) -> float | None:
    """Most tokens that an edit's own calls may take, its evaluation reserved; None where they are no model compute of
    this run, or where nothing caps that."""
    if lab.settings.editor != "policy" or lab.settings.max_tflop is None:
        return None
    left = (lab.settings.max_tflop - spent(state).tflop) * TERA
    return (left - evaluation_flop(lab.prompts.get(state["kept"]["prompt"]), state, lab)) / flop_rates(lab).forward


def affordable_remakes(prompt: Prompt, state: AdaptationState, lab: Lab, spent_flop: float) -> tuple[Example, ...]:
    """The train rows that can be answered anew under a proposed prompt, its evaluation reserved.

    Where that is not all of them they are drawn: the first of a file that is sorted would be of one class. spent_flop:
    by this update so far. Raises BudgetError where not even the evaluation fits.
    """
    rows = lab.task.train if lab.settings.remade_per_row else ()
    if lab.settings.max_tflop is None:
        return rows
    left = (lab.settings.max_tflop - spent(state).tflop) * TERA - spent_flop - evaluation_flop(prompt, state, lab)
    if left < 0:
        raise BudgetError(f"the edited prompt is too long for what is left of max_tflop: its evaluation takes "
                          f"{-left / TERA:.1f} TFLOP more.")
    hints = hinted(prompt, {normalise(row.question): row.reference or "" for row in rows})
    counts = lab.token_counts([hints.messages(with_hint(row.question, row.reference or "")) for row in rows])
    askers = 2 if state["kept"]["adapter"] else 1       # the base, and the adapter in force
    needs = [askers * lab.flop_rates.forward * (count + lab.task.max_new_tokens + END_TOKENS) for count in counts]
    drawn = list(range(len(rows)))
    random.Random(f"{lab.settings.seed}/{state['round']}/remade").shuffle(drawn)
    sums = accumulate(needs[i] for i in drawn)
    affordable = {i for i, need in zip(drawn, sums, strict=True) if need <= left}
    return tuple(row for i, row in enumerate(rows) if i in affordable)


def tokens_per_epoch(lab: Lab, state: AdaptationState) -> int:
    """Most tokens that one epoch over all train rows takes, under the kept prompt or that of waiting remade data."""
    if lab.settings.max_train_tokens is None and lab.settings.max_tflop is None:
        return 0
    prompt = next_prompt(state, lab)
    return sum(lab.token_counts([answered(prompt.messages(row.question), row.reference or "")
                                 for row in lab.task.train]))


def fitted(burst: Burst, state: AdaptationState, lab: Lab) -> Burst:
    """The burst with as many epochs as the train tokens and the compute that are left allow; 0 where not one fits.

    The count is an upper bound, since the template's opening of a next turn is in it.
    """
    settings = lab.settings
    if settings.max_train_tokens is None and settings.max_tflop is None:
        return burst
    per_epoch = most_tokens(burst, lab) // burst.epochs
    if settings.max_tflop is None:
        return replace(burst, epochs=affordable_epochs(settings, spent(state), per_epoch))
    evaluation = evaluation_flop(next_prompt(state, lab), state, lab)
    return replace(burst, epochs=affordable_epochs(
        settings, spent(state), per_epoch, flop_rates(lab).training * per_epoch / TERA, evaluation / TERA))


def most_tokens(burst: Burst, lab: Lab) -> int:
    """Tokens of all epochs of a burst, an upper bound."""
    return burst.epochs * sum(lab.token_counts([answered(row.dialogue, row.completion) for row in burst.rows]))


def planned_tokens(burst: Burst, lab: Lab) -> int:
    """Tokens of the steps that a burst is planned with, which `max_steps` may end before its epochs, an upper bound."""
    lora = lab.settings.lora
    steps = math.ceil(burst.epochs * len(burst.rows) / lora.batch_size)
    share = min(1.0, lora.max_steps / steps) if lora.max_steps is not None else 1.0
    return math.ceil(share * most_tokens(burst, lab))


class Steps:
    """Passes progress on, and remembers how far a burst or an evaluation came that ended before its end."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.done, self.total = advance, 0, 0

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self.advance(done, total)

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 0.0


def deadline(state: AdaptationState, lab: Lab, *, to_be_evaluated: bool = True) -> float | None:
    """Until when (time.monotonic) a step may work, so that what must follow still fits; None: no limit.

    That is the test and, where what the step proposes is still `to_be_evaluated`, its evaluation.
    """
    if lab.settings.max_seconds is None:
        return None
    needed = expected(state, lab)
    left = lab.settings.max_seconds - state["wall_s"] - lab.clock.seconds - needed.finish_s
    left -= needed.evaluate_s if to_be_evaluated else 0.0
    return time.monotonic() + left
