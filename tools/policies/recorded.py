"""A policy that answers from what is known, and loads the model only for what is not."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from nslora.tools.files import read_json
from nslora.tools.inference.chat_template import ChatFormat
from nslora.tools.inference.weights import refuse_other_weights, resolve_model
from nslora.tools.policy import Generated, OnProgress, Policy, TrainingJob, TrainingResult, no_progress
from nslora.tools.schema import Dialogue


class RecordedPolicy:
    """Stands in for the policy of an earlier run, of which `facts` (its `policy.json`) tells name and fingerprint.

    model: as the settings name it, for the tokenizer.

    Replies come from the reply cache and training jobs from the record before a policy is ever asked, so in a replay of
    what is all known `load` is never called.
    """

    def __init__(self, facts: Path, model: str, load: Callable[[], Policy]) -> None:
        known = read_json(facts)
        self.name: str = known.pop("name")
        self.fingerprint: str = known.pop("fingerprint")
        self.context_tokens: int = known["context_tokens"]
        self._facts, self._model, self.load = known, model, load
        self.loaded = False

    @cached_property
    def policy(self) -> Policy:
        """The real one. Raises RunError where its files are no longer those of the record."""
        self.loaded = True
        found = self.load()
        refuse_other_weights(found.name, found.fingerprint, self.fingerprint)
        return found

    @cached_property
    def _format(self) -> ChatFormat:
        """Tokenizer and chat template alone; the weights stay where they are."""
        from transformers import AutoTokenizer

        return ChatFormat(AutoTokenizer.from_pretrained(resolve_model(self._model).location), ())

    def generate(
        self,
        dialogues: Sequence[Dialogue],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: OnProgress = no_progress,
    ) -> Generated:
        if not dialogues:
            return Generated((), 0)
        return self.policy.generate(dialogues, adapter=adapter, max_new_tokens=max_new_tokens, on_progress=on_progress)

    def reference_losses(
        self, dialogues: Sequence[Dialogue], references: Sequence[str], *, adapter: str | None
    ) -> list[float]:
        if not dialogues:
            return []
        return self.policy.reference_losses(dialogues, references, adapter=adapter)

    def train(self, job: TrainingJob, on_progress: OnProgress = no_progress) -> TrainingResult:
        return self.policy.train(job, on_progress)

    def count_tokens(self, dialogue: Dialogue) -> int:
        return self._format.count(dialogue)

    def describe(self) -> dict[str, Any]:
        return dict(self._facts)
