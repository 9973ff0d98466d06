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
from nslora.tools.policy import OnProgress, TrainingJob
from nslora.tools.prompt import Prompt
from nslora.tools.router.inputs import RouterDecision, RouterInput
from nslora.tools.schema import KINDS, Dialogue, Example, Kind
from nslora.tools.workspace.budget import Expected, Spent, affordable_epochs, blocked, expected_seconds, spent_of
from nslora.tools.workspace.workspace import Workspace

DECIDES = ("neurosymbolic", "random")  # strategies, by the beginning of their names, that ask for no fixed kind
APPROVAL_ROWS = 8
END_TOKENS = 8  # that a chat template writes around a reply, in counts that must be upper bounds


def within_budget(
    choice: RouterDecision, router_input: RouterInput, state: AdaptationState, workspace: Workspace
) -> RouterDecision:
    """The choice where the budget allows it; else the other kind, if it is open and allowed; else the end.

    Only strategies that decide by themselves give way to the other kind: whoever asked for one kind gets no other.
    """
    if choice.action == "finish" or not has_budget(workspace):
        return choice
    closed = blocked(workspace.settings, spent(state), expected(state, workspace), tokens_per_epoch(workspace, state))
    if choice.action not in closed:
        return choice
    other: Kind = next(kind for kind in KINDS if kind != choice.action)
    reason = f"Budget: {closed[choice.action]}"
    if not decides(workspace.settings.strategy) or other in closed or router_input.progress[other].saturated:
        return replace(choice, action="finish", reason=f"{reason}.")
    return replace(choice, action=other, reason=f"{reason}; {other} is within it.")


def decides(strategy: str) -> bool:
    """Whether a built-in strategy chooses between the kinds by itself; a user's own (`module:function`) says what it
    wants."""
    return strategy.startswith(DECIDES) and ":" not in strategy


def has_budget(workspace: Workspace) -> bool:
    settings = workspace.settings
    return any(
        cap is not None
        for cap in (
            settings.max_seconds,
            settings.max_train_tokens,
            settings.max_tflop,
            settings.editing.max_calls,
            settings.editing.max_tokens,
            settings.editing.max_cost,
        )
    )


def spent(state: AdaptationState) -> Spent:
    start = state["start_measured"]
    return spent_of(state["rounds"], state["wall_s"], start["flop"] if start else 0.0)


def expected(state: AdaptationState, workspace: Workspace) -> Expected:
    """Expected seconds per step, from this run's own measurements; compute by formula."""
    settings, task = workspace.settings, workspace.task
    measured = [each for each in (state["start_measured"], state["kept_measured"], state["measured"]) if each]
    longest_s = max((each["wall_s"] for each in measured), default=0.0)
    seconds = expected_seconds(state["rounds"], longest_s, task, settings)
    if settings.max_tflop is None:
        return seconds
    rates, prompt = flop_rates(workspace), next_prompt(state, workspace)
    job = rates.training * tokens_per_epoch(workspace, state) + evaluation_flop(prompt, state, workspace)
    # The edited prompt is not known yet; what it is too long for is left out afterwards, by `affordable_remakes`.
    edit = evaluation_flop(workspace.prompts.get(state["kept"]["prompt"]), state, workspace)
    return replace(seconds, update_tflop={"lora": job / TERA, "textgrad": edit / TERA})


def flop_rates(workspace: Workspace) -> FlopRates:
    """Model FLOPs of a token. Raises SettingsError where the policy does not say, so that no cap could be kept."""
    if not workspace.flop_rates.forward or not workspace.flop_rates.training:
        raise SettingsError(
            f"max_tflop is set, but the policy {workspace.policy.name} does not say what a token costs: its "
            "describe() wants forward_flop_per_token and training_flop_per_token."
        )
    return workspace.flop_rates


