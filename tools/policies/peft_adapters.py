"""The adapters of one base in memory, through PEFT."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nslora.tools.policies.environment import PROCESS_WIDE
from nslora.tools.policy import TrainingJob
from nslora.tools.training.adapters import OPTIMIZER, AdapterStore
from nslora.tools.training.settings import LoraSettings

MOST_IN_MEMORY = 6
JOB = "job"  # PEFT's name of the adapter that is being trained


class PeftAdapters:
    """Puts stored adapters on a base, and makes and stores new ones.

    Attributes:
        base: The base model, whose modules PEFT wraps in place.
        store: The adapters on disk.
        placement: Where LoRA goes, as keyword arguments of PEFT's LoraConfig.
    """

    def __init__(self, base: Any, store: AdapterStore, placement: dict[str, Any]) -> None:
        self.base, self.store, self.placement = base, store, placement
        self._peft: Any = None
        self._loaded: list[str] = []  # the least recently used first

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[Any]:
        """Yield the base with this adapter active, or without any adapter for None."""
        if adapter is not None:
            self._load(adapter)
            self._peft.set_adapter(adapter)
            self._peft.requires_grad_(False)
            yield self.base
        elif self._peft is None:
            yield self.base
        else:
            # PeftModel.disable_adapter() needs an active adapter, and the last one may be deleted.
            self._peft.base_model.disable_adapter_layers()
            try:
                yield self.base
            finally:
                self._peft.base_model.enable_adapter_layers()

    def begin(self, job: TrainingJob, lora: LoraSettings) -> Any:
        """Return a PeftModel whose only trainable adapter is a copy of `job.start`, or new from the seed."""
        import torch
        from peft import LoraConfig, get_peft_model

        self.forget()
        torch.manual_seed(job.seed)  # for a copy too, because dropout draws from this generator
        config = LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.base.name_or_path,
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            use_rslora=lora.use_rslora,
            use_dora=lora.use_dora,
            **self.placement,
        )
        if job.start is not None:
            self._attach(self.store.path(job.start), JOB, trainable=True)
        elif self._peft is None:
            self._peft = get_peft_model(self.base, config, adapter_name=JOB)
        else:
            self._peft.add_adapter(JOB, config)
        self._peft.set_adapter(JOB)
        for name, parameter in self._peft.named_parameters():
            parameter.requires_grad_(f".{JOB}." in name)
        return self._peft

    def save(self, moments: dict[str, Any]) -> str:
        """Store the trained adapter with its optimizer state, and return its content hash."""
        from safetensors.torch import save_file

        self.store.folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=self.store.folder, prefix=".partial-"))
        try:
            self._peft.save_pretrained(scratch, selected_adapters=[JOB], save_embedding_layers=False)
            save_file(moments, scratch / JOB / OPTIMIZER)
            return self.store.add(scratch / JOB)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def forget(self, name: str = JOB) -> None:
        """Remove an adapter from memory, if it is there; by default the one of the last training job."""
        if self._peft is not None and name in self._peft.peft_config:
            self._peft.delete_adapter(name)

    def _load(self, adapter: str) -> None:
        """Load an adapter if it is not in memory; the least recently used one makes room."""
        if adapter in self._loaded:
            self._loaded.remove(adapter)
        else:
            with PROCESS_WIDE:
                self._attach(self.store.path(adapter), adapter, trainable=False)
        self._loaded.append(adapter)
        while len(self._loaded) > MOST_IN_MEMORY:
            self.forget(self._loaded.pop(0))

    def _attach(self, folder: Path, name: str, *, trainable: bool) -> None:
        from peft import PeftModel

        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self.base, folder, adapter_name=name, is_trainable=trainable)
            return
        if self._peft.active_adapter not in self._peft.peft_config:
            # The active adapter is deleted. If transformers converts a model's weights (experts as one tensor), PEFT
            # 0.21 reads the active adapter's config while it loads another.
            self._peft.active_adapter = name
        self._peft.load_adapter(folder, adapter_name=name, is_trainable=trainable)
