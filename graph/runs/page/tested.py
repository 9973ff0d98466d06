"""The test split on the page: each row with the replies of base and result, and the confusion of labels."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nslora.tools.files import read_jsonl
from nslora.tools.rewards.choice import key_of
from nslora.tools.schema import Example
from nslora.tools.thinking import split_thinking
from nslora.tools.workspace.tables import read_table
from nslora.tools.workspace.workspace import Workspace

CANDIDATES = ("base", "result")
OUTCOMES = {"lost": "lost", "won": "won", "wrong": "still wrong", "right": "still right"}
MOST_ROWS = 600  # on the page; result/test.jsonl has all
MOST_CHARACTERS = 4000  # of a text


@dataclass(frozen=True)
class Answer:
    """One candidate's reply to a row, with its scores. reply: None if it is not on record."""

    reply: str | None
    thinking: str
    passed: bool
    reward: float
    checks: Mapping[str, float]

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that the reply fails."""
        return tuple(name for name, value in self.checks.items() if value < 1)


@dataclass(frozen=True)
class TestedRow:
    """A row of the test split. question, reference: None if they are not on record. label: of a `label` check."""

    id: str
    question: str | None
    reference: str | None
    label: str
    base: Answer
    result: Answer

    @property
    def outcome(self) -> str:
        """A key of `OUTCOMES`."""
        if self.base.passed == self.result.passed:
            return "right" if self.result.passed else "wrong"
        return "won" if self.result.passed else "lost"


@dataclass(frozen=True)
class Confusion:
    """Right labels against given ones; the last column counts replies without a label."""

    check: str
    candidate: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TestedSplit:
    """rows: those that changed come first. problem: what is missing, and why."""

    rows: tuple[TestedRow, ...]
    checks: tuple[str, ...]
    confusions: tuple[Confusion, ...] = ()
    problem: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each outcome."""
        found = Counter(row.outcome for row in self.rows)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    @property
    def shown(self) -> tuple[TestedRow, ...]:
        """The rows that the page holds."""
        order = list(OUTCOMES)
        return tuple(sorted(self.rows, key=lambda row: order.index(row.outcome))[:MOST_ROWS])

    @property
    def classes(self) -> list[str]:
        """The labels of the rows."""
        return sorted({row.label for row in self.rows if row.label})


def tested_split_of(folder: Path, report: Mapping[str, Any], workspace: Workspace | None, problem: str) -> TestedSplit:
    """The test split of a finished run. Raises DamagedError.

    workspace: of the run, for the labels of `label` checks; None if its task cannot be had, because of `problem`.
    """
    scores: dict[str, dict[str, Any]] = {name: {} for name in CANDIDATES}
    for row in read_jsonl(folder / "result" / "test.jsonl"):
        scores[row["candidate"]][str(row["id"])] = row
    table = folder / "result" / "test.csv"
    texts = {row["id"]: row for row in read_table(table)} if table.is_file() else {}
    if not texts:
        problem = "An earlier version wrote this result, without test.csv: rows are shown by their ids and scores."
    elif workspace or not any("labels" in report["test"][name] for name in CANDIDATES):
        problem = ""
    examples = [row for row in workspace.task.test if row.id in texts] if workspace else []
    labels = workspace.task.reward.label_pairs(examples, [""] * len(examples)) if workspace else {}
    classes = {row.id: pair[0] for pairs in labels.values() for row, pair in zip(examples, pairs, strict=True)}
    rows = tuple(
        TestedRow(
            name,
            _asked(texts[name]) if name in texts else None,
            texts[name]["reference"][:MOST_CHARACTERS] if name in texts else None,
            classes.get(name, ""),
            *(_answer(scores[which][name], texts.get(name, {}).get(f"{which}_reply")) for which in CANDIDATES),
        )
        for name in scores["result"]
    )
    checks = tuple(dict.fromkeys(name for row in rows for name in row.result.checks))
    return TestedSplit(rows, checks, _confusions(workspace, examples, texts), problem)


def _asked(row: Mapping[str, str]) -> str:
    """The question, after the turns before it."""
    turns = [f"{role}: {text}" for role, text in json.loads(row.get("history") or "[]")]
    return "\n".join([*turns, row["question"]])[:MOST_CHARACTERS]


def _answer(score: Mapping[str, Any], text: str | None) -> Answer:
    thinking, reply = split_thinking(text) if text is not None else ("", None)
    return Answer(
        reply[:MOST_CHARACTERS] if reply is not None else None,
        thinking[:MOST_CHARACTERS],
        bool(score["passed"]),
        float(score["reward"]),
        score["checks"],
    )


def _confusions(
    workspace: Workspace | None, rows: Sequence[Example], texts: Mapping[str, Mapping[str, str]]
) -> tuple[Confusion, ...]:
    """The confusion of each `label` check, for base and result."""
    found = []
    for candidate in CANDIDATES if workspace else ():
        said = [split_thinking(texts[row.id][f"{candidate}_reply"])[1] for row in rows]
        assert workspace is not None
        for check, pairs in workspace.task.reward.label_pairs(rows, said).items():
            cells = Counter(pairs)
            labels = sorted({each for pair in pairs for each in pair if each is not None}, key=key_of)
            counts = tuple(tuple(cells[wanted, given] for given in (*labels, None)) for wanted in labels)
            found.append(Confusion(check, candidate, tuple(labels), counts))
    return tuple(found)
