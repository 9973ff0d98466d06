"""Evaluations: what a candidate earned on each question, in memory and on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from nslora.tools.classifier.attribution import Attribution
from nslora.tools.errors import DamagedError
from nslora.tools.evaluation.paired_tests import mean
from nslora.tools.files import read_whole, sha256_of_json, without_blank, write_jsonl
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import as_record, from_record

REMEMBERED = 8  # evaluations in memory: the start, the one in force and the newest, each before and after attribution


@dataclass(frozen=True)
class Row:
    """One question under one candidate. repaired_reward: the reward after the best single repair."""

    RECORD_NAMES: ClassVar[Mapping[str, str]] = {"repaired_reward": "single"}

    id: str
    split: str
    value: float
    checks: dict[str, float]
    repaired_reward: float
    loss_nats: float | None

    @property
    def passed(self) -> bool:
        """Whether the reply passes every check."""
        return all(value >= 1 for value in self.checks.values())


@dataclass(frozen=True)
class Failure:
    """A failing reply with its text and the classifier's answer.

    truncated: the length limit ended the reply. Of an agent, else "": trajectory: record of what it did; mended: of the
    same with one call mended, if one could be; fault: the call that is to blame, in words.
    """

    RECORD_NAMES: ClassVar[Mapping[str, str]] = {"truncated": "cut"}

    id: str
    split: str
    question: str
    reply: str
    feedback: str
    attribution: Attribution
    truncated: bool = False
    thinking: str = ""
    trajectory: str = ""
    mended: str = ""
    fault: str = ""


@dataclass(frozen=True)
class EvaluationCost:
    """Generated tokens, replies from the cache, and prompt and reply tokens together, cached or not."""

    tokens: int = 0
    cached: int = 0
    forward_tokens: int = 0


@dataclass(frozen=True)
class Passing:
    """A reply to a train question that earned full reward and that the length limit did not end.

    The classifier learns a layout from the reply, and a training job may learn the reply itself.
    """

    id: str
    reply: str
    thinking: str = ""
    trajectory: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What one candidate earned on each question.

    failures: of validation and train. passing: of train. layouts: `layouts_hash` of the replies that the classifier
    knew when it attributed the failures. payer: id of the graph's task that paid `cost`.
    """

    key: str
    rows: Sequence[Row] = ()
    failures: Sequence[Failure] = ()
    passing: Sequence[Passing] = ()
    layouts: str = ""
    payer: str = ""
    cost: EvaluationCost = EvaluationCost()

    def of(self, split: str) -> dict[str, Row]:
        """The rows of a split by id."""
        return {row.id: row for row in self.rows if row.split == split}

    def failed(self, split: str) -> list[Failure]:
        """The failures of a split."""
        return [each for each in self.failures if each.split == split]

    @property
    def repairable_reward(self) -> float:
        """Mean reward on validation after the best single repair of each failure."""
        return mean([row.repaired_reward for row in self.of("validation").values()])

    @property
    def repaired(self) -> dict[str, str]:
        """Train failures that lacked content alone, by id, each with the reference in place of its answer."""
        return {
            each.id: each.attribution.repaired
            for each in self.failed("train")
            if not each.truncated and each.attribution.verdict == "content" and each.attribution.repaired
        }

    def cost_for(self, payer: str) -> EvaluationCost:
        """What `payer` has to pay: only the task that generated the replies pays for them."""
        own = payer and payer == self.payer
        return self.cost if own else EvaluationCost(forward_tokens=self.cost.forward_tokens)


class EvaluationStore:
    """The evaluations of one run, in `<folder>/<key>.jsonl`; the newest ones stay in memory.

    An evaluation never changes, since its key is a hash of the candidate and of what was asked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, Evaluation] = {}
        self._gains: dict[tuple[str, str], list[float]] = {}

    def __contains__(self, key: str) -> bool:
        return self.path(key).exists()

    def path(self, key: str) -> Path:
        """The file of an evaluation."""
        return self.folder / f"{key}.jsonl"

    def load(self, key: str) -> Evaluation:
        """The evaluation of this key. Raises DamagedError if its file is missing or damaged."""
        return self._known[key] if key in self._known else self._remember(read_evaluation(self.path(key)))

    def of(self, measured: Mapping[str, Any] | None) -> Evaluation:
        """The evaluation with this summary in the state; an empty one of None, before the first evaluation."""
        return self.load(measured["key"]) if measured else Evaluation("")

    def write(self, evaluation: Evaluation) -> Evaluation:
        """Write an evaluation to its file, and return it."""
        write_evaluation(self.path(evaluation.key), evaluation)
        return self._remember(evaluation)

    def gains(self, key: str, *, over: str) -> list[float]:
        """Reward less that of the evaluation `over`, on each validation row in the order of their ids."""
        if (over, key) not in self._gains:
            old, new = self.load(over).of("validation"), self.load(key).of("validation")
            self._gains[over, key] = [new[i].value - old[i].value for i in sorted(old)]
        return self._gains[over, key]

    def _remember(self, evaluation: Evaluation) -> Evaluation:
        self._known.pop(evaluation.key, None)
        while len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[evaluation.key] = evaluation
        return evaluation


def layouts_hash(known_good: Sequence[Graded]) -> str:
    """The name of a set of replies that earn full reward: 8 hex characters."""
    return sha256_of_json(sorted({(each.example.id, each.reply) for each in known_good}))[:8]


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write a header, then a line per row (numbers), per failure (with texts) and per passing train reply."""
    header = {
        "rows": len(evaluation.rows),
        "failures": len(evaluation.failures),
        "layouts": evaluation.layouts,
        "payer": evaluation.payer,
        **asdict(evaluation.cost),
    }
    write_jsonl(
        path,
        [{"header": header}]
        + [{"row": as_record(row)} for row in evaluation.rows]
        + [
            {"failure": without_blank(as_record(each), "thinking", "trajectory", "mended", "fault")}
            for each in evaluation.failures
        ]
        + [{"passing": without_blank(asdict(each), "thinking", "trajectory")} for each in evaluation.passing],
    )


def read_evaluation(path: Path) -> Evaluation:
    """What `write_evaluation` wrote. Raises DamagedError if the file is missing or damaged."""
    found: dict[str, list[dict[str, Any]]] = {"header": [], "row": [], "failure": [], "passing": []}
    try:
        for line in read_whole(path):
            for kind, record in line.items():
                found[kind].append(record)
        (header,) = found["header"]
        counts, wanted = (len(found["row"]), len(found["failure"])), (header["rows"], header["failures"])
        if counts != wanted:
            raise ValueError(f"{counts[0]} rows and {counts[1]} failures, wanted {wanted[0]} and {wanted[1]}")
        return Evaluation(
            key=path.stem,
            rows=[from_record(Row, row) for row in found["row"]],
            failures=[
                from_record(Failure, {**each, "attribution": from_record(Attribution, each["attribution"])})
                for each in found["failure"]
            ],
            passing=[Passing(**each) for each in found["passing"]],
            layouts=header["layouts"],
            payer=header["payer"],
            cost=EvaluationCost(header["tokens"], header["cached"], header["forward_tokens"]),
        )
    except (DamagedError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"The evaluation {path} is damaged ({error}).") from error
