"""What the next update of each kind is expected to bring.

Expected gain of a kind = need x headroom x affordability (this project's own formula):

    need           lora: share of the missing reward that needs content; textgrad: the rest, which needs form.
                   With verified remade rows waiting, weights learn form from them too: lora's need is 1.
    headroom       1 for a kind that is open; with `use_signal` the signal's value of it, at least `open_headroom`
    affordability  max(cost_floor, (cheapest / cost) ** cost_exponent), in tokens through the model

The kind of larger gain goes next; within 5 % the cheaper one. A kind is closed after `drops_without_signal` updates
that were dropped since any update was kept; with `use_signal`, while it is saturated. Weights that were tried from the
start and dropped are closed until an update is kept (`tries_from_start`).
"""

from collections.abc import Mapping, Sequence

from pydantic import Field

from nslora.tools.router.inputs import RouterInput
from nslora.tools.schema import KINDS, Kind, Settings


class StrategySettings(Settings):
    """How need, headroom and cost are weighed."""

    # Expected gains this close are a tie; demand is no more exact than that.
    tie_share: float = Field(0.05, ge=0, lt=1)
    # Ten times the cost halves the expected gain: a round saved is worth something, the right repair is worth more.
    cost_exponent: float = Field(0.25, ge=0, le=1)
    # However expensive, a kind that is needed by 0.9 against 0.1 still goes first (0.9 * 0.3 > 0.1).
    cost_floor: float = Field(0.3, gt=0, le=1)
    # Least demand for edits: a prompt can also bring out content (a way to reason), and is cheap.
    edit_demand: float = Field(0.05, ge=0, le=1)
    # Content share below which weights have nothing to learn: plain references carry no form. The classifier errs on
    # about one failure in twenty.
    weights_demand: float = Field(0.05, ge=0, le=1)
    # Least headroom of a kind that is not saturated: one dropped update may have been bad luck, and must not hand the
    # round to a kind that nothing asks for.
    open_headroom: float = Field(0.10, ge=0, le=1)
    # Training jobs that are measured before any update is kept; None: as many as the signal lets. In the benchmark's
    # records, of all strategies, none of 146 further ones was kept, and the router's runs take 28 % less compute
    # without them, at the same final reward in each cell. Only 6 of the 146 are on tasks with something to gain.
    tries_from_start: int | None = Field(1, ge=1)
    # Whether the monitoring signal closes a kind and weighs an open one. In 50 pairs of recorded runs it changed no
    # result, and took a tenth more compute (tests/benchmarks/README.md). It is recorded in either case.
    use_signal: bool = False
    # Without the signal: dropped updates of a kind, since any update was kept, after which it is closed. One can be bad
    # luck of its sample.
    drops_without_signal: int = Field(2, ge=1)


DEFAULTS = StrategySettings()


def expected_gains(router_input: RouterInput, settings: StrategySettings = DEFAULTS) -> dict[Kind, float]:
    """Expected gain per kind, in [0, 1], whether saturated or not."""
    needs, costs = needs_of(router_input, settings), affordability(router_input, settings)
    headroom = {kind: max(router_input.progress[kind].value, settings.open_headroom) for kind in KINDS}
    return {kind: needs[kind] * headroom[kind] * costs[kind] for kind in KINDS}


def needs_of(router_input: RouterInput, settings: StrategySettings = DEFAULTS) -> dict[Kind, float]:
    """Share of the missing reward that each kind could bring, in [0, 1]; both 0 if nothing failed."""
    if router_input.need is None:
        return {"lora": 0.0, "textgrad": 0.0}
    content = router_input.need.p_content
    lora = 1.0 if router_input.remade_waiting > 0 else content
    if lora < settings.weights_demand:
        lora = 0.0
    return {"lora": lora, "textgrad": max(settings.edit_demand, 1.0 - content)}


def affordability(router_input: RouterInput, settings: StrategySettings = DEFAULTS) -> dict[Kind, float]:
    """max(cost_floor, (cheapest / cost) ** cost_exponent); 1 for the cheapest."""
    costs = {kind: max(router_input.cost_tokens.get(kind, 0.0), 1e-6) for kind in KINDS}
    cheapest = min(costs.values())
    return {kind: max(settings.cost_floor, (cheapest / costs[kind]) ** settings.cost_exponent) for kind in KINDS}


def best_of(kinds: Sequence[Kind], gains: Mapping[Kind, float], router_input: RouterInput, tie_share: float) -> Kind:
    """The kind of largest expected gain; the cheaper of those within `tie_share` of it."""
    top = max(gains[kind] for kind in kinds)
    tied = [kind for kind in kinds if gains[kind] >= top * (1 - tie_share)]
    return min(tied, key=lambda kind: router_input.cost_tokens.get(kind, 0.0))