def next_prompt(state: AdaptationState, workspace: Workspace) -> Prompt:
    """The prompt that a training job would train under: of waiting remade data, else the kept one."""
    pool = state["remade"]
    return workspace.prompts.get(pool["prompt"] if pool and pool["waiting"] else state["kept"]["prompt"])


def evaluation_flop(prompt: Prompt, state: AdaptationState, workspace: Workspace) -> float:
    """Most model FLOPs that a candidate with this prompt takes after its update: to be measured and, where a person is
    asked about updates, the screening that they are shown.
    """
    if state["approve"] == "nothing":
        return measuring_flop(prompt, state, workspace)
    kept = workspace.prompts.get(state["kept"]["prompt"])
    shown = [each.messages(row.question) for each in (kept, prompt) for row in approval_rows(state, workspace)]
    return measuring_flop(prompt, state, workspace) + replies_flop(shown, workspace)


def measuring_flop(prompt: Prompt, state: AdaptationState, workspace: Workspace) -> float:
    """Most model FLOPs that the evaluation of a candidate with this prompt takes."""
    scored = workspace.token_counts(
        [answered(prompt.messages(row.question), row.reference) for row in workspace.task.validation if row.reference]
    )
    asked = [prompt.messages(row.question) for row in workspace.measured_rows(state["round"])]
    return replies_flop(asked, workspace) + workspace.flop_rates.forward * sum(scored)


def replies_flop(dialogues: Sequence[Dialogue], workspace: Workspace) -> float:
    """Most model FLOPs that replies to these dialogues take."""
    longest = workspace.task.max_new_tokens + END_TOKENS
    return workspace.flop_rates.forward * sum(count + longest for count in workspace.token_counts(dialogues))


def approval_rows(state: AdaptationState, workspace: Workspace) -> tuple[Example, ...]:
    """The train rows on which a person is shown what a proposal brings."""
    return workspace.train_sample(state["round"])[:APPROVAL_ROWS]


def screening_fits(
    prompts: Sequence[Prompt], rows: Sequence[Example], state: AdaptationState, workspace: Workspace, spent_flop: float
) -> bool:
    """Whether the budget holds an answer to each of these train rows under each prompt, the dearest one's evaluation
    reserved. spent_flop: by this update so far."""
    if workspace.settings.max_tflop is None:
        return True
    needed = replies_flop([prompt.messages(row.question) for prompt in prompts for row in rows], workspace)
    needed += spent_flop + max(evaluation_flop(prompt, state, workspace) for prompt in prompts)
    return needed <= (workspace.settings.max_tflop - spent(state).tflop) * TERA


def editing_flop(usage: Usage, workspace: Workspace) -> float:
    """Model FLOPs of an edit's calls where the policy is its own editor."""
    return workspace.flop_rates.forward * usage.tokens if workspace.settings.editor == "policy" else 0.0


def editing_tokens(state: AdaptationState, workspace: Workspace) -> float | None:
    """Most tokens that an edit's own calls may take, its evaluation reserved; None where they are no model compute of
    this run, or where nothing caps that."""
    if workspace.settings.editor != "policy" or workspace.settings.max_tflop is None:
        return None
    left = (workspace.settings.max_tflop - spent(state).tflop) * TERA
    return (left - evaluation_flop(workspace.prompts.get(state["kept"]["prompt"]), state, workspace)) / flop_rates(
        workspace
    ).forward


