"""A policy for replays: it knows an earlier run's facts, and loads the model only for what is not recorded."""

import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from nslora.tools.files import read_json
from nslora.tools.inference.chat_template import ChatFormat
from nslora.tools.inference.weights import refuse_other_weights, resolve_model
from nslora.tools.policy import (
    Generated,
    OnProgress,
    OnStep,
    Policy,
    Thinking,
    TrainingJob,
    TrainingResult,
    no_progress,
)
from nslora.tools.schema import Dialogue


class RecordedPolicy:
    """Takes the place of an earlier run's policy.

    The reply cache and the record of training jobs answer before a policy is called, so a replay of recorded work never
    calls `load`.

    Args:
        facts: The run's `policy.json`, which contains the policy's name and fingerprint.
        model: The model's name in the settings, for its tokenizer.
        load: Loads the policy.
        thinking: Whether replies begin with thinking.
    """

    def __init__(self, facts: Path, model: str, load: Callable[[], Policy], thinking: Thinking = "off") -> None:
        self._facts, self._run = read_json(facts), facts.parent
        self.name: str = self._facts.pop("name")
        self.fingerprint: str = self._facts.pop("fingerprint")
        self.context_tokens: int = self._facts["context_tokens"]
        self._model, self.load, self._thinking = model, load, thinking
        self.loaded = False

    @cached_property
    def policy(self) -> Policy:
        """The policy itself, loaded on first use. Raises RunError if it is another model than the recorded one."""
        self.loaded = True
        found = self.load()
        refuse_other_weights(found.name, found.fingerprint, self.fingerprint)
        return found

    @cached_property
    def _format(self) -> ChatFormat:
        """The chat template, without the weights."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(resolve_model(self._model).location)
        return ChatFormat(tokenizer, thinking=self._thinking)

    def generate(
        self,
        dialogues: Sequence[Dialogue],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: OnProgress = no_progress,
        **sampling: Any,
    ) -> Generated:
        """Generate replies with the loaded policy; no dialogues load nothing."""
        if not dialogues:
            return Generated((), 0)
        return self.policy.generate(
            dialogues, adapter=adapter, max_new_tokens=max_new_tokens, on_progress=on_progress, **sampling
        )

    def reference_losses(
        self, dialogues: Sequence[Dialogue], references: Sequence[str], *, adapter: str | None
    ) -> list[float]:
        """Score references with the loaded policy; no dialogues load nothing."""
        return self.policy.reference_losses(dialogues, references, adapter=adapter) if dialogues else []

    def train(self, job: TrainingJob, on_progress: OnStep = no_progress) -> TrainingResult:
        """Train with the loaded policy."""
        return self.policy.train(job, on_progress)

    def count_tokens(self, dialogue: Dialogue) -> int:
        """Count tokens with the tokenizer alone."""
        return self._format.count(dialogue)

    def save_template(self, folder: Path) -> None:
        """Copy the tokenizer of the recorded result, if it has one; the model itself may be gone."""
        if (recorded := self._run / "result" / "tokenizer").is_dir():
            shutil.copytree(recorded, folder)

    def describe(self) -> dict[str, Any]:
        """Return the recorded facts."""
        return dict(self._facts)
