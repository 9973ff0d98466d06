"""A pair of tiny random models: every weight of the adapter matters, and so does the prompt."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nslora.tools.export.pair import Pair
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.testing.tiny_model import Family
from nslora.tools.training.adapters import AdapterStore

PROMPT = Prompt("Be brief.", "Q: {question}\nA?", (Demonstration("Who?", '{"answer": "it\'s \\"me\\""}'),))
QUESTIONS = ("Who keeps the mill?", "The bridge is kept by whom?", "Name the keeper.")
LENGTH = 12


@dataclass(frozen=True)
class Known:
    """A pair, and what the run itself replies to `QUESTIONS` with it, and with the bare base."""

    pair: Pair
    replies: tuple[str, ...]
    base_replies: tuple[str, ...]


@pytest.fixture(scope="session")
def known_pair(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Known]:
    """Makes a pair on a tiny model of a family."""
    made: dict[Family, Known] = {}

    def known(family: Family = "llama") -> Known:
        if family not in made:
            made[family] = make_pair(tiny_folder(family), tmp_path_factory.mktemp("pair"))
        return made[family]

    return known


def make_pair(model: Path, folder: Path) -> Known:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    # Small random weights repeat the last token, whatever is asked. With large ones every token counts.
    base = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for name, weight in base.named_parameters():
            weight.mul_(25 if weight.dim() == 2 and "embed" not in name else 1)
    model = shutil.copytree(model, folder / "base")
    base.save_pretrained(model)
    torch.manual_seed(1)
    modules = ["v_proj", "o_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=2, target_modules=modules, init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(folder / "one")
    store = AdapterStore(folder / "adapters")
    adapter = store.take(folder / "one")
    policy = LocalPolicy.load(str(model), adapters=store.folder)
    pair = Pair("known", str(model), policy.fingerprint, store.path(adapter), PROMPT, facts={"adapter": adapter})
    asked = [PROMPT.messages(question) for question in QUESTIONS]
    bare = [[{"role": "user", "content": question}] for question in QUESTIONS]
    own = policy.generate(asked, adapter=adapter, max_new_tokens=LENGTH).replies
    assert all(own)
    assert len({*own}) == len(own)
    return Known(pair, own, policy.generate(bare, adapter=None, max_new_tokens=LENGTH).replies)
