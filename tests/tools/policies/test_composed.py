"""A policy of two engines, and the facts of a model without its weights."""

from collections.abc import Callable

from fakes import FakePolicy

from nslora.graph.runs.folder import refuse_no_policy
from nslora.tools.policies.composed import ComposedPolicy
from nslora.tools.policies.local import LocalPolicy


def test_each_engine_does_its_half(tiny_policy: Callable[..., LocalPolicy]) -> None:
    local, fake = tiny_policy(), FakePolicy(tiny_policy().adapters.folder)
    told = {"weights": "w", **local.facts.describe(local.lora)}
    policy = ComposedPolicy(local.facts, fake, local, fingerprint="w@fake", described=told, context_tokens=64)
    refuse_no_policy(policy)
    dialogue = [{"role": "user", "content": "Who keeps the mill?"}]
    assert policy.generate([dialogue], adapter=None, max_new_tokens=4) == fake.generate(
        [dialogue], adapter=None, max_new_tokens=4
    )
    assert policy.reference_losses([dialogue], ["Ada"], adapter=None) == [1.0]
    assert policy.count_tokens(dialogue) == local.count_tokens(dialogue)
    assert (policy.fingerprint, policy.context_tokens) == ("w@fake", 64)
    assert policy.describe()["lora_targets"] == local.describe()["lora_targets"]
