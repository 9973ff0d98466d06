"""The folder of a run shows one state of one thread: `decisions.jsonl` and `result/` are written from it.

The state is the truth. When another branch runs in the folder, what the folder shows is made anew, and a result of
before is set aside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nslora.graph.state import AdaptationState, RoundRecord
from nslora.nodes.shared.rounds import is_empty
from nslora.tools.errors import LostRoundsError, RunError
from nslora.tools.files import quoted, read_json, read_jsonl, sha256_of_json, write_json, write_jsonl
from nslora.tools.workspace.record import OLD_THREAD, RUN_FILE

DECISIONS_FILE = "decisions.jsonl"
SHOWN_FILE = "shown.json"  # the Stamp of what the folder shows


@dataclass(frozen=True)
class Stamp:
    """Where a node began.

    Attributes:
        thread: Its thread; "" if the graph has no checkpointer.
        checkpoint: Id of the checkpoint that it began with.
        node: Its name.
    """

    thread: str
    checkpoint: str
    node: str


def stamp_of(folder: Path) -> Stamp | None:
    """Where the last node began that worked in the folder; None in a run of version 0.1.0. Raises DamagedError."""
    return Stamp(**read_json(folder / SHOWN_FILE)) if (folder / SHOWN_FILE).is_file() else None


def show_branch(folder: Path, state: AdaptationState, stamp: Stamp) -> None:
    """Let the folder show the branch on which a node begins. The result of another one is set aside.

    Raises:
        RunError: If the folder shows another thread, or a run is begun on top of itself.
        LostRoundsError: If records of rounds are missing from the state.
    """
    rounds = state.get("rounds", [])
    before = _refuse_second_thread(folder, stamp.thread, rounds)
    _refuse_other_beginning(state, stamp.node)
    refuse_lost_rounds(folder, state)
    if stamp != before:  # the same node again, after a kill, writes the same result
        set_aside(folder)
        write_json(folder / SHOWN_FILE, asdict(stamp))
    show_rounds(folder, rounds)


def _refuse_second_thread(folder: Path, thread: str, rounds: Sequence[RoundRecord]) -> Stamp | None:
    """What the folder shows. Raises RunError if that is another thread: both would write the same files."""
    before, decisions = stamp_of(folder), folder / DECISIONS_FILE
    shown = before.thread if before else thread
    if before is None and decisions.exists() and not same_rounds(read_jsonl(decisions), rounds):
        shown = read_json(folder / RUN_FILE).get("thread", OLD_THREAD)  # a run of 0.1.0
    if thread != shown:
        raise RunError(
            f"{folder} shows the thread {shown or 'of a graph without a checkpointer'}, and this one is "
            f"{thread or 'without a checkpointer'}: give each thread a folder of its own (Run.create, Run.fork). If "
            f"the first one's checkpoints are lost, delete {SHOWN_FILE} and {DECISIONS_FILE}: the run begins again "
            "from its records."
        )
    return before


def _refuse_other_beginning(state: AdaptationState, node: str) -> None:
    """Raise RunError if the state is no run's, or was begun anew, whole or in part, on top of what the run did."""
    if node == "evaluate" and is_empty(state):
        return
    if "kept" not in state:
        raise RunError("This is no state of a run: begin with {} or run.first_state(), and go on with None.")
    if (done := state["round"]) < (there := len(state["rounds"])):
        raise RunError(
            f"A first state, or another number of rounds ({done}), was given to a run with {there} rounds behind it, "
            "which goes on with None: fork it at a round to have its past back, or begin another run."
        )
    if node == "evaluate" and state["proposal"] is None and state["kept_measured"] is not None:
        raise RunError(
            "Nothing waits to be evaluated: an input was given to a run that has begun, which goes on with None in its "
            "place, or its proposal was taken away, which a verdict with kept False drops."
        )


def show_rounds(folder: Path, rounds: Sequence[RoundRecord]) -> None:
    """Write `decisions.jsonl`, unless it says the same already. Raises DamagedError."""
    path = folder / DECISIONS_FILE
    if (rounds or path.exists()) and not same_rounds(read_jsonl(path), rounds):
        write_jsonl(path, rounds)


def same_rounds(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two lists of records say the same; a number that is none (NaN) equals itself here."""
    return list(one) == list(other) or sha256_of_json(list(one)) == sha256_of_json(list(other))


def refuse_lost_rounds(folder: Path, state: AdaptationState | dict[str, Any]) -> None:
    """Raise LostRoundsError if the state counts more rounds than it holds."""
    done, there = state.get("round", 0), len(state.get("rounds", []))
    if there < done:
        raise LostRoundsError(
            f"The checkpoints of {folder} hold {there} of {done} rounds: earlier ones were pruned, or have expired. "
            f"Bring the records back from {DECISIONS_FILE} with run.restore(), or with: nslora resume "
            f"{quoted(folder)} --restore"
        )


def set_aside(folder: Path) -> None:
    """Rename `result` to `result.CHECKPOINT`, by the checkpoint that it was made from; it had a number in 0.1.0."""
    result, stamp = folder / "result", stamp_of(folder)
    if result.exists():
        name = stamp.checkpoint if stamp else ""
        number = 1 + len(list(folder.glob("result.*")))
        free = name and not (folder / f"result.{name}").exists()
        result.rename(folder / f"result.{name if free else number}")
