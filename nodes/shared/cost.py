"""What one call of a node spends, counted in one place."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nslora.graph.state import Changes, Kind, Measured, Proposal, Work
from nslora.tools.editor.pricing import Usage
from nslora.tools.evaluation.paired_tests import mean
from nslora.tools.evaluation.rollouts import Replies
from nslora.tools.policy import OnProgress, OnStep
from nslora.tools.prompt import Prompt
from nslora.tools.schema import Example
from nslora.tools.workspace.workspace import Workspace


@dataclass
class CostLedger:
    """Seconds by the task's clock, tokens, model FLOPs by formula (tools/inference/flops.py), and editor calls.

    generated_tokens: of replies that came from no cache. flop: cached or not.
    """

    workspace: Workspace
    trained_tokens: int = 0
    generated_tokens: int = 0
    flop: float = 0.0
    editor: dict[str, float | bool] = field(default_factory=dict)

    @property
    def wall_s(self) -> float:
        """Seconds at work on this task so far, in all processes."""
        return self.workspace.clock.seconds

    def generate(self, tokens: int, forward_tokens: int) -> None:
        """Add generated tokens, and the prompts and replies that went through the model."""
        self.generated_tokens += tokens
        self.flop += self.workspace.flop_rates.forward * forward_tokens

    def mean_reward(
        self, prompt: Prompt, adapter: str | None, rows: Sequence[Example], on_progress: OnProgress
    ) -> tuple[float, Replies]:
        """The mean reward of a candidate's replies to these rows, charged here, and the replies."""
        graded, replies = self.workspace.graded_replies(prompt, adapter, rows, on_progress)
        self.generate(replies.tokens, replies.forward_tokens)
        return mean([each.score.value for each in graded]), replies

    def train(self, tokens: int) -> None:
        """Add the tokens of a training job."""
        self.trained_tokens += tokens
        self.flop += self.workspace.flop_rates.training * tokens

    def edit(self, usage: Usage) -> None:
        """Add the editor's calls. They are model compute of this run only if the policy is its own editor."""
        self.editor = asdict(usage)
        if self.workspace.settings.editor == "policy":
            self.flop += self.workspace.flop_rates.forward * usage.tokens

    def propose(self, kind: Kind, **found: Any) -> Changes:
        """What an update returns: its proposal with what it cost.

        Args:
            kind: Of the update.
            **found: Fields of the Proposal that differ from nothing. An update that failed has `error` in place of
                `candidate`.
        """
        wall_s = self.wall_s
        proposal: dict[str, Any] = {
            "kind": kind,
            "candidate": None,
            "error": None,
            "wall_s": wall_s,
            "trained_tokens": self.trained_tokens,
            "generated_tokens": self.generated_tokens,
            "flop": self.flop,
            "editor": self.editor,
            "epoch_losses_nats": [],
            "grad_norms": [],
            "new_rows": 0,
            "note": "",
        }
        return {"proposal": proposal | found, "wall_s": wall_s}

    def add_to(self, proposal: Proposal) -> Changes:
        """The proposal of another node with the cost of this one added."""
        wall_s = self.wall_s
        costs = {
            "wall_s": proposal["wall_s"] + wall_s,
            "generated_tokens": proposal["generated_tokens"] + self.generated_tokens,
            "flop": proposal["flop"] + self.flop,
        }
        return {"proposal": {**proposal, **costs}, "wall_s": wall_s}


def work_of_round(proposal: Proposal, measured: Measured | None) -> Work:
    """What an update and its evaluation did and cost together."""
    return Work(
        wall_s=proposal["wall_s"] + (measured["wall_s"] if measured else 0.0),
        trained_tokens=proposal["trained_tokens"],
        generated_tokens=proposal["generated_tokens"] + (measured["generated_tokens"] if measured else 0),
        flop=proposal["flop"] + (measured["flop"] if measured else 0.0),
        editor=proposal["editor"],
        epoch_losses_nats=proposal["epoch_losses_nats"],
        grad_norms=proposal["grad_norms"],
        new_rows=proposal["new_rows"],
        note=proposal["note"],
    )


class Steps:
    """Passes progress on, and remembers how far a training job or an evaluation came that ended before its end."""

    def __init__(self, on_progress: OnStep) -> None:
        self.on_progress, self.done, self.total = on_progress, 0, 0

    def __call__(self, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        self.done, self.total = done, total
        self.on_progress(done, total, values)

    @property
    def share(self) -> float:
        """Of the work, in [0, 1]."""
        return self.done / self.total if self.total else 0.0