def affordable_remakes(
    prompt: Prompt, state: AdaptationState, workspace: Workspace, spent_flop: float
) -> tuple[Example, ...]:
    """The train rows that can be answered anew under a proposed prompt, its evaluation reserved.

    Where that is not all of them they are drawn: the first of a file that is sorted would be of one class. spent_flop:
    by this update so far. Raises BudgetError where not even the evaluation fits.
    """
    rows = workspace.task.train if workspace.settings.remade_per_row else ()
    if workspace.settings.max_tflop is None:
        return rows
    left = (
        (workspace.settings.max_tflop - spent(state).tflop) * TERA
        - spent_flop
        - evaluation_flop(prompt, state, workspace)
    )
    if left < 0:
        raise BudgetError(
            f"the edited prompt is too long for what is left of max_tflop: its evaluation takes "
            f"{-left / TERA:.1f} TFLOP more."
        )
    hints = hinted(prompt, rows)
    counts = workspace.token_counts([hints.messages(with_hint(row.question, row.reference)) for row in rows])
    askers = 2 if state["kept"]["adapter"] else 1  # the base, and the adapter in force
    needs = [
        askers * workspace.flop_rates.forward * (count + workspace.task.max_new_tokens + END_TOKENS) for count in counts
    ]
    drawn = list(range(len(rows)))
    random.Random(f"{workspace.settings.seed}/{state['round']}/remade").shuffle(drawn)
    sums = accumulate(needs[i] for i in drawn)
    affordable = {i for i, need in zip(drawn, sums, strict=True) if need <= left}
    return tuple(row for i, row in enumerate(rows) if i in affordable)


def tokens_per_epoch(workspace: Workspace, state: AdaptationState) -> int:
    """Most tokens that one epoch over all train rows takes, under the kept prompt or that of waiting remade data."""
    if workspace.settings.max_train_tokens is None and workspace.settings.max_tflop is None:
        return 0
    prompt = next_prompt(state, workspace)
    return sum(
        workspace.token_counts(
            [answered(prompt.messages(row.question), row.reference or "") for row in workspace.task.train]
        )
    )


def fitted(job: TrainingJob, state: AdaptationState, workspace: Workspace) -> TrainingJob:
    """The training job with as many epochs as the train tokens and the compute that are left allow; 0 where not one
    fits.

    The count is an upper bound, since the template's opening of a next turn is in it.
    """
    settings = workspace.settings
    if settings.max_train_tokens is None and settings.max_tflop is None:
        return job
    per_epoch = most_tokens(job, workspace) // job.epochs
    if settings.max_tflop is None:
        return replace(job, epochs=affordable_epochs(settings, spent(state), per_epoch))
    evaluation = evaluation_flop(next_prompt(state, workspace), state, workspace)
    return replace(
        job,
        epochs=affordable_epochs(
            settings, spent(state), per_epoch, flop_rates(workspace).training * per_epoch / TERA, evaluation / TERA
        ),
    )


def most_tokens(job: TrainingJob, workspace: Workspace) -> int:
    """Tokens of all epochs of a training job, an upper bound."""
    return job.epochs * sum(workspace.token_counts([answered(row.dialogue, row.completion) for row in job.rows]))


def planned_tokens(job: TrainingJob, workspace: Workspace) -> int:
    """Tokens of the steps that a training job is planned with, which `max_steps` may end before its epochs, an upper
    bound.
    """
    lora = workspace.settings.lora
    steps = math.ceil(job.epochs * len(job.rows) / lora.batch_size)
    share = min(1.0, lora.max_steps / steps) if lora.max_steps is not None else 1.0
    return math.ceil(share * most_tokens(job, workspace))


class Steps:
    """Passes progress on, and remembers how far a training job or an evaluation came that ended before its end."""

    def __init__(self, on_progress: OnProgress) -> None:
        self.on_progress, self.done, self.total = on_progress, 0, 0

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self.on_progress(done, total)

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 0.0


def deadline(state: AdaptationState, workspace: Workspace, *, to_be_evaluated: bool = True) -> float | None:
    """Until when (time.monotonic) a step may work, so that what must follow still fits; None: no limit.

    That is the test and, where what the step proposes is still `to_be_evaluated`, its evaluation.
    """
    if workspace.settings.max_seconds is None:
        return None
    needed = expected(state, workspace)
    left = workspace.settings.max_seconds - state["wall_s"] - workspace.clock.seconds - needed.finish_s
    left -= needed.evaluate_s if to_be_evaluated else 0.0
    return time.monotonic() + left
