"""Policies without a model, for tests of the loop."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nslora.tools.policy import Generated, OnProgress, TrainingJob, TrainingResult, no_progress
from nslora.tools.schema import Dialogue
from nslora.tools.testing.tiny_task import KEEPERS, PLACES
from nslora.tools.training.adapters import CONFIG, WEIGHTS, AdapterStore

HINT = re.compile(r"\n\(The answer is: (.*)\)$")
UNKNOWN = "nobody knows"


class FakePolicy:
    """Knows what it was trained on, and copies layouts it is shown.

    It answers in the layout of the prompt's demonstrations, unless its adapter was trained on replies in another one;
    it knows a fact when its adapter was trained on a question with the same last word, or when the question carries
    the hint. asked: every question with the adapter that answered it.
    """

    name = "fake"
    fingerprint = "fake-policy"
    context_tokens = 100_000

    def __init__(self, folder: Path, *, learns: bool = True, forgets: bool = False) -> None:
        self.adapters = AdapterStore(folder)
        self.learns, self.forgets = learns, forgets
        self.asked: list[tuple[str, str | None]] = []
        self.jobs: list[TrainingJob] = []

    def describe(self) -> dict[str, Any]:
        return {"model": self.name}

    def count_tokens(self, dialogue: Dialogue) -> int:
        return sum(len(turn["content"].split()) for turn in dialogue)

    def generate(
        self,
        dialogues: Sequence[Dialogue],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: OnProgress = no_progress,
    ) -> Generated:
        replies = tuple(self._reply(dialogue, adapter) for dialogue in dialogues)
        return Generated(replies, sum(len(reply.split()) for reply in replies))

    def reference_losses(
        self, dialogues: Sequence[Dialogue], references: Sequence[str], *, adapter: str | None
    ) -> list[float]:
        return [1.0 for _ in references]

    def train(self, job: TrainingJob, on_progress: OnProgress = no_progress) -> TrainingResult:
        self.jobs.append(job)
        memory = {} if job.start is None or self.forgets else self._memory(job.start)
        if self.learns:
            memory |= {last_word(row.dialogue[-1]["content"]): row.completion for row in job.rows}
        scratch = self.adapters.folder / ".scratch"
        scratch.mkdir(parents=True, exist_ok=True)  # a killed process may have left it
        (scratch / WEIGHTS).write_text(json.dumps(memory, sort_keys=True))  # what it knows stands for its weights
        (scratch / CONFIG).write_text(json.dumps({"r": 1, "lora_alpha": 1, "target_modules": ["memory"]}))
        name = self.adapters.add(scratch)
        return TrainingResult(name, 1, 1, len(job.rows), (2.0, 1.0), (1.0, 1.0), 0.0, "fake")

    def _memory(self, adapter: str) -> dict[str, str]:
        memory: dict[str, str] = json.loads((self.adapters.path(adapter) / WEIGHTS).read_text())
        return memory

    def _reply(self, dialogue: Dialogue, adapter: str | None) -> str:
        question = dialogue[-1]["content"]
        self.asked.append((question, adapter))
        hint = HINT.search(question)
        known = self._memory(adapter).get(last_word(HINT.sub("", question))) if adapter else None
        if known is not None and (hint is None or not known.startswith("<")):
            return known
        shown = next((turn["content"] for turn in dialogue if turn["role"] == "assistant"), "")
        fact = hint.group(1) if hint else UNKNOWN
        return f"<{fact}>" if shown.startswith("<") else fact


def last_word(question: str) -> str:
    return re.findall(r"\w+", question)[-1].lower()


@dataclass
class ObedientPolicy:
    """A policy without a model: it knows every keeper, and does what the system turn says.

    "dash" brings the form that the task wants, "half" for every second row, "worse" spoils the content too. edit: its
    reply to TextGrad's prompts. sent: all that it was sent.
    """

    edit: str = ""
    asked_under: list[str | None] = field(default_factory=list)
    sent: list[Dialogue] = field(default_factory=list)
    name: str = "obedient"
    fingerprint: str = "obedient-1"
    context_tokens: int = 8192

    def generate(
        self,
        dialogues: Sequence[Dialogue],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: OnProgress = no_progress,
    ) -> Generated:
        self.sent += dialogues
        replies = tuple(self.reply(dialogue, adapter) for dialogue in dialogues)
        return Generated(replies, sum(map(len, replies)))

    def reply(self, dialogue: Dialogue, adapter: str | None) -> str:
        system = dialogue[0]["content"] if dialogue[0]["role"] == "system" else ""
        if "gradient" in system or "optimization system" in system:
            self.asked_under.append(adapter)
            return self.edit
        if "worse" in system:
            return "nobody"
        row = next(i for i, place in enumerate(PLACES) if place in dialogue[-1]["content"])
        keeper = KEEPERS[row % len(KEEPERS)]
        return f"- {keeper}" if "dash" in system and ("half" not in system or row % 2) else keeper

    def reference_losses(
        self, dialogues: Sequence[Dialogue], references: Sequence[str], *, adapter: str | None
    ) -> list[float]:
        return [1.0] * len(references)

    def train(self, job: TrainingJob, on_progress: OnProgress = no_progress) -> TrainingResult:
        raise NotImplementedError("these runs choose edits only")

    def count_tokens(self, dialogue: Dialogue) -> int:
        return sum(len(turn["content"]) // 4 for turn in dialogue)

    def describe(self) -> dict[str, Any]:
        return {"model": self.name}


CANARY = "sk-canary-4f1d0c9b7a6e5d4c3b2a"
