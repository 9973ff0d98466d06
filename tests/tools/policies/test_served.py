"""Replies from servers: what a fake vLLM shows, with every fault that the real one was seen with."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from vllm_server import FakeVllm, serve_vllm

from nslora.tools.errors import DamagedError, ModelError, StoppedError, TooLongError, UnfinishedError
from nslora.tools.evaluation.rollouts import ask
from nslora.tools.inference.reply_cache import ReplyCache
from nslora.tools.policies.facts import ModelFacts
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.opening import open_policy
from nslora.tools.policies.served import ServedReplies
from nslora.tools.policies.settings import DeviceSettings, EngineSettings
from nslora.tools.policy import Generated, Policy, TrainingJob, TrainingRow
from nslora.tools.training.settings import LoraSettings

DEVICE = DeviceSettings(device="cpu", dtype="float32", threads=1)
Make = Callable[..., LocalPolicy]
PLACES = ("mill", "bridge", "dam", "well", "old barn", "gate", "road", "inn")
QUESTIONS = [f"Who keeps the {place}?" for place in PLACES]
DIALOGUES = [[{"role": "user", "content": question}] for question in QUESTIONS]
REFERENCES = [f"Keeper {i}" for i in range(len(QUESTIONS))]
ROWS = tuple(
    TrainingRow(tuple(dialogue), reference, f"train-{reference}", "reference")
    for dialogue, reference in zip(DIALOGUES, REFERENCES, strict=True)
)


JOB = TrainingJob(ROWS, 4, seed=1)
LORA = LoraSettings(epochs=4, batch_size=4, learning_rate=0.05)


@pytest.fixture(scope="module")
def local(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> LocalPolicy:
    """The policy that the servers are compared with."""
    store = tmp_path_factory.mktemp("adapters")
    return LocalPolicy.load(str(tiny_folder()), adapters=store, lora=LORA, device=DEVICE, proves=True)


@pytest.fixture(scope="module")
def adapter(local: LocalPolicy) -> str:
    return local.train(JOB).adapter


@pytest.fixture(scope="module")
def behind(tiny_folder: Callable[..., Path], local: LocalPolicy) -> LocalPolicy:
    """A copy of the weights, on which all servers compute in turn."""
    return LocalPolicy.load(str(tiny_folder()), adapters=local.adapters.folder, device=DEVICE)


@pytest.fixture
def fakes(behind: LocalPolicy) -> Iterator[Callable[..., FakeVllm]]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(serve_vllm(behind, **options))


def served(local: LocalPolicy, *fakes: FakeVllm, timeout_s: float = 20.0, **options: Any) -> ServedReplies:
    """A client of these servers that does not pause long between its tries."""
    engine = EngineSettings(replies=",".join(fake.url for fake in fakes), timeout_s=timeout_s)
    options = {"pauses_s": (0.01, 0.01), **options}
    return ServedReplies(engine, local.facts, local.lora, local.adapters, **options).connect()


def test_replies_and_losses_are_those_of_the_local_policy(
    local: LocalPolicy, adapter: str, fakes: Callable[..., FakeVllm]
) -> None:
    one, two = fakes(), fakes()
    replies, seen = served(local, one, two), list[tuple[int, int]]()
    for name in (None, adapter):
        wanted = local.generate(DIALOGUES, adapter=name, max_new_tokens=12)
        assert replies.generate(DIALOGUES, adapter=name, max_new_tokens=12) == wanted
        assert replies.reference_losses(DIALOGUES, REFERENCES, adapter=name) == pytest.approx(
            local.reference_losses(DIALOGUES, REFERENCES, adapter=name), abs=1e-4
        )
    replies.generate(DIALOGUES, adapter=None, max_new_tokens=2, on_progress=lambda *done: seen.append(done))
    assert seen == [(i + 1, len(DIALOGUES)) for i in range(len(DIALOGUES))]
    assert min(len(one.answered), len(two.answered)) > 4  # both have work
    assert all(fake.loads.count(adapter) == 1 for fake in (one, two))
    assert not list(local.adapters.folder.glob(".*"))
    assert {each.name for each in local.adapters.folder.iterdir()} == {adapter}  # the probe is gone
    with pytest.raises(TooLongError, match="holds 2048"):
        replies.generate(DIALOGUES, adapter=None, max_new_tokens=2048)


def test_facts_without_weights_are_those_of_the_loaded_model(tiny_policy: Make) -> None:
    for family in ("llama", "gpt2"):
        policy = tiny_policy(family)
        facts = ModelFacts.read(policy.facts.source.location, lora=policy.lora, thinking="off", on_cpu=True)
        assert facts.describe(policy.lora) == policy.facts.describe(policy.lora)
        assert (facts.weights, facts.context_tokens) == (policy.facts.weights, policy.context_tokens)
        assert facts.format.stop_ids == policy.format.stop_ids


@pytest.mark.engines
def test_faults_that_pass_cost_nothing(local: LocalPolicy, adapter: str, fakes: Callable[..., FakeVllm]) -> None:
    fake = fakes()
    replies = served(local, fake)
    wanted = local.generate(DIALOGUES, adapter=adapter, max_new_tokens=4)
    for fault in ("500", "cut_off", "garbage", "restarted", "silent"):
        if fault == "silent":
            replies = served(local, fake, timeout_s=1.0)
        fake.fault[fault] = 1
        assert replies.generate(DIALOGUES, adapter=adapter, max_new_tokens=4) == wanted
        assert fake.fault[fault] == 0
    assert fake.loads.count(adapter) == 2  # again after the restart


@pytest.mark.parametrize(
    ("options", "faults", "words"),
    [
        (
            {"max_rank": 4},
            {},
            r"LoRA rank 8 is greater than max_lora_rank 4.\): start it with a larger --max-lora-rank",
        ),
        ({"runtime_lora": False}, {}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"applies": False}, {}, "answers under an adapter as without it"),
        ({"root": "Qwen/Other"}, {}, "serves Qwen/Other, but the run's model is llama"),
        ({}, {"damaged": 1}, "header too small"),
        ({}, {"lora_loss": 99}, "fails at a loss under an adapter: .*--lora-target-modules that name no lm_head"),
        ({}, {"other_prompt": 1}, "does not answer in the token ids of the request"),
    ],
)
def test_an_unusable_server_is_refused_before_anything_is_asked(
    local: LocalPolicy, fakes: Callable[..., FakeVllm], options: dict[str, Any], faults: dict[str, int], words: str
) -> None:
    fake = fakes()
    for name, value in options.items():
        setattr(fake, name, value)
    fake.fault.update(faults)
    with pytest.raises(ModelError, match=words):
        served(local, fake)
    assert not list(local.adapters.folder.glob(".*"))


@pytest.mark.engines
def test_an_adapter_that_a_server_does_not_apply_stops_the_run(
    local: LocalPolicy, adapter: str, fakes: Callable[..., FakeVllm], tmp_path: Path
) -> None:
    fake = fakes()
    replies, proof = served(local, fake), local.adapters.folder / adapter / "proof.json"

    def asked(name: str | None = adapter) -> Generated:
        return replies.generate(DIALOGUES[:2], adapter=name, max_new_tokens=4)

    fake.applies = False
    with pytest.raises(UnfinishedError, match="as it was trained: its losses are those of the base"):
        asked()
    known = proof.read_text()
    proof.unlink()  # as of an adapter that was trained elsewhere
    fake.applies = True
    replies = served(local, fake)
    fake.applies = False
    with pytest.raises(UnfinishedError, match="answers under the adapter"):
        asked()
    fake.applies = True
    replies = served(local, fake)
    assert asked().tokens
    replies.servers[0].loaded.clear()
    values = json.loads(known)
    proof.write_text(json.dumps({**values, "base": [each + 1 for each in values["base"]]}))
    with pytest.raises(UnfinishedError, match=r"has another base than the trainer: .* differ by 1 nats per token"):
        asked()
    proof.write_text(known)
    replies = served(local, fake)
    shutil.copytree(local.adapters.folder / adapter, local.adapters.folder / ("0" * 16))
    try:
        with pytest.raises(DamagedError, match="is damaged, its content hash is"):
            asked("0" * 16)
    finally:
        shutil.rmtree(local.adapters.folder / ("0" * 16))


def test_a_server_that_dies_is_left_out_and_named_and_comes_back(
    local: LocalPolicy, fakes: Callable[..., FakeVllm]
) -> None:
    one, two, said = fakes(), fakes(), list[str]()
    replies = served(local, one, two, notify=said.append)
    wanted = local.generate(DIALOGUES, adapter=None, max_new_tokens=4)
    one.fault["500"] = 99
    assert replies.generate(DIALOGUES, adapter=None, max_new_tokens=4) == wanted
    assert [line for line in said if "left out" in line] == [
        f"note     left out: {one.url} (status 500: EngineCore encountered an issue.)"
    ]
    one.fault.clear()
    assert replies.generate(DIALOGUES, adapter=None, max_new_tokens=4) == wanted
    assert said[-1] == f"note     back: {one.url}"
    one.version = "0.99"
    replies.out[one.url] = "restarted"
    assert replies.generate(DIALOGUES, adapter=None, max_new_tokens=4) == wanted
    assert "is vLLM 0.99 with" in said[-1]


def test_requests_that_fail_together_leave_a_server_out_once(
    local: LocalPolicy, fakes: Callable[..., FakeVllm]
) -> None:
    fake, said = fakes(), list[str]()

    def mended(line: str) -> None:
        said.append(line.split(":")[0])
        time.sleep(0.3)  # until each of the others has failed
        fake.fault.clear()

    replies = served(local, fake, notify=mended)
    fake.fault["500"] = 99
    wanted = local.generate(DIALOGUES, adapter=None, max_new_tokens=4)
    assert replies.generate(DIALOGUES, adapter=None, max_new_tokens=4) == wanted
    assert said == ["note     left out", "note     back"]


@pytest.mark.engines
def test_replies_that_came_before_the_last_server_died_are_kept(
    local: LocalPolicy, adapter: str, fakes: Callable[..., FakeVllm], tmp_path: Path
) -> None:
    fake, cache = fakes(), ReplyCache(tmp_path / "replies.sqlite")
    policy: Any = served_policy(local, fake)
    policy.replies.timeout_s = 0.2
    policy.replies.servers[0].pauses_s = (0.01,)
    ask(policy, cache, DIALOGUES[:1], adapter=adapter, max_new_tokens=4)  # loaded and proven
    fake.answered.clear()
    fake.lives = 3
    with pytest.raises(
        UnfinishedError, match=r"No server of engine.replies answers as it has to \(http://127.*status 500"
    ):
        ask(policy, cache, DIALOGUES, adapter=adapter, max_new_tokens=4)
    asked = {prompt for prompt, _ in fake.answered}
    fake.lives = None
    fake.restart()
    fake.answered.clear()
    replies = ask(policy, cache, DIALOGUES, adapter=adapter, max_new_tokens=4)
    assert replies.texts == local.generate(DIALOGUES, adapter=adapter, max_new_tokens=4).replies
    again = {prompt for prompt, _ in fake.answered}
    assert len(asked) == 3
    assert not again & asked
    assert again >= {tuple(row) for row in local.facts.prompts(DIALOGUES[1:], 4)} - asked


def served_policy(local: LocalPolicy, *fakes: FakeVllm) -> Policy:
    return open_policy(
        local.facts.source.location,
        engine=EngineSettings(replies=tuple(fake.url for fake in fakes)),
        adapters=local.adapters.folder,
        lora=local.lora,
        device=DEVICE,
        thinking="off",
        notify=lambda _: None,
    )


def test_a_policy_of_servers_loads_weights_to_train_only(
    local: LocalPolicy, adapter: str, fakes: Callable[..., FakeVllm]
) -> None:
    fake = fakes()
    policy: Any = served_policy(local, fake)
    assert policy.fingerprint == f"{local.facts.weights}@vllm-0.32.0"
    told = policy.describe()
    assert told["lora_targets"] == local.describe()["lora_targets"]
    assert len(told["probe_nats"]) == 2
    assert "policy" not in vars(policy.training)
    assert policy.train(JOB).adapter == adapter
    fake.context = 512
    assert served_policy(local, fake).context_tokens == 512
    fake.server.shutdown_soon()
    started = time.monotonic()
    with pytest.raises(StoppedError, match="cannot be used: start it, or correct"):
        served(local, fake)
    assert time.monotonic() - started < 5
