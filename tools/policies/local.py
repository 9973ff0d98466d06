"""A policy in this process: one base in memory, however many adapters live on it."""

import gc
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nslora.tools.errors import ModelError, TooLongError, first_line
from nslora.tools.inference.chat_template import ChatFormat
from nslora.tools.inference.flops import rates_of
from nslora.tools.inference.weights import ModelSource, Notify, fingerprint, resolve_model
from nslora.tools.policies.settings import DeviceSettings
from nslora.tools.policy import Generated, OnProgress, TrainingJob, TrainingResult, no_progress
from nslora.tools.schema import Dialogue
from nslora.tools.training.adapters import OPTIMIZER, AdapterStore
from nslora.tools.training.lora_targets import lora_targets, peft_placement
from nslora.tools.training.settings import LoraSettings
from nslora.tools.training.snapshots import Snapshots

GENERATION_BATCH = {"cpu": 32, "cuda": 128, "mps": 64}
ADAPTERS_IN_MEMORY = 6
TRAINING = "burst"  # PEFT's name of the adapter that is being trained
# What libraries keep once a process: torch's random generator, accelerate's state, and the initialisers that
# transformers takes out while it loads a model. Of runs in several threads, one at a time loads or trains.
PROCESS_WIDE = threading.RLock()


def prepare_environment() -> None:
    """Settings that must stand before torch is imported; what the user has set is left alone.

    OpenMP threads spin while they wait: on a shared machine two spinning threads are slower than one. cuBLAS gives the
    same numbers twice only with workspaces of a fixed size, and reads that before its first product.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@contextmanager
def libraries_imported() -> Iterator[None]:
    """While inside, nothing is collected: imports make objects and no garbage, and take a tenth less (12.9 to 11.8 s
    of CPU for LangGraph, torch and transformers on a busy machine).

    Where torch comes in here, what is there at the end is left out of later collections as well: accelerate asks for
    two full ones a training job, and each walks through half a million objects of the libraries (0.3 s). Only then:
    objects that are frozen while a model is in memory would keep it there for good.
    """
    first, enabled = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
        if first:
            gc.freeze()
    finally:
        if enabled:
            gc.enable()


def silence_known_warnings() -> None:
    """Leave out warnings that nobody here can act on; every other one is shown."""
    # TRL 1.16 sets transformers' old name of the argument, and PEFT 0.21 asks for the old name of the property.
    warnings.filterwarnings("ignore", message=r".*is_activation_checkpointing.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r".*`activation_checkpointing` instead.*", category=FutureWarning)
    # The adapter of a training job is deleted as soon as it is stored; which one is active next is set before each use.
    warnings.filterwarnings("ignore", message=r"Adapter burst was active which is now deleted.*")


def unloadable(name: str, source: ModelSource, error: Exception) -> ModelError:
    return ModelError(f"The model '{name}' cannot be loaded from {source.location}: {first_line(error)}")


def refuse_unknown_targets(source: ModelSource, lora: LoraSettings) -> None:
    """Raise ModelError where LoRA is to go on what the model does not have, by its configuration: no weights are read.

    Settings that name neither modules nor a number of blocks fit every model.
    """
    if not lora.targets and not lora.top_blocks:
        return
    prepare_environment()
    with libraries_imported():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
    try:
        with PROCESS_WIDE, torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source.location))
    except (OSError, ValueError) as error:
        raise unloadable(source.name, source, error) from error
    lora_targets(model, lora, on_cpu=True)


class LocalPolicy:
    """A causal model of transformers with PEFT adapters, named by content hash and found in `adapters`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        source: ModelSource,
        adapters: AdapterStore,
        lora: LoraSettings | None = None,
        device: DeviceSettings | None = None,
    ) -> None:
        self.lora = lora or LoraSettings()
        self.adapters = adapters
        self.name = model.name_or_path = source.name  # what an adapter's config will name: no folder of a machine
        self.base = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.batch_size = (device.batch_size if device else None) or GENERATION_BATCH.get(self.device, 32)
        self.fingerprint = f"{fingerprint(source.location, model)}-{str(model.dtype).removeprefix('torch.')}"
        self.format = ChatFormat(
            tokenizer, stops_of(model), getattr(model.get_input_embeddings(), "num_embeddings", None)
        )
        config = model.config.get_text_config()
        self.context_tokens = int(getattr(config, "max_position_embeddings", 0) or 2048)
        # Before LoRA layers wrap them.
        self._targets = lora_targets(model, self.lora, on_cpu=self.device == "cpu")
        self._peft_placement = peft_placement(model, self._targets)
        self._peft: Any = None
        self._loaded: list[str] = []
        self._found_exact: dict[str, bool] = {}

    @classmethod
    def load(
        cls,
        name: str,
        *,
        adapters: Path,
        lora: LoraSettings | None = None,
        device: DeviceSettings | None = None,
        notify: Notify = lambda _: None,
    ) -> "LocalPolicy":
        """Load the model called `name` (embedded, folder or hub id). Raises ModelError."""
        prepare_environment()
        silence_known_warnings()
        with libraries_imported():
            import torch
            import transformers.modeling_utils  # noqa: F401  (every architecture needs it)
            from safetensors import SafetensorError
            from transformers import AutoModelForCausalLM, AutoTokenizer
            from transformers.utils import logging

        device = device or DeviceSettings()
        with PROCESS_WIDE:  # embedded weights are converted when they are first asked for
            source = resolve_model(name, notify)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(device.threads or default_threads())
        place = device.device or best_device()
        if place.startswith("cuda:") and place != "cuda:0":
            raise ModelError(
                f"device.device={place}: TRL trains on the first GPU that it sees. Set "
                f"CUDA_VISIBLE_DEVICES={place.removeprefix('cuda:')} and device.device=cuda."
            )
        try:
            with PROCESS_WIDE, libraries_imported():  # the architecture's module is imported here
                tokenizer = AutoTokenizer.from_pretrained(source.location)
                model = AutoModelForCausalLM.from_pretrained(
                    source.location, dtype=getattr(torch, device.dtype or best_dtype(place)), use_safetensors=True
                )
        except (OSError, ValueError, SafetensorError) as error:
            raise unloadable(name, source, error) from error
        try:
            model = model.to(place)
        except (AssertionError, RuntimeError) as error:  # no such device, or no room on it
            raise ModelError(
                f"The model '{name}' cannot be put on device.device={place}: {first_line(error)}: leave "
                "device.device out for what this machine has."
            ) from error
        return cls(model, tokenizer, source=source, adapters=AdapterStore(adapters), lora=lora, device=device)

    @property
    def device(self) -> str:
        return str(self.base.device.type)

    def describe(self) -> dict[str, Any]:
        """Model, weights' hash, device, dtype, threads, parameters, LoRA's place and rate, FLOPs of a token."""
        import torch

        return {
            "model": self.name,
            "weights": self.fingerprint,
            "device": self.device,
            "dtype": str(self.base.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "parameters": self.base.num_parameters(),
            "context_tokens": self.context_tokens,
            "lora_targets": self._targets,
            "learning_rate": self.lora.rate_for(self.base.config.get_text_config().hidden_size),
            **rates_of(self.base, len(self._targets["layers_to_transform"])),
        }

    def count_tokens(self, dialogue: Dialogue) -> int:
        return self.format.count(dialogue)

    def generate(
        self,
        dialogues: Sequence[Dialogue],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: OnProgress = no_progress,
    ) -> Generated:
        """Greedy replies, in order. Raises TooLongError where a dialogue and its reply do not fit the context."""
        from nslora.tools.inference.generation import generate_ids
        from nslora.tools.inference.memory import generation_batch

        if not dialogues:
            return Generated((), 0)
        rows = [self.format.prompt_ids(dialogue) for dialogue in dialogues]
        longest = max(len(row) for row in rows) + max_new_tokens
        if longest > self.context_tokens:
            raise TooLongError(
                f"A question with its prompt and reply takes {longest} tokens, the model's context "
                f"holds {self.context_tokens}: shorten the prompt or lower max_new_tokens."
            )
        shared = self._shared(rows, longest)
        pads = shared > 0 or self._pads(rows)
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
                batch_size=generation_batch(model, longest, self.batch_size),
            )
        return Generated(
            tuple(self.format.decode(row) for row in ids),
            sum(len(row) for row in ids),
            frozenset(i for i, row in enumerate(ids) if not self.format.ended(row)),
        )

    def reference_losses(
        self, dialogues: Sequence[Dialogue], references: Sequence[str], *, adapter: str | None
    ) -> list[float]:
        """Mean negative log-likelihood of each reference (end of turn included), nats per token."""
        from nslora.tools.inference.likelihood import completion_losses
        from nslora.tools.inference.memory import scoring_batch

        rows = [
            self.format.pair_ids(dialogue, reference) for dialogue, reference in zip(dialogues, references, strict=True)
        ]
        # What stands beyond the context is left out, as TRL's max_length does: this loss only informs.
        rows = [(prompt, completion[: max(1, self.context_tokens - len(prompt))]) for prompt, completion in rows]
        longest = max((len(prompt) + len(completion) for prompt, completion in rows), default=0)
        shared = self._shared([prompt for prompt, _ in rows], longest)
        with self.using(adapter) as model:
            size = scoring_batch(model, longest, max((len(each) for _, each in rows), default=0), self.batch_size)
            return completion_losses(model, rows, pad_id=self.format.pad_id, batch_size=size, shared=shared)

    def _shared(self, prompts: Sequence[Sequence[int]], longest: int) -> int:
        """Tokens that the prompts share and that may be computed once, by a probe."""
        from nslora.tools.inference.generation import shareable_prefix

        shared = shareable_prefix(self.base, prompts, longest)
        return shared if shared and self._alike("prefix cache", prompts, shared) else 0

    def _pads(self, prompts: Sequence[Sequence[int]]) -> bool:
        """Whether prompts of different lengths may go in one batch, by a probe."""
        return len({len(row) for row in prompts}) < 2 or self._alike("padding", prompts, 0)

    def _alike(self, what: str, prompts: Sequence[Sequence[int]], shared: int) -> bool:
        """Whether this model bears it: asked once, and again where prompts are twice as long as any it was asked of."""
        from nslora.tools.inference.generation import replies_alike
        from nslora.tools.training.trainer import probed

        doublings = max(len(row) for row in prompts).bit_length()
        with self.using(None) as base:
            return probed(
                self._found_exact,
                f"{what} below {2**doublings} tokens",
                lambda: replies_alike(base, prompts, shared, self.format.pad_id),
            )

    def train(self, job: TrainingJob, on_progress: OnProgress = no_progress) -> TrainingResult:
        """Train a new adapter (or a copy of `training job.start`) and store it.

        Raises DivergedError, TooLongError, ModelError.
        """
        from nslora.tools.inference.memory import ran_out
        from nslora.tools.training.batches import BatchPlan, TokenRow
        from nslora.tools.training.memory import LOWER
        from nslora.tools.training.trainer import REPEATABLE, Outcome, lacks_fixed_order, train

        with libraries_imported():
            import trl.trainer.sft_trainer  # noqa: F401

        pairs = [self.format.pair_ids(row.dialogue, row.completion) for row in job.rows]
        if not pairs:
            raise ModelError("A burst of training was asked for without rows.")
        longest = max(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        if (tokens := sum(map(len, pairs[longest]))) > self.context_tokens:
            raise TooLongError(
                f"The train row {job.rows[longest].source} with its prompt and reply takes {tokens} "
                f"tokens, the model's context holds {self.context_tokens}: shorten or remove that row."
            )
        rows = tuple(TokenRow(tuple(prompt), tuple(completion)) for prompt, completion in pairs)
        plan = BatchPlan(rows, job.epochs, job.seed, self.format.pad_id, self.lora)
        start_optimizer = self.adapters.path(job.start) / OPTIMIZER if job.start else None

        def attempt() -> Outcome:
            progress = Snapshots(job.progress, start_optimizer=start_optimizer)
            return train(self._new_adapter(job), self.tokenizer, plan, progress, self._found_exact, on_progress)

        with PROCESS_WIDE:
            try:
                try:
                    outcome = attempt()
                except RuntimeError as error:
                    if ran_out(error):
                        raise ModelError(f"A burst of training ran out of memory: {LOWER}.") from error
                    if not self._found_exact.get(REPEATABLE, True) or not lacks_fixed_order(error):
                        raise
                    self._found_exact[REPEATABLE] = False
                    outcome = attempt()
                name = self._store(outcome.moments)
            finally:
                self._forget(TRAINING)
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

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[Any]:
        """The model with this adapter in force, or the untouched base, for as long as the block lasts."""
        if adapter is None and self._peft is None:
            yield self.base
        elif adapter is None:
            # PeftModel.disable_adapter() asks for an active adapter, which is gone after a training job was forgotten.
            self._peft.base_model.disable_adapter_layers()
            try:
                yield self.base
            finally:
                self._peft.base_model.enable_adapter_layers()
        else:
            self._load(adapter)
            self._peft.set_adapter(adapter)
            self._peft.requires_grad_(False)
            yield self.base

    def _load(self, adapter: str) -> None:
        """Bring an adapter into memory; the one that was used least recently makes room."""
        if adapter in self._loaded:
            self._loaded.remove(adapter)
        else:
            with PROCESS_WIDE:
                self._attach(self.adapters.path(adapter), adapter, trainable=False)
        self._loaded.append(adapter)
        while len(self._loaded) > ADAPTERS_IN_MEMORY:
            self._forget(self._loaded.pop(0))

    def _attach(self, folder: Path, name: str, *, trainable: bool) -> None:
        from peft import PeftModel

        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self.base, folder, adapter_name=name, is_trainable=trainable)
        else:
            if self._peft.active_adapter not in self._peft.peft_config:
                # The training job's was active and is deleted. Where transformers converts a model's weights (experts
                # as one tensor), PEFT 0.21 asks for the active adapter's config while it loads another.
                self._peft.active_adapter = name
            self._peft.load_adapter(folder, adapter_name=name, is_trainable=trainable)

    def _new_adapter(self, job: TrainingJob) -> Any:
        """A PeftModel whose trainable adapter is a copy of the start, or new with weights drawn from the seed."""
        import torch
        from peft import get_peft_model

        self._forget(TRAINING)
        # Always re-seeded: dropout, where there is any, draws from this generator too.
        torch.manual_seed(job.seed)
        if job.start is not None:
            self._attach(self.adapters.path(job.start), TRAINING, trainable=True)
        elif self._peft is None:
            self._peft = get_peft_model(self.base, self._lora_config(), adapter_name=TRAINING)
        else:
            self._peft.add_adapter(TRAINING, self._lora_config())
        self._peft.set_adapter(TRAINING)
        for name, parameter in self._peft.named_parameters():
            parameter.requires_grad_(f".{TRAINING}." in name)
        return self._peft

    def _lora_config(self) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.name,
            r=self.lora.rank,
            lora_alpha=self.lora.alpha,
            lora_dropout=self.lora.dropout,
            use_rslora=self.lora.use_rslora,
            use_dora=self.lora.use_dora,
            **self._peft_placement,
        )

    def _store(self, moments: dict[str, Any]) -> str:
        """Save the trained adapter under the hash of its content."""
        from safetensors.torch import save_file

        self.adapters.folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=self.adapters.folder, prefix=".partial-"))
        try:
            self._peft.save_pretrained(scratch, selected_adapters=[TRAINING], save_embedding_layers=False)
            save_file(moments, scratch / TRAINING / OPTIMIZER)
            return self.adapters.add(scratch / TRAINING)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _forget(self, name: str) -> None:
        if self._peft is not None and name in self._peft.peft_config:
            self._peft.delete_adapter(name)


def stops_of(model: Any) -> tuple[int, ...]:
    """The end tokens of the model's own generation config."""
    end = getattr(model.generation_config, "eos_token_id", None)
    return () if end is None else (end,) if isinstance(end, int) else tuple(end)


def default_threads() -> int:
    """Cores that this process may run on, `OMP_NUM_THREADS` first."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return (
        int(wanted)
        if wanted.isdigit() and int(wanted)
        else len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


def best_device() -> str:
    """CUDA, then MPS, then the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def best_dtype(device: str) -> str:
    """bfloat16 where a GPU has it, float32 elsewhere.

    A CPU stays at float32, also where it has bf16 instructions: rounding then depends on the shape of a batch, and a
    reply on which others were asked with it.
    """
    import torch

    has_units = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_units else "float32"
