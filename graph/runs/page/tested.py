"""The test split on the page: each row with the replies of base and result, and the confusion of labels."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nslora.tools.errors import NsloraError
from nslora.tools.evaluation.rollouts import recorded_replies
from nslora.tools.files import read_json, read_jsonl
from nslora.tools.rewards.choice import key_of
from nslora.tools.schema import Example
from nslora.tools.thinking import split_thinking
from nslora.tools.workspace.record import POLICY_FILE
from nslora.tools.workspace.workspace import Workspace

CANDIDATES = ("base", "result")
OUTCOMES = {"lost": "lost", "won": "won", "wrong": "still wrong", "right": "still right"}
MOST_ROWS = 600  # on the page; result/test.jsonl has all
MOST_CHARACTERS = 4000  # of a text


@dataclass(frozen=True)
class Answer:
    """One candidate's reply to a row, with its scores. reply: None if it is not on record any more."""

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
    """A row of the test split. question, reference: None if the task cannot be read. label: of a `label` check."""

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
    """rows: those that changed come first. problem: why texts are missing, "" if none is."""

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

    workspace: of the run; None if its task cannot be had, because of `problem`. Without it there are scores alone.
    """
    scores: dict[str, dict[str, Any]] = {name: {} for name in CANDIDATES}
    for row in read_jsonl(folder / "result" / "test.jsonl"):
        scores[row["candidate"]][str(row["id"])] = row
    ids = list(scores["result"])
    examples = {row.id: row for row in workspace.task.test} if workspace else {}
    known = [examples[name] for name in ids if name in examples]
    replies = {name: dict.fromkeys(ids) for name in CANDIDATES} | _replies(folder, report, workspace, known)
    if workspace and not problem and any(replies[name][row.id] is None for name in CANDIDATES for row in known):
        problem = "Some replies are not in the reply cache any more."
    labels = workspace.task.reward.label_pairs(known, [""] * len(known)) if workspace else {}
    classes = {row.id: pair[0] for pairs in labels.values() for row, pair in zip(known, pairs, strict=True)}
    rows = tuple(
        TestedRow(
            name,
            examples[name].asked[:MOST_CHARACTERS] if name in examples else None,
            (examples[name].reference or "")[:MOST_CHARACTERS] if name in examples else None,
            classes.get(name, ""),
            *(_answer(scores[which][name], replies[which][name]) for which in CANDIDATES),
        )
        for name in ids
    )
    checks = tuple(dict.fromkeys(name for row in rows for name in row.result.checks))
    return TestedSplit(rows, checks, _confusions(workspace, known, replies), problem)


def _replies(
    folder: Path, report: Mapping[str, Any], workspace: Workspace | None, rows: Sequence[Example]
) -> dict[str, dict[str, str | None]]:
    """The recorded replies of both candidates by the rows' ids; no model is loaded for them."""
    if workspace is None or not (folder / POLICY_FILE).is_file():
        return {}
    fingerprint = read_json(folder / POLICY_FILE)["fingerprint"]
    found = {}
    for name, candidate in (("base", report["start"]), ("result", report["result"])):
        prompt = workspace.prompts.get(candidate["prompt"])
        texts = recorded_replies(
            fingerprint,
            workspace.replies,
            [prompt.dialogue(row) for row in rows],
            adapter=candidate["adapter"],
            max_new_tokens=workspace.task.max_new_tokens,
        )
        found[name] = dict(zip([row.id for row in rows], texts, strict=True))
    return found


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
    workspace: Workspace | None, rows: Sequence[Example], replies: Mapping[str, Mapping[str, str | None]]
) -> tuple[Confusion, ...]:
    """The confusion of each `label` check, for base and result; only rows whose replies are known count."""
    found = []
    for candidate in CANDIDATES if workspace else ():
        answered = [(row, reply) for row in rows if (reply := replies[candidate].get(row.id)) is not None]
        said = [split_thinking(reply)[1] for _, reply in answered]
        assert workspace is not None
        for check, pairs in workspace.task.reward.label_pairs([row for row, _ in answered], said).items():
            cells = Counter(pairs)
            labels = sorted({each for pair in pairs for each in pair if each is not None}, key=key_of)
            counts = tuple(tuple(cells[wanted, given] for given in (*labels, None)) for wanted in labels)
            found.append(Confusion(check, candidate, tuple(labels), counts))
    return tuple(found)


def texts_of(folder: Path, open_task: Any) -> tuple[Workspace | None, str]:
    """The workspace that knows the run's texts, and why there is none."""
    try:
        return open_task(folder, needs_editor=False), ""
    except (NsloraError, OSError, json.JSONDecodeError) as error:
        return None, str(error)
