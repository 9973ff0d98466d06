"""A policy from two engines: one for replies, one for training, joined by the adapter store."""

from pathlib import Path
from typing import Any

from nslora.tools.policies.facts import ModelFacts
from nslora.tools.policy import ReplyEngine, TrainingEngine
from nslora.tools.schema import Dialogue


class ComposedPolicy:
    """Its calls are those of the engines; it needs no weights itself.

    Args:
        facts: The model's facts.
        replies: Generates and scores.
        training: Trains.
        fingerprint: Hash of the weights with the dtype or the engine of the replies.
        described: What `describe` tells of the facts and the engines.
        context_tokens: Context of the engine for replies; None for the model's own.
    """

    def __init__(
        self,
        facts: ModelFacts,
        replies: ReplyEngine,
        training: TrainingEngine,
        *,
        fingerprint: str,
        described: dict[str, Any],
        context_tokens: int | None = None,
    ) -> None:
        self.facts, self.replies, self.training = facts, replies, training
        self.name, self.format, self.fingerprint = facts.source.name, facts.format, fingerprint
        self.context_tokens = min(facts.context_tokens, context_tokens or facts.context_tokens)
        self.generate, self.reference_losses, self.train = replies.generate, replies.reference_losses, training.train
        self.scores_alone = getattr(replies, "scores_alone", False)
        self._described = described

    def count_tokens(self, dialogue: Dialogue) -> int:
        """Count the tokens of the prompt, and of the reply if the last turn is one."""
        return self.format.count(dialogue)

    def describe(self) -> dict[str, Any]:
        """Return model, weights' hash, context, and what the engines told."""
        return {
            "model": self.name,
            "weights": self.fingerprint,
            **self._described,
            "context_tokens": self.context_tokens,
        }

    def save_template(self, folder: Path) -> None:
        """Save the tokenizer with the template that replies were trained in, if the model has none of its own."""
        self.format.save_plain(folder)
