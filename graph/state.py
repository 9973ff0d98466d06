"""The state of a run: small, plain, and all that survives a checkpoint."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

from langgraph.channels.delta import DeltaChannel

# pydantic makes no JSON schema of typing.TypedDict before Python 3.12.
from typing_extensions import TypedDict

Kind = Literal["lora", "textgrad"]
Approve = Literal["nothing", "edits", "updates"]


class Candidate(TypedDict):
    """A pair of adapter and prompt, each named by content hash; adapter None is the untouched base."""

    adapter: str | None
    prompt: str


class Measured(TypedDict):
    """Summary of one evaluation; the rows and the failures stand in `evaluations/<key>.jsonl`.

    Shares and rewards are means over validation in [0, 1]; loss_nats is the references' mean loss per token.
    """

    key: str
    reward: float
    potential: float  # reward after the best single repair of each failure
    all_checks: float  # share of replies that pass every check
    checks: dict[str, float]
    loss_nats: float | None
    failures: int
    train_reward: float  # on the sample of train
    wall_s: float
    generated_tokens: int
    cached_replies: int
    flop: float  # model FLOPs by formula (tools/inference/flops.py), cached or not


class Decision(TypedDict):
    """What the router chose for this round, and why. A node of a user's own may leave out all but the action."""

    action: Literal["lora", "textgrad", "finish"]
    reason: NotRequired[str]
    evidence: NotRequired[dict[str, Any]]  # numbers and text, of whatever strategy decided
    demand: NotRequired[dict[str, float]]
    material: NotRequired[str]  # file with the train rows chosen for each kind of update


class Work(TypedDict):
    """What an update did, and what it cost: in a Proposal without its evaluation, in a RoundRecord with it."""

    wall_s: float
    trained_tokens: int
    generated_tokens: int
    flop: float
    editor: dict[str, float | bool]  # calls, tokens, cost of the symbolic editor
    epoch_losses_nats: list[float]
    grad_norms: list[float]
    new_rows: int  # verified remade rows that this edit, or a person's, brought
    note: str  # one line for people: what was done


class Proposal(Work):
    """What an update proposes. candidate None: the update failed, and error says how."""

    kind: Kind
    candidate: Candidate | None
    error: str | None
    person: NotRequired[dict[str, str]]  # what a person who was asked said: {"answer"}, and {"prompt"} of their own


class Verdict(TypedDict):
    """Keep or drop the proposal: what `evaluate` decided, and what `monitor` does.

    by_test: what the paired test said. Another `kept` beside it is a person's, written with `update_state`.
    """

    kept: bool
    reason: str
    numbers: dict[str, float]  # of the paired test
    by_test: bool


class RemadePool(TypedDict):
    """Remade data for the next training job: rows for one prompt, in `remade/<prompt>.jsonl`. waiting: not trained on
    yet.
    """

    prompt: str
    rows: int
    waiting: bool


class RoundRecord(Work):
    """One finished round, kept or not."""

    round: int
    action: Kind
    reason: str  # why this kind of update
    kept: bool
    verdict: str  # why it was kept or dropped
    error: str | None
    candidate: Candidate | None
    evaluation: str | None  # key of the evaluation
    reward_before: float
    reward_after: float | None
    potential_before: float
    potential_after: float | None
    numbers: dict[str, float]  # of the paired test
    demand: dict[str, float]
    signal: dict[str, dict[str, float]]
    person: NotRequired[dict[str, str]]  # as in Proposal
    overruled: NotRequired[bool]  # True if a person kept or dropped it against the test
    cached_replies: NotRequired[int]  # of its evaluation, if any: the cache had them, and they cost no tokens
    editor_lines: NotRequired[int]  # of the editor's record by the end of the round


def extended(rounds: list[RoundRecord], more: Sequence[list[RoundRecord]]) -> list[RoundRecord]:
    """The rounds so far and those that nodes wrote."""
    return [*rounds, *(record for each in more for record in each)]


# Stored by what each round added: written whole into every checkpoint, 500 rounds would take 697 MB. Whole every 20
# rounds, so that a state is read from few ancestors, and lost ones cost at most 20 rounds' records.
Rounds = Annotated[list[RoundRecord], DeltaChannel(extended, snapshot_frequency=20)]


class AdaptationState(TypedDict, total=False):
    """What survives a checkpoint. Adapters and prompts are named by content hash, never held.

    No key is required of an input, which may be {}; after the first evaluation all are there.
    """

    status: Literal["running", "finished"]
    stop: str  # why the run ends; "" while it goes on
    round: int  # completed updates, from 0
    start: Candidate
    start_measured: Measured | None
    kept: Candidate  # in force
    kept_measured: Measured | None  # None until the first evaluation
    best: Candidate  # the final choice: highest validation reward above the start's
    best_reward: float
    proposal: Proposal | None  # waits for evaluation
    measured: Measured | None  # of the newest evaluation
    verdict: Verdict | None  # on the proposal; None when nothing waits to be kept or dropped
    decision: Decision | None
    remade: RemadePool | None
    signal: dict[str, dict[str, float]]  # per kind: value, saturated, evidence
    editor_failures: int  # in a row
    rounds: Rounds  # one summary a round
    approve: Approve  # which updates a person is asked about
    wall_s: Annotated[float, operator.add]  # inside nodes, all processes together


@dataclass
class AdaptationContext:
    """What a node is given beside the state, never persisted. Plain, so that JSON can carry it.

    folder: the run's folder; empty if a server got no context.
    """

    folder: str = ""


@dataclass
class HeldContext(AdaptationContext):
    """That of a Run that holds the folder's lock. stream: names that Run to the lock."""

    stream: str = ""


def first_state(prompt: str, approve: Approve = "nothing", adapter: str | None = None) -> AdaptationState:
    """The state that a run begins with: the base model, or the start adapter on it, under the task's own prompt."""
    start = Candidate(adapter=adapter, prompt=prompt)
    return AdaptationState(
        status="running",
        stop="",
        round=0,
        start=start,
        start_measured=None,
        kept=start,
        kept_measured=None,
        best=start,
        best_reward=-1.0,
        proposal=None,
        measured=None,
        verdict=None,
        decision=None,
        remade=None,
        signal={},
        editor_failures=0,
        rounds=[],
        approve=approve,
        wall_s=0.0,
    )


Changes = dict[str, Any]  # what a node returns: the keys of the state that it changes
