"""Looking at runs, from their folders alone: no model is loaded and nothing is written.

for run in runs("runs"): print(run.folder, run.status, run.best_reward)
look("runs/demo").round(3).failures
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nslora.graph.lock import is_locked
from nslora.graph.projection import same_rounds
from nslora.tools.editor.call_log import EditorLog, RecordedCall
from nslora.tools.errors import DamagedError, RunError
from nslora.tools.evaluation.records import Failure, read_evaluation
from nslora.tools.files import read_json, read_jsonl
from nslora.tools.prompt import Prompt, difference
from nslora.tools.workspace.prompt_store import PromptStore
from nslora.tools.workspace.record import QUESTION_FILE, RUN_FILE, read_run_file

# What is read of a report; a candidate's fields are those of base and of result.
CANDIDATE = ("checks", "all_checks", "interval", "reward")
REPORT = (
    *("stop", "wall_s", "prompt_diff", "peak_rss_mb", "test.questions", "test.gain.all_checks", "test.gain.interval"),
    *("validation.base.reward", "validation.result.reward"),
    *(f"test.{which}.{name}" for which in ("base", "result") for name in CANDIDATE),
    *("cost.trained_tokens", "cost.generated_tokens", "cost.tflop", "cost.editor_calls"),
)


@dataclass(frozen=True)
class Round:
    """One finished round. reward_after is None if the update failed before it could be measured."""

    number: int
    action: str
    reason: str
    kept: bool
    verdict: str
    error: str | None
    adapter: str | None
    prompt: str | None
    reward_before: float
    reward_after: float | None
    demand: Mapping[str, float]
    signal: Mapping[str, Mapping[str, float]]
    numbers: Mapping[str, float]
    wall_s: float
    trained_tokens: int
    generated_tokens: int
    flop: float  # of update and evaluation, by formula
    editor: Mapping[str, float]
    note: str
    person: Mapping[str, str] | None = None  # what a person who was asked said, and the hash of their own prompt
    editor_lines: int = 0  # of the editor's record by the end of the round


@dataclass(frozen=True)
class TrainingExample:
    """A row that a training job was trained on. origin: "reference", "remade" or "replay"."""

    source: str
    origin: str
    completion: str


@dataclass(frozen=True)
class RoundDetails:
    """What a round looked at and did. failures: of the kept candidate, with the classifier's verdict on each.

    critiques: the editor's textual gradients. diff: of the prompt in force before and the proposed one. editor_calls:
    with the text that was sent; a request that an earlier round or run had sent was answered from the record, and is
    here as it was then. rows_shown: ids of the rows in it, in the order of their numbers; "" for a demonstration of the
    prompt, nothing if the edit failed.
    """

    round: Round
    failures: tuple[Failure, ...]
    training_rows: tuple[TrainingExample, ...]
    critiques: tuple[str, ...]
    diff: str
    editor_calls: tuple[RecordedCall, ...] = ()
    rows_shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunView:
    """A run as its folder tells it. status: finished, running (a process is at work), waiting (for a person),
    stopped, or unreadable.

    rewards are on validation; None before the first evaluation of a round ended. problem: what cannot be read.
    """

    folder: Path
    status: str
    created: str
    task: str
    settings: Mapping[str, Any]
    origin: Mapping[str, Any] | None
    start_reward: float | None
    best_reward: float | None
    stop: str
    wall_s: float
    rounds: tuple[Round, ...]
    problem: str = ""

    def round(self, number: int) -> RoundDetails:
        """Everything about round `number`, from 1. Raises RunError."""
        if not 1 <= number <= len(self.rounds):
            raise RunError(f"{self.folder} has no round {number}: it has {len(self.rounds)} finished rounds.")
        found = self.rounds[number - 1]
        prompts = PromptStore(self.folder / "prompts")
        before, proposed = self._prompt_before(number), found.prompt
        diff = difference(prompts.get(before), prompts.get(proposed)) if before and proposed else ""
        edit = self._edit(number)
        return RoundDetails(
            found,
            self._failures(number),
            self._training_rows(number),
            tuple(edit.get("critiques", ())),
            diff,
            self._editor_calls(number, set(edit.get("requests", ()))),
            tuple(edit.get("rows", ())),
        )

    def prompt(self, name: str) -> Prompt:
        """The prompt document of this hash."""
        return PromptStore(self.folder / "prompts").get(name)

    def _prompt_before(self, number: int) -> str | None:
        kept = [each.prompt for each in self.rounds[: number - 1] if each.kept and each.prompt]
        if kept:
            return kept[-1]
        prompt: str | None = read_run_file(self.folder)["task"].get("prompt")
        return prompt

    def _failures(self, number: int) -> tuple[Failure, ...]:
        path = self._of_round("material", number)
        key = path.stem.partition("-")[2] if path else ""
        return tuple(read_evaluation(self.folder / "evaluations" / f"{key}.jsonl").failures) if path else ()

    def _of_round(self, folder: str, number: int) -> Path | None:
        """The round's file there. After time travel there may be one of each branch: the newest is this one's."""
        found = sorted((self.folder / folder).glob(f"{number}-*.json"), key=lambda path: path.stat().st_mtime_ns)
        return found[-1] if found else None

    def _training_rows(self, number: int) -> tuple[TrainingExample, ...]:
        rows = read_jsonl(self.folder / "material" / f"{number}-rows.jsonl")
        return tuple(TrainingExample(row["source"], row["origin"], row["completion"]) for row in rows)

    def _editor_calls(self, number: int, requests: set[str]) -> tuple[RecordedCall, ...]:
        calls = EditorLog(self.folder / "editor.jsonl").first()
        return tuple(each for each in calls if each.round == number or each.request_sha256 in requests)

    def _edit(self, number: int) -> Mapping[str, Any]:
        """The record of the round's edit; an empty one if there was none, or if it failed."""
        path = self._of_round("edits", number) if self.rounds[number - 1].action == "textgrad" else None
        record: Mapping[str, Any] = read_json(path) if path else {}
        return record


