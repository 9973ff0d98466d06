"""What a policy knows of its model without computing with it: name, hash, template, context, place of LoRA."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nslora.tools.errors import ModelError, TooLongError
from nslora.tools.inference.chat_template import ChatFormat
from nslora.tools.inference.flops import rates_of
from nslora.tools.inference.weights import ModelSource, Notify, fingerprint, resolve_model
from nslora.tools.policies.environment import (
    PROCESS_WIDE,
    libraries_imported,
    prepare_environment,
    silence_known_warnings,
)
from nslora.tools.policies.loading import UNLOADABLE, unloadable
from nslora.tools.policy import Thinking, TrainingJob
from nslora.tools.schema import Dialogue
from nslora.tools.training.lora_targets import lora_targets
from nslora.tools.training.settings import LoraSettings

if TYPE_CHECKING:
    from nslora.tools.training.batches import BatchPlan


@dataclass(frozen=True)
class ModelFacts:
    """The facts of one model, which turn dialogues and training rows into token ids.

    Attributes:
        source: Name and location.
        weights: Hash of the weights and the chat template; with the dtype it is a policy's fingerprint.
        context_tokens: Length of the context.
        format: Chat template and end tokens.
        targets: Place of LoRA, see `lora_targets`.
        repetition_penalty: Of the model's generation config, which greedy generation applies.
        width: Hidden size, on which the default learning rate depends.
        sizes: Parameters, and FLOPs per token (`tools/inference/flops.py`).
    """

    source: ModelSource
    weights: str
    context_tokens: int
    format: ChatFormat
    targets: dict[str, Any]
    repetition_penalty: float
    width: int
    sizes: dict[str, float]

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, *, source: ModelSource, lora: LoraSettings, thinking: Thinking, on_cpu: bool
    ) -> "ModelFacts":
        """Read the facts from a model without adapters.

        Args:
            model: The model, or its skeleton on the device `meta`.
            tokenizer: Its tokenizer.
            source: Its name and location.
            lora: Settings of training jobs.
            thinking: Whether replies begin with thinking.
            on_cpu: Whether training is on a CPU, where LoRA goes on the top third of the blocks by default.
        """
        config = model.config.get_text_config()
        embeddings = getattr(model.get_input_embeddings(), "num_embeddings", None)
        written = ChatFormat(tokenizer, _stops_of(model), embeddings, thinking)
        context = int(getattr(config, "max_position_embeddings", 0) or 2048)
        targets = lora_targets(model, lora, on_cpu=on_cpu)
        sizes = {"parameters": model.num_parameters(), **rates_of(model, len(targets["layers_to_transform"]))}
        weights = f"{fingerprint(source.location, model)}{written.revision}"
        penalty = float(getattr(model.generation_config, "repetition_penalty", None) or 1.0)
        return cls(source, weights, context, written, targets, penalty, config.hidden_size, sizes)

    @classmethod
    def read(
        cls, name: str, *, lora: LoraSettings, thinking: Thinking, on_cpu: bool, notify: Notify = lambda _: None
    ) -> "ModelFacts":
        """Read the facts of a model from its files, without its weights; the arguments are those of `of`.

        Raises:
            ModelError: If it cannot be found or read.
        """
        prepare_environment()
        silence_known_warnings()
        with PROCESS_WIDE:
            source = resolve_model(name, notify)
            try:
                tokenizer, model = tokenizer_of(source), skeleton_of(source)
            except UNLOADABLE as error:
                raise unloadable(source, error) from error
            return cls.of(model, tokenizer, source=source, lora=lora, thinking=thinking, on_cpu=on_cpu)

    def skeleton(self) -> Any:
        """Return the model without weights, on the device `meta`."""
        with PROCESS_WIDE:
            return skeleton_of(self.source)

    def describe(self, lora: LoraSettings) -> dict[str, Any]:
        """Return parameters, context, LoRA's place and rate, FLOPs per token, for `Policy.describe`."""
        return {
            "context_tokens": self.context_tokens,
            "lora_targets": self.targets,
            "learning_rate": lora.rate_for(self.width),
            **self.sizes,
        }

    def prompts(self, dialogues: Sequence[Dialogue], max_new_tokens: int) -> list[list[int]]:
        """Return the token ids of the dialogues. Raises TooLongError if one does not fit the context with its reply."""
        rows = [self.format.prompt_ids(dialogue) for dialogue in dialogues]
        longest = max((len(row) for row in rows), default=0) + max_new_tokens
        if longest > self.context_tokens:
            raise TooLongError(
                f"A question with its prompt and reply takes {longest} tokens, but the model's context holds "
                f"{self.context_tokens}: shorten the prompt or lower max_new_tokens."
            )
        return rows

    def pairs(
        self, dialogues: Sequence[Dialogue], references: Sequence[str], spare: int = 0
    ) -> list[tuple[list[int], list[int]]]:
        """Return the token ids of each dialogue and of its reference, as far as the context less `spare` holds them."""
        pairs = [self.format.pair_ids(*pair) for pair in zip(dialogues, references, strict=True)]
        most = self.context_tokens - spare
        return [(prompt, completion[: max(1, most - len(prompt))]) for prompt, completion in pairs]

    def plan(self, job: TrainingJob, lora: LoraSettings, shards: int = 1) -> "BatchPlan":
        """Return the plan of a training job. Raises TooLongError if a row does not fit, ModelError without rows."""
        from nslora.tools.training.batches import BatchPlan, TokenRow

        if not job.rows:
            raise ModelError("A training job has no rows: give it at least one.")
        pairs = [self.format.pair_ids(row.dialogue, row.completion) for row in job.rows]
        rows = tuple(TokenRow(tuple(prompt), tuple(completion)) for prompt, completion in pairs)
        tokens, source = max((len(row), job_row.source) for row, job_row in zip(rows, job.rows, strict=True))
        if tokens > self.context_tokens:
            raise TooLongError(
                f"The train row {source} with its prompt and reply takes {tokens} tokens, but the model's context "
                f"holds {self.context_tokens}: shorten or remove that row."
            )
        return BatchPlan(rows, job.epochs, job.seed, self.format.pad_id, lora, shards)


def tokenizer_of(source: ModelSource) -> Any:
    """Load a model's tokenizer."""
    with libraries_imported():
        from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source.location)


def skeleton_of(source: ModelSource) -> Any:
    """Make a model on the device `meta` from its configuration, with its generation config."""
    with libraries_imported():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(source.location)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.name_or_path = source.name
    with suppress(OSError):  # it has no generation config
        model.generation_config = GenerationConfig.from_pretrained(source.location)
    return model


def _stops_of(model: Any) -> tuple[int, ...]:
    """Return the end tokens of the model's generation config."""
    end = getattr(model.generation_config, "eos_token_id", None)
    return () if end is None else (end,) if isinstance(end, int) else tuple(end)
