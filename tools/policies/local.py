"""A policy in this process: one base in memory, and any number of LoRA adapters on it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nslora.tools.errors import ModelError, first_line
from nslora.tools.inference.chat_template import ChatFormat
from nslora.tools.inference.weights import ModelSource, Notify, resolve_model
from nslora.tools.policies.adapter_proof import Row, write_proof
from nslora.tools.policies.environment import (
    PROCESS_WIDE,
    best_device,
    best_dtype,
    default_threads,
    libraries_imported,
    prepare_environment,
    silence_known_warnings,
)
from nslora.tools.policies.facts import ModelFacts
from nslora.tools.policies.loading import UNLOADABLE, refuse_encoder, refuse_missing_quantizer, unloadable
from nslora.tools.policies.peft_adapters import PeftAdapters
from nslora.tools.policies.settings import DeviceSettings
from nslora.tools.policy import (
    Generated,
    OnProgress,
    OnStep,
    Sampling,
    Thinking,
    TrainingJob,
    TrainingResult,
    no_progress,
)
from nslora.tools.schema import Dialogue
from nslora.tools.training.adapters import OPTIMIZER, AdapterStore
from nslora.tools.training.lora_targets import lora_targets, peft_placement
from nslora.tools.training.processes import is_first
from nslora.tools.training.settings import LoraSettings
from nslora.tools.training.snapshots import Snapshots
from nslora.tools.training.start_adapter import lora_settings_of, refuse_other_base

if TYPE_CHECKING:
    from nslora.tools.training.batches import BatchPlan
    from nslora.tools.training.outcome import Outcome

GENERATION_BATCH = {"cpu": 32, "cuda": 128, "mps": 64}


def fitted(
    source: ModelSource,
    lora: LoraSettings,
    *,
    thinking: Thinking = "off",
    adapter: Path | None = None,
    notify: Notify = lambda _: None,
) -> LoraSettings:
    """Check a model's configuration, tokenizer, packages and start adapter before its weights are read.

    Args:
        source: The model.
        lora: The settings of the run.
        thinking: Whether replies begin with thinking.
        adapter: PEFT folder that the run starts from.
        notify: Called with a remark about the adapter's base.

    Returns:
        The LoRA settings; rank, alpha and place are those of the start adapter, if there is one.

    Raises:
        ModelError: If it is no causal model, a package is missing, its chat template cannot be used, it lacks a module
            that LoRA is to target, it has fewer blocks than `lora.top_blocks`, or the adapter does not fit it.
    """
    prepare_environment()
    with libraries_imported():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    try:
        with PROCESS_WIDE:
            config = AutoConfig.from_pretrained(source.location)
            refuse_encoder(source, config)
            refuse_missing_quantizer(config)
            tokenizer = AutoTokenizer.from_pretrained(source.location)
            if lora.targets or lora.top_blocks or adapter:
                with torch.device("meta"):
                    model = AutoModelForCausalLM.from_config(config)
    except UNLOADABLE as error:
        raise unloadable(source, error) from error
    ChatFormat(tokenizer, thinking=thinking).refuse_unusable(source.name)
    if adapter:
        refuse_other_base(adapter, model, source, notify)
        lora = lora_settings_of(adapter, lora, config.get_text_config().num_hidden_layers)
    if lora.targets or lora.top_blocks:
        lora_targets(model, lora, on_cpu=True)
    return lora


class LocalPolicy:
    """A causal model of transformers with PEFT adapters, which are named by content hash.

    Args:
        model: The base, on its device.
        tokenizer: Its tokenizer.
        source: Its name and location.
        adapters: The adapters on disk.
        lora: Settings of training jobs.
        device: Its `batch_size` limits generation.
        thinking: Whether replies begin with thinking.
        shards: Parts of each training batch, see `BatchPlan`.
        proves: Whether each new adapter gets a proof, see `adapter_proof.py`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        source: ModelSource,
        adapters: AdapterStore,
        lora: LoraSettings | None = None,
        device: DeviceSettings | None = None,
        thinking: Thinking = "off",
        shards: int = 1,
        proves: bool = False,
    ) -> None:
        self.lora = lora or LoraSettings()
        self.adapters, self.shards, self.proves = adapters, shards, proves
        model.name_or_path = source.name  # PEFT writes it into an adapter's config, so no local folder
        self.base = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.batch_size = (device.batch_size if device else None) or GENERATION_BATCH.get(self.device, 32)
        # Before PEFT wraps the linear modules.
        self.facts = ModelFacts.of(
            model, tokenizer, source=source, lora=self.lora, thinking=thinking, on_cpu=self.device == "cpu"
        )
        self.name, self.context_tokens, self.format = source.name, self.facts.context_tokens, self.facts.format
        self.fingerprint = f"{self.facts.weights}-{str(model.dtype).removeprefix('torch.')}"
        self.peft = PeftAdapters(self.base, adapters, peft_placement(model, self.facts.targets))
        self._found_exact: dict[str, bool] = {}

    @classmethod
    def load(
        cls,
        name: str,
        *,
        adapters: Path,
        lora: LoraSettings | None = None,
        device: DeviceSettings | None = None,
        thinking: Thinking = "off",
        shards: int = 1,
        proves: bool = False,
        notify: Notify = lambda _: None,
    ) -> "LocalPolicy":
        """Load a model.

        Args:
            name: The embedded model, a folder, or a hub id.
            adapters: Folder of the adapters.
            lora: Settings of training jobs.
            device: Where and how to compute.
            thinking: Whether replies begin with thinking.
            shards: Parts of each training batch.
            proves: Whether each new adapter gets a proof.
            notify: Called with a sentence if the embedded model is converted first.

        Raises:
            ModelError: If the model cannot be loaded, or not on this device.
        """
        prepare_environment()
        silence_known_warnings()
        with libraries_imported():
            import torch
            import transformers.modeling_utils  # noqa: F401  (every architecture needs it)
            from safetensors import SafetensorError
            from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
            from transformers.utils import logging

        device = device or DeviceSettings()
        with PROCESS_WIDE:  # the first use converts the embedded weights
            source = resolve_model(name, notify)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(device.threads or default_threads())
        place = device.device or best_device()
        if place.startswith("cuda:") and place != "cuda:0":
            raise ModelError(
                f"device.device is {place}, but TRL trains on the first GPU that it sees: set "
                f"CUDA_VISIBLE_DEVICES={place.removeprefix('cuda:')} and device.device=cuda."
            )
        dtype = getattr(torch, device.dtype or best_dtype(place))
        try:
            with PROCESS_WIDE, libraries_imported():  # imports the architecture's module
                tokenizer = AutoTokenizer.from_pretrained(source.location)
                config = AutoConfig.from_pretrained(source.location)
                # Packages of quantised weights choose their kernels by the device while they load.
                on_device = {"device_map": {"": place}} if getattr(config, "quantization_config", None) else {}
                model = AutoModelForCausalLM.from_pretrained(
                    source.location, dtype=dtype, use_safetensors=True, **on_device
                )
                if on_device:
                    from peft import prepare_model_for_kbit_training

                    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        except (*UNLOADABLE, SafetensorError) as error:
            raise unloadable(source, error) from error
        try:
            model = model.to(place)
        except (AssertionError, RuntimeError) as error:  # no such device, or not enough memory on it
            raise ModelError(
                f"The model '{name}' cannot be put on device.device={place} ({first_line(error)}): leave device.device "
                "out to use the best device of this machine."
            ) from error
        store = AdapterStore(adapters)
        named: dict[str, Any] = {"lora": lora, "device": device, "thinking": thinking, "shards": shards}
        return cls(model, tokenizer, source=source, adapters=store, proves=proves, **named)

    @property
    def device(self) -> str:
        """The type of the base's device: "cpu", "cuda" or "mps"."""
        return str(self.base.device.type)

    def describe(self) -> dict[str, Any]:
        """Return model, weights' hash, device, dtype, threads, parameters, LoRA's place and rate, FLOPs per token."""
        import torch

        return {
            "model": self.name,
            "weights": self.fingerprint,
            "device": self.device,
            "dtype": str(self.base.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            **self.facts.describe(self.lora),
            **({"shards": self.shards} if self.shards > 1 else {}),
        }

    def count_tokens(self, dialogue: Dialogue) -> int:
        """Count the tokens of the prompt, and of the reply if the last turn is one."""
        return self.format.count(dialogue)

    def save_template(self, folder: Path) -> None:
        """Save the tokenizer with the template that replies were trained in, if the model has none of its own."""
        self.format.save_plain(folder)

    def using(self, adapter: str | None) -> AbstractContextManager[Any]:
        """Return a context manager that yields the base with this adapter active, or without any for None."""
        return self.peft.using(adapter)

    def generate(
        self,
        dialogues: Sequence[Dialogue],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: OnProgress = no_progress,
        sampling: Sampling | None = None,
    ) -> Generated:
        """Generate replies, in order.

        Args:
            dialogues: The dialogues, each up to the turn before the reply.
            adapter: Hash of the adapter, None for the base alone.
            max_new_tokens: Length limit of a reply.
            on_progress: Called with (replies done, all replies) after each batch.
            sampling: Draws them; None for greedy replies.

        Raises:
            TooLongError: If a dialogue with its reply does not fit the context.
            ModelError: If a single dialogue runs out of memory.
        """
        from nslora.tools.inference.generation import generate_ids
        from nslora.tools.inference.memory import first_batch_size

        if not dialogues:
            return Generated((), 0)
        rows = self.facts.prompts(dialogues, max_new_tokens)
        longest = max(len(row) for row in rows) + max_new_tokens
        shared = self._shared(rows, longest)
        one_length = len({len(row) for row in rows}) == 1
        pads = shared > 0 or one_length or self._alike("padding", rows, 0)
        with self.using(adapter) as model:
            ids = generate_ids(
                model,
                rows,
                max_new_tokens=max_new_tokens,
                stop_ids=self.format.stop_ids,
                pad_id=self.format.pad_id,
                on_progress=on_progress,
                shared=shared,
                pads=pads,
                batch_size=first_batch_size(model, longest, self.batch_size),
                sampling=sampling,
            )
        return Generated(
            tuple(self.format.decode(row) for row in ids),
            sum(len(row) for row in ids),
            frozenset(i for i, row in enumerate(ids) if not self.format.ended(row)),
        )

    def reference_losses(
        self, dialogues: Sequence[Dialogue], references: Sequence[str], *, adapter: str | None
    ) -> list[float]:
        """Return the mean negative log-likelihood of each reference with its end of turn, nats per token.

        Tokens beyond the context are left out, as TRL's `max_length` does.
        """
        return self._losses(self.facts.pairs(dialogues, references), adapter)

    def _losses(self, rows: Sequence[Row], adapter: str | None) -> list[float]:
        """The losses of rows of token ids."""
        from nslora.tools.inference.likelihood import completion_losses
        from nslora.tools.inference.memory import first_batch_size

        longest = max((len(prompt) + len(completion) for prompt, completion in rows), default=0)
        shared = self._shared([prompt for prompt, _ in rows], longest)
        scored = max((len(completion) for _, completion in rows), default=0)
        with self.using(adapter) as model:
            size = first_batch_size(model, longest, self.batch_size, scored=scored)
            return completion_losses(model, rows, pad_id=self.format.pad_id, batch_size=size, shared=shared)

    def _shared(self, prompts: Sequence[Sequence[int]], longest: int) -> int:
        """Count the tokens that the prompts share, if a probe finds that computing them once is exact."""
        from nslora.tools.inference.generation import shareable_prefix

        shared = shareable_prefix(self.base, prompts, longest)
        return shared if shared and self._alike("prefix cache", prompts, shared) else 0

    def _alike(self, what: str, prompts: Sequence[Sequence[int]], shared: int) -> bool:
        """Return whether the base replies alike with a shared prefix or padding; probed again at each double length."""
        from nslora.tools.inference.generation import replies_alike
        from nslora.tools.training.shortcuts import probed

        doublings = max(len(row) for row in prompts).bit_length()
        with self.using(None) as base:
            return probed(
                self._found_exact,
                f"{what} below {2**doublings} tokens",
                lambda: replies_alike(base, prompts, shared, self.format.pad_id),
            )

    def train(self, job: TrainingJob, on_progress: OnStep = no_progress) -> TrainingResult:
        """Train a new adapter, or a copy of `job.start`, and store it.

        Raises:
            DivergedError: If a loss is not finite or above its bound.
            TooLongError: If a row does not fit the context.
            ModelError: If there are no rows, or the job does not fit the memory.
        """
        return self.train_plan(self.facts.plan(job, self.lora, self.shards), job, on_progress)

    def train_plan(self, plan: "BatchPlan", job: TrainingJob, on_progress: OnStep = no_progress) -> TrainingResult:
        """Train by a plan; of several processes that do so together, the first one stores the adapter.

        Args:
            plan: Rows, order and settings.
            job: Its seed, start adapter and folder of snapshots.
            on_progress: Called with (steps done, all steps).
        """
        import torch
        from accelerate.utils.memory import should_reduce_batch_size

        from nslora.tools.training.memory import LOWER

        with libraries_imported():
            import trl.trainer.sft_trainer  # noqa: F401

        with PROCESS_WIDE:
            try:
                outcome = self._trained(job, plan, on_progress)
                name = self.peft.save(outcome.moments) if is_first() else ""
            except RuntimeError as error:
                if should_reduce_batch_size(error):
                    raise ModelError(f"A training job ran out of memory: {LOWER}.") from error
                raise
            finally:
                self.peft.forget()
        if self.proves and is_first():
            rows = [(row.prompt_ids, row.completion_ids) for row in plan.rows]
            write_proof(self.adapters, name, rows, self._losses, exact=self.base.dtype == torch.float32)
        return TrainingResult(
            adapter=name,
            steps=len(outcome.log),
            steps_done=outcome.steps_done,
            trained_tokens=outcome.trained_tokens,
            epoch_losses=outcome.per_epoch("loss"),
            grad_norms=outcome.per_epoch("grad_norm"),
            wall_s=outcome.wall_s,
            fast_path=outcome.fast_path,
            log=tuple(outcome.log),
        )

    def _trained(self, job: TrainingJob, plan: "BatchPlan", on_progress: OnStep) -> "Outcome":
        """Train with deterministic kernels; if this base lacks one, train again with the usual ones."""
        from nslora.tools.training.trainer import REPEATABLE, lacks_fixed_order, train

        def attempt() -> "Outcome":
            start_optimizer = self.adapters.path(job.start) / OPTIMIZER if job.start else None
            progress = Snapshots(job.progress, start_optimizer, writes=is_first())
            model = self.peft.begin(job, plan.settings)
            return train(model, self.tokenizer, plan, progress, self._found_exact, on_progress)

        try:
            return attempt()
        except RuntimeError as error:
            if not self._found_exact.get(REPEATABLE, True) or not lacks_fixed_order(error):
                raise
            self._found_exact[REPEATABLE] = False
        return attempt()
