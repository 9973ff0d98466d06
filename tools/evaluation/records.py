"""Evaluations on disk: a header, one line per row, then the failures and the passing train replies with their texts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from nslora.tools.classifier.attribution import Attribution
from nslora.tools.errors import DamagedError
from nslora.tools.files import read_whole, sha256_of_json, write_jsonl
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import as_record, from_record


@dataclass(frozen=True)
class Row:
    """One validation or train question under one candidate. single: reward after the best single repair."""

    RECORD_NAMES: ClassVar[Mapping[str, str]] = {"repaired_reward": "single"}

    id: str
    split: str
    value: float
    checks: dict[str, float]
    repaired_reward: float
    loss_nats: float | None

    @property
    def passed(self) -> bool:
        return all(value >= 1 for value in self.checks.values())


@dataclass(frozen=True)
class Failure:
    """A failing reply in full, with the classifier's answer. cut: the length limit ended it."""

    RECORD_NAMES: ClassVar[Mapping[str, str]] = {"truncated": "cut"}

    id: str
    split: str
    question: str
    reply: str
    feedback: str
    attribution: Attribution
    truncated: bool = False


@dataclass(frozen=True)
class EvaluationCost:
    """Generated tokens, cached replies, and all tokens that the model was asked for, cached or not."""

    tokens: int = 0
    cached: int = 0
    forward_tokens: int = 0


@dataclass(frozen=True)
class Passing:
    """A reply to a train question that earned full reward and that the model itself ended.

    The classifier learns a layout from it, and weights may learn the reply.
    """

    id: str
    reply: str


def write_evaluation(
    path: Path,
    rows: Sequence[Row],
    failures: Sequence[Failure],
    *,
    passing: Sequence[Passing] = (),
    layouts: str = "",
    payer: str = "",
    cost: EvaluationCost | None = None,
) -> None:
    """A header, one line per row (numbers only), then one per failure and per passing train reply (with their texts).

    layouts: `layouts_hash` of what the failures were attributed with. payer: the graph's task that measured, at that
    cost.
    """
    header = {
        "rows": len(rows),
        "failures": len(failures),
        "layouts": layouts,
        "payer": payer,
        **asdict(cost or EvaluationCost()),
    }
    write_jsonl(
        path,
        [{"header": header}]
        + [{"row": as_record(row)} for row in rows]
        + [{"failure": as_record(each)} for each in failures]
        + [{"passing": asdict(each)} for each in passing],
    )


def layouts_hash(known_good: Sequence[Graded]) -> str:
    """The name of a set of replies that earn full reward."""
    return sha256_of_json(sorted({(each.example.id, each.reply) for each in known_good}))[:8]


def layouts_of(path: Path) -> str:
    """What the failures of a stored evaluation were attributed with. Raises DamagedError."""
    return str(header_of(path).get("layouts", ""))


def read_passing(path: Path) -> list[Passing]:
    """The passing train replies of a stored evaluation. Raises DamagedError."""
    try:
        return [Passing(**line["passing"]) for line in read_whole(path) if "passing" in line]
    except (DamagedError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"The evaluation {path} is damaged ({error}).") from error


def header_of(path: Path) -> dict[str, Any]:
    """The first line of a stored evaluation. Raises DamagedError."""
    try:
        with path.open(encoding="utf-8", errors="surrogatepass") as file:
            header: dict[str, Any] = dict(json.loads(file.readline())["header"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"The evaluation {path} is damaged ({error}).") from error
    return header


def evaluation_cost(path: Path, payer: str) -> EvaluationCost:
    """The cost of a stored evaluation; its generation counts where `payer` itself wrote it and was then killed.

    Raises DamagedError.
    """
    header = header_of(path)
    own = bool(payer) and header.get("payer") == payer
    return EvaluationCost(
        header["tokens"] if own else 0, header["cached"] if own else 0, int(header.get("forward_tokens", 0))
    )


def read_evaluation(path: Path) -> tuple[list[Row], list[Failure]]:
    """What `write_evaluation` wrote. Raises DamagedError where the file is missing or damaged."""
    try:
        lines: list[dict[str, Any]] = read_whole(path)
        rows = [from_record(Row, line["row"]) for line in lines if "row" in line]
        failures = [
            from_record(
                Failure, {**line["failure"], "attribution": from_record(Attribution, line["failure"]["attribution"])}
            )
            for line in lines
            if "failure" in line
        ]
        for header in (line["header"] for line in lines if "header" in line):
            if (header["rows"], header["failures"]) != (len(rows), len(failures)):
                raise ValueError(
                    f"{len(rows)} rows and {len(failures)} failures, wanted {header['rows']} and {header['failures']}"
                )
    except (DamagedError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"The evaluation {path} is damaged ({error}).") from error
    return rows, failures
