"""Compute of a run in one currency: model FLOPs, by formula.

    forward    2 N per token           N: parameters that stand in a matrix product (embedding look-ups left out)
    training   2 N + 2 N_above         N_above: of the blocks that gradients pass through (the lowest one with LoRA
                                       and all above it) and of the head; frozen weights have no gradient of their own

After Kaplan et al. 2020 (arXiv 2001.08361), eq. 2.1, without the attention scores: below 5 % at the few hundred tokens
of a question with its demonstrations. Counted is what was asked of the model, prompt and reply, whether a cache or a
short cut answered: the same decisions cost the same everywhere, and no strategy buys its result with another's replies.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nslora.tools.inference.reply_cache import ReplyCache, reply_key
from nslora.tools.schema import Dialogue

if TYPE_CHECKING:
    from nslora.tools.policy import Policy

FLOP_PER_PARAMETER = 2  # one multiplication and one addition
TERA = 1e12
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")  # names in configs


@dataclass(frozen=True)
class FlopRates:
    """Model FLOPs of one token that goes forward, and of one that is trained on; 0 where a policy does not say."""

    forward: float = 0.0
    training: float = 0.0

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "FlopRates":
        """From a policy's `describe()`."""
        return cls(float(facts.get("forward_flop_per_token", 0.0)), float(facts.get("training_flop_per_token", 0.0)))


def rates_of(model: Any, trained_blocks: int) -> dict[str, float]:
    """The two rates of a causal model of transformers with LoRA on its top `trained_blocks` blocks."""
    from nslora.tools.inference.decoder import blocks_of

    decoder, name = blocks_of(model)
    blocks = getattr(decoder, name)
    head, share = weights(model.get_output_embeddings()), expert_share(model)
    body = [weights(block, share) for block in blocks]
    forward = sum(body) + head
    above = sum(body[len(body) - trained_blocks :]) + head
    return {
        "forward_flop_per_token": FLOP_PER_PARAMETER * float(forward),
        "training_flop_per_token": FLOP_PER_PARAMETER * float(forward + above),
    }


def weights(module: Any, expert_share: float = 1.0) -> float:
    """Parameters of a module's matrices, those of adapters left out; of experts, the share that a token meets."""
    return float(
        sum(
            p.numel() * (expert_share if ".experts." in name else 1.0)
            for name, p in module.named_parameters()
            if p.dim() > 1 and "lora_" not in name
        )
    )


def expert_share(model: Any) -> float:
    """The share of a mixture's experts that one token goes through; 1 for any other model."""
    config = model.config.get_text_config()
    experts = next((count for name in EXPERT_COUNTS if (count := getattr(config, name, None))), None)
    active = getattr(config, "num_experts_per_tok", None)
    return float(active / experts) if experts and active else 1.0


def token_counts(policy: "Policy", cache: ReplyCache | None, dialogues: Sequence[Dialogue]) -> list[int]:
    """Tokens of each dialogue, remembered beside the replies: a replay then needs not even the tokenizer."""
    keys = [reply_key(policy.fingerprint, None, json.dumps(["tokens", list(each)]), 0) for each in dialogues]
    known = cache.find(keys) if cache else {}
    new = {
        key: str(policy.count_tokens(dialogue))
        for key, dialogue in zip(keys, dialogues, strict=True)
        if key not in known
    }
    if cache and new:
        cache.add(new)
    counts = {**known, **new}
    return [int(counts[key]) for key in keys]


def answered(dialogue: Dialogue, reply: str) -> list[dict[str, str]]:
    """A dialogue with its reply, as its tokens are counted."""
    return [*dialogue, {"role": "assistant", "content": reply}]
