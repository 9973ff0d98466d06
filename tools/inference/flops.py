"""The compute of a run in model FLOPs, by formula.

    forward    2 N per token           N: parameters in matrix products (without embedding look-ups)
    training   2 N + 2 N_above         N_above: parameters of the head and of the blocks that gradients pass through
                                       (the lowest block with LoRA and all above it); frozen weights need no gradient

After Kaplan et al. 2020 (arXiv 2001.08361), eq. 2.1, without the attention scores, which add less than 5 % at the few
hundred tokens of a question with its demonstrations. The count includes replies from a cache and work that a shortcut
saved: the same decisions cost the same on every machine, and no strategy profits from the replies of another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FLOP_PER_PARAMETER = 2  # one multiplication and one addition
TERA = 1e12
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")  # names in configs


@dataclass(frozen=True)
class FlopRates:
    """Model FLOPs of one token in a forward pass and in training; 0 if a policy does not state them."""

    forward: float = 0.0
    training: float = 0.0

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "FlopRates":
        """Read the rates from a policy's `describe()`."""
        return cls(float(facts.get("forward_flop_per_token", 0.0)), float(facts.get("training_flop_per_token", 0.0)))


def rates_of(model: Any, trained_blocks: int) -> dict[str, float]:
    """Return both rates of a causal model of transformers with LoRA on its top `trained_blocks` blocks."""
    from nslora.tools.inference.decoder import blocks_of

    decoder, name = blocks_of(model)
    blocks = getattr(decoder, name)
    head, share = _matrix_weights(model.get_output_embeddings(), 1.0), _expert_share(model)
    body = [_matrix_weights(block, share) for block in blocks]
    forward = sum(body) + head
    above = sum(body[len(body) - trained_blocks :]) + head
    return {
        "forward_flop_per_token": FLOP_PER_PARAMETER * forward,
        "training_flop_per_token": FLOP_PER_PARAMETER * (forward + above),
    }


def _matrix_weights(module: Any, expert_share: float) -> float:
    """Count the parameters of a module's matrices, without adapters; of experts, only the share that a token uses."""
    sizes = {name: _size(p) for name, p in module.named_parameters() if p.dim() > 1 and "lora_" not in name}
    sizes |= {name: m.in_features * m.out_features for name, m in module.named_modules() if hasattr(m, "qweight")}
    return float(sum(size * (expert_share if ".experts." in name else 1.0) for name, size in sizes.items()))


def _size(parameter: Any) -> int:
    """Count the entries of a matrix; bitsandbytes packs two of four bits into a byte."""
    packed = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if packed is None else packed.shape.numel())


def _expert_share(model: Any) -> float:
    """Return the share of a mixture's experts that one token goes through; 1 for any other model."""
    config = model.config.get_text_config()
    experts = next((count for name in EXPERT_COUNTS if (count := getattr(config, name, None))), None)
    active = getattr(config, "num_experts_per_tok", None)
    return float(active / experts) if experts and active else 1.0