def runs(folder: str | Path = "runs") -> list[RunView]:
    """All runs directly under `folder`, the newest first. A run that cannot be read is listed with its problem."""
    found = []
    for path in sorted(Path(folder).glob(f"*/{RUN_FILE}")):
        try:
            found.append(look(path.parent))
        except RunError as error:
            found.append(RunView(path.parent, "unreadable", "", "", {}, None, None, None, "", 0.0, (), str(error)))
    return sorted(found, key=lambda each: each.created, reverse=True)


def look(folder: str | Path, *, at_work: bool | None = None) -> RunView:
    """One run. Raises RunError, naming the file, if the folder holds no run or a record is damaged.

    at_work: whether a process is at work on it; None asks the lock.
    """
    path = Path(folder)
    record = read_run_file(path)
    try:
        records = read_jsonl(path / "decisions.jsonl")
        rounds = tuple(round_of(each) for each in records)
    except KeyError as error:
        raise DamagedError(f"{path}/decisions.jsonl is damaged: a round without {error}.") from error
    except (AttributeError, TypeError) as error:
        raise DamagedError(f"{path}/decisions.jsonl is damaged: a line of it is no round.") from error
    report = report_of(path, records)
    asked = read_json(path / QUESTION_FILE) if (path / QUESTION_FILE).is_file() else None
    waits = isinstance(asked, dict) and asked.get("round") == len(rounds) + 1
    start, best = _rewards(report, rounds)
    locked = is_locked(path) if at_work is None else at_work
    status = "finished" if report else "running" if locked else "waiting" if waits else "stopped"
    return RunView(
        folder=path,
        status=status,
        created=record["created"],
        task=record["task"]["name"],
        settings=record["settings"],
        origin=record.get("origin"),
        start_reward=start,
        best_reward=best,
        stop=report["stop"] if report else "",
        wall_s=report["wall_s"] if report else sum(each.wall_s for each in rounds),
        rounds=rounds,
    )


def report_of(folder: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The report of a finished run. None if there is no report, or if it is about other rounds, since the run was taken
    back to an earlier round by LangGraph's time travel. Raises DamagedError.
    """
    path = folder / "result" / "report.json"
    if not path.is_file():
        return None
    report = read_json(path)
    if missing := [name for name in REPORT if not _holds(report, name)]:
        raise DamagedError(f"{path} is damaged: it lacks {', '.join(missing)}.")
    told = report.get("rounds", records)
    try:
        for each in told:
            round_of(each)
    except (AttributeError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} or {folder}/decisions.jsonl is damaged: a line of it is no round.") from error
    return report if same_rounds(told, records) else None


def _holds(report: Any, name: str) -> bool:
    """Whether a report has the field "test.base.reward"."""
    for part in name.split("."):
        if not isinstance(report, dict) or part not in report:
            return False
        report = report[part]
    return True


_NAMED_OTHERWISE = {"number", "adapter", "prompt", "person", "editor_lines"}
_AS_RECORDED = [each.name for each in fields(Round) if each.name not in _NAMED_OTHERWISE]


def round_of(record: Mapping[str, Any]) -> Round:
    """A line of decisions.jsonl as an object. Raises KeyError, TypeError or AttributeError if it is no round."""
    candidate = record["candidate"] or {}
    return Round(
        **{name: record[name] for name in _AS_RECORDED},
        number=record["round"],
        adapter=candidate.get("adapter"),
        prompt=candidate.get("prompt"),
        person=record.get("person"),
        editor_lines=record.get("editor_lines", 0),
    )


def _rewards(report: Mapping[str, Any] | None, rounds: Sequence[Round]) -> tuple[float | None, float | None]:
    """Validation reward of the start, and of the result or, without one, of the best candidate kept so far."""
    if report:
        base, result = (report["validation"][which]["reward"] for which in ("base", "result"))
        return (rounds[0].reward_before if rounds else base), result
    if not rounds:
        return None, None
    kept = [each.reward_after for each in rounds if each.kept and each.reward_after is not None]
    return rounds[0].reward_before, max([rounds[0].reward_before, *kept])
