"""The budget inside the graph: which updates it still allows, and how long and how much one may take."""

import math
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from nslora.graph.state import AdaptationState
from nslora.nodes.shared.rounds import training_prompt
from nslora.tools.errors import BudgetError, SettingsError
from nslora.tools.inference.flops import TERA, FlopRates
from nslora.tools.policy import TrainingJob
from nslora.tools.prompt import Prompt
from nslora.tools.router.inputs import RouterDecision, RouterInput
from nslora.tools.schema import KINDS, Example, Kind
from nslora.tools.workspace.budget import Expected, Spent, affordable_epochs, blocked, expected_seconds, spent_of
from nslora.tools.workspace.judges import why_unaffordable
from nslora.tools.workspace.upper_bounds import evaluation_flop, most_tokens, remakes_flop, replies_flop, row_tokens
from nslora.tools.workspace.workspace import Workspace

DECIDES = ("neurosymbolic", "random")  # beginnings of the names of strategies that ask for no fixed kind
APPROVAL_ROWS = 8


def in_order(rows: Iterable[Example], train: Sequence[Example]) -> tuple[Example, ...]:
    """Rows of train in the order of its file."""
    wanted = {row.id for row in rows}
    return tuple(row for row in train if row.id in wanted)


@dataclass(frozen=True)
class Budget:
    """What a run may still spend, and the most that its next step can take."""

    state: AdaptationState
    workspace: Workspace

    @property
    def spent(self) -> Spent:
        """What the run has used up, over all its processes."""
        start = self.state["start_measured"]
        return spent_of(self.state["rounds"], self.state["wall_s"], start["flop"] if start else 0.0)

    @property
    def left_flop(self) -> float:
        """Model FLOPs that max_tflop leaves; infinity if nothing caps them."""
        cap = self.workspace.settings.max_tflop
        return math.inf if cap is None else (cap - self.spent.tflop) * TERA

    @property
    def rates(self) -> FlopRates:
        """Model FLOPs of a token. Raises SettingsError if the policy does not say, so that no cap could be kept."""
        rates = self.workspace.flop_rates
        if not rates.forward or not rates.training:
            raise SettingsError(
                f"max_tflop is set, but the policy {self.workspace.policy.name} does not say what a token costs: its "
                "describe() wants forward_flop_per_token and training_flop_per_token."
            )
        return rates

    @property
    def kept_prompt(self) -> Prompt:
        """The prompt in force."""
        return self.workspace.prompts.get(self.state["kept"]["prompt"])

    @property
    def next_prompt(self) -> Prompt:
        """The prompt of the next training job."""
        return self.workspace.prompts.get(training_prompt(self.state))

    def allow(self, choice: RouterDecision, router_input: RouterInput) -> RouterDecision:
        """The choice if the budget allows it; else the other kind, if it is open and allowed; else the end.

        A strategy that asks for one kind, or a user's own (`module:function`), never gets the other kind.
        """
        if choice.action == "finish":
            return choice
        strategy = self.workspace.settings.strategy
        closed = blocked(self.workspace.settings, self.spent, self.expected(), self.tokens_per_epoch())
        if unjudged := self.unjudged():
            closed |= dict.fromkeys(KINDS, unjudged)
        if choice.action not in closed:
            return choice
        other: Kind = next(kind for kind in KINDS if kind != choice.action)
        reason = f"Budget: {closed[choice.action]}"
        decides = strategy.startswith(DECIDES) and ":" not in strategy
        if not decides or other in closed or router_input.progress[other].saturated:
            return replace(choice, action="finish", reason=f"{reason}.")
        return replace(choice, action=other, reason=f"{reason}; {other} is within it.")

    def unjudged(self) -> str:
        """Why a judge may not be able to score another candidate and the test within its caps; "" if it is."""
        workspace, judges = self.workspace, self.workspace.task.reward.judges
        if not judges:
            return ""
        # Beside the replies of base and result to the test split, the references that a failing reply is measured by.
        replies = len(workspace.measured_rows(self.state["round"])) + 3 * len(workspace.task.test)
        reasons = [
            why_unaffordable(workspace.settings.judging, check.spent, replies * check.most_calls) for check in judges
        ]
        return next(filter(None, reasons), "")

    def expected(self) -> Expected:
        """Expected seconds per step, from this run's own measurements; compute by formula."""
        settings, task, state = self.workspace.settings, self.workspace.task, self.state
        measured = (state["start_measured"], state["kept_measured"], state["measured"])
        seconds = expected_seconds(
            state["rounds"],
            max((each["wall_s"] for each in measured if each), default=0.0),
            task,
            settings,
        )
        if settings.max_tflop is None:
            return seconds
        job = self.rates.training * self.tokens_per_epoch() + self.evaluation_flop(self.next_prompt)
        # Nobody knows the edited prompt yet; `affordable_remakes` later leaves out what it is too long for.
        edit = self.evaluation_flop(self.kept_prompt)
        return replace(seconds, update_tflop={"lora": job / TERA, "textgrad": edit / TERA})

    def evaluation_flop(self, prompt: Prompt) -> float:
        """Most model FLOPs that a candidate with this prompt takes after its update: the evaluation and, if a person
        is asked about updates, the screening that the person is shown.
        """
        if self.state["approve"] == "nothing":
            return self.measuring_flop(prompt)
        prompts = (self.kept_prompt, prompt)
        shown = [each.dialogue(row) for each in prompts for row in self.approval_rows()]
        return self.measuring_flop(prompt) + replies_flop(self.workspace, shown)

    def measuring_flop(self, prompt: Prompt) -> float:
        """The same of the evaluation alone."""
        return evaluation_flop(self.workspace, prompt, self.state["round"])

    def approval_rows(self) -> tuple[Example, ...]:
        """The train rows on which a person is shown what a proposal brings."""
        return self.workspace.train_sample(self.state["round"])[:APPROVAL_ROWS]

    def holds_screening(self, prompts: Sequence[Prompt], rows: Sequence[Example], spent_flop: float) -> bool:
        """Whether a reply to each of these rows under each prompt fits, with the evaluation of the dearest prompt.

        spent_flop: by this update so far.
        """
        if self.workspace.settings.max_tflop is None:
            return True
        needed = replies_flop(self.workspace, [prompt.dialogue(row) for prompt in prompts for row in rows])
        return needed + (spent_flop + max(map(self.evaluation_flop, prompts))) <= self.left_flop

    def editing_tokens(self) -> float | None:
        """Most tokens of an edit's own calls, its evaluation reserved; None if nothing caps their compute."""
        if self.workspace.settings.editor != "policy" or self.workspace.settings.max_tflop is None:
            return None
        return (self.left_flop - self.evaluation_flop(self.kept_prompt)) / self.rates.forward

    def remade_sample(self) -> list[Example]:
        """The train rows that remade data is made of, drawn if there are more than `remade_rows`."""
        workspace = self.workspace
        rows, most = workspace.task.train, workspace.settings.remade_rows
        if not workspace.settings.remade_per_row:
            return []
        drawn = list(range(len(rows)))
        random.Random(f"{workspace.settings.seed}/{self.state['round']}/remade").shuffle(drawn)
        return [rows[i] for i in drawn[:most]]

    def affordable_remakes(self, prompt: Prompt, spent_flop: float) -> tuple[Example, ...]:
        """The rows of the sample that can be answered anew under a proposed prompt, its evaluation reserved.

        If not all of them fit, the first that were drawn are: the first rows of a sorted file would be of one class.

        Args:
            prompt: The proposed one.
            spent_flop: Model FLOPs of this update so far.

        Raises:
            BudgetError: If not even the evaluation fits.
        """
        workspace, rows = self.workspace, self.remade_sample()
        if workspace.settings.max_tflop is None:
            return in_order(rows, workspace.task.train)
        left = self.left_flop - spent_flop - self.evaluation_flop(prompt)
        if left < 0:
            raise BudgetError(
                f"the edited prompt is too long for what is left of max_tflop: its evaluation takes "
                f"{-left / TERA:.1f} TFLOP more."
            )
        askers = 2 if self.state["kept"]["adapter"] else 1  # the base, and the adapter in force
        needs = remakes_flop(workspace, prompt, rows, askers)
        affordable = [row for row, need in zip(rows, accumulate(needs), strict=True) if need <= left]
        return in_order(affordable, workspace.task.train)

    def affordable_trajectories(self, rows: Sequence[Example]) -> Sequence[Example]:
        """The first of these rows whose trajectories, with all samples, fit into half of what the evaluation leaves.

        The other half is for the training job that learns from them.
        """
        if self.workspace.settings.max_tflop is None:
            return rows
        left = self.left_flop - self.evaluation_flop(self.next_prompt)
        needs = accumulate(remakes_flop(self.workspace, self.next_prompt, rows, 1))
        return [row for row, need in zip(rows, needs, strict=True) if need <= left / 2]

    def tokens_per_epoch(self) -> int:
        """Most tokens of one epoch over all train rows; 0 if nothing caps them."""
        settings = self.workspace.settings
        if settings.max_train_tokens is None and settings.max_tflop is None:
            return 0
        return row_tokens(self.workspace, self.next_prompt, self.workspace.task.train)

    def fit(self, job: TrainingJob) -> TrainingJob:
        """The training job with as many epochs as the budget allows; 0 if not one fits.

        The count of tokens is an upper bound, since the template's opening of a next turn is in it.
        """
        settings = self.workspace.settings
        if settings.max_train_tokens is None and settings.max_tflop is None:
            return job
        per_epoch = most_tokens(job, self.workspace) // job.epochs
        epoch_flop = evaluation_flop = 0.0
        if settings.max_tflop is not None:
            epoch_flop = self.rates.training * per_epoch
            evaluation_flop = self.evaluation_flop(self.next_prompt)
        epochs = affordable_epochs(settings, self.spent, per_epoch, epoch_flop / TERA, evaluation_flop / TERA)
        return replace(job, epochs=epochs)

    def deadline(self, *, to_be_evaluated: bool = True) -> float | None:
        """Until when (time.monotonic) a step may work, so that what must follow still fits; None: no limit.

        What must follow is the test and, if what the step proposes is still `to_be_evaluated`, its evaluation.
        """
        limit_s = self.workspace.settings.max_seconds
        if limit_s is None:
            return None
        needed = self.expected()
        left = limit_s - self.state["wall_s"] - self.workspace.clock.seconds - needed.finish_s
        return time.monotonic() + left - (needed.evaluate_s if to_be_evaluated else 0.0)
