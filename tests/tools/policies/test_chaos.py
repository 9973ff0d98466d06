"""Every fault that was seen of servers, or read of: none costs an answer that came, and none passes for an answer."""

import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chaos_proxy import ALWAYS, ChaosProxy, Play, Request, between, changes, cut_off, dies, says, sends, silent, slow
from vllm_server import FakeVllm, serve_vllm

from nslora.tools.errors import ModelError, NsloraError, StoppedError
from nslora.tools.evaluation.rollouts import ask, reference_losses
from nslora.tools.inference.reply_cache import ReplyCache
from nslora.tools.policies import served
from nslora.tools.policies.adapter_proof import Row, write_proof
from nslora.tools.policies.composed import ComposedPolicy
from nslora.tools.policies.facts import ModelFacts
from nslora.tools.policies.probe_adapter import write_probe_adapter
from nslora.tools.policies.served import ServedReplies
from nslora.tools.policies.settings import EngineSettings
from nslora.tools.prompt import Prompt
from nslora.tools.schema import Example
from nslora.tools.training.adapters import AdapterStore
from nslora.tools.training.settings import LoraSettings

PLACES = ("mill", "bridge", "dam", "well")
ROWS = [Example(f"row-{i}", f"Who keeps the {place}?", f"Keeper {i}", {}) for i, place in enumerate(PLACES)]
PROMPT = Prompt("Answer.")
DIALOGUES = [PROMPT.dialogue(row) for row in ROWS]
NEW_TOKENS = 6
LORA = LoraSettings()
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


def drawn(*request: object) -> random.Random:
    return random.Random(repr(request))


def nats(ids: Sequence[int], adapter: str | None, weights: str) -> list[float]:
    """Log-probabilities of a model that does not exist."""
    mean = drawn(adapter, weights).uniform(1, 9)
    return [-drawn(ids[: at + 2], adapter, weights).random() - mean for at in range(len(ids) - 1)]


@dataclass
class Scripted(FakeVllm):
    """Draws replies and losses from the hash of a request; `weights` is part of it."""

    weights: str = "of the run"

    def _choice(self, ids: list[int], adapter: str | None, body: dict[str, Any]) -> dict[str, Any]:
        one, stops = drawn(ids, adapter, self.weights), body["stop_token_ids"]
        reply = [one.randrange(40, 90) for _ in range(one.randrange(2, NEW_TOKENS + 1))]
        reply = [*reply, stops[0]] if len(reply) < body["max_tokens"] and stops else reply[: body["max_tokens"]]
        choice: dict[str, Any] = {"token_ids": reply, "prompt_token_ids": ids}
        if body.get("prompt_logprobs") is not None:
            told = zip(ids[1:], nats(ids, adapter, self.weights), strict=True)
            choice["prompt_logprobs"] = [None, *({str(i): {"logprob": each}} for i, each in told)]
        return choice


class Bench:
    """Servers with a proxy before each, and clients of them that keep what they were answered in one cache."""

    def __init__(self, facts: ModelFacts, adapter: Path, folder: Path, stack: ExitStack, servers: int) -> None:
        self.facts, self.store, self.adapter = facts, AdapterStore(folder / "adapters"), adapter.name
        shutil.copytree(adapter, self.store.folder / adapter.name)
        self.cache, self.said = ReplyCache(folder / "replies.sqlite"), list[str]()
        plain: Any = SimpleNamespace(facts=facts)
        self.servers: list[Any] = [stack.enter_context(serve_vllm(plain, kind=Scripted)) for _ in range(servers)]
        self.proxies = [stack.enter_context(between(server.url)) for server in self.servers]

    def policy(self, timeout_s: float = 20.0) -> Any:
        """A client, as of a process that begins or resumes."""
        engine = EngineSettings(replies=",".join(each.url for each in self.proxies), timeout_s=timeout_s)
        options: Any = {"notify": self.said.append, "pauses_s": (0.01, 0.01)}
        replies = ServedReplies(engine, self.facts, LORA, self.store, **options).connect()
        replies.timeout_s = 0.1  # of servers that are waited for
        training: Any = SimpleNamespace(train=None)
        return ComposedPolicy(self.facts, replies, training, fingerprint="tiny@vllm", described={})

    def work(self, policy: Any) -> tuple[Any, ...]:
        """Replies and losses with and without an adapter."""
        found: list[Any] = []
        for adapter in (None, self.adapter):
            asked: dict[str, Any] = {"adapter": adapter, "max_new_tokens": NEW_TOKENS}
            found.append(ask(policy, self.cache, DIALOGUES, **asked).texts)
            found.append(reference_losses(policy, self.cache, PROMPT, ROWS, adapter=adapter)[0])
        return tuple(found)

    def twice(self, first: int = 0) -> list[Any]:
        """What servers from this one on answered twice, without probes and proofs, which are asked again on purpose."""
        pairs = self.facts.pairs(DIALOGUES, [row.target or "" for row in ROWS], spare=1)
        wanted = {tuple(row) for row in self.facts.prompts(DIALOGUES, NEW_TOKENS)} | {
            (*row[0], *row[1]) for row in pairs
        }
        answered = sum((each.answered for each in self.proxies[first:]), Counter[Any]())
        return [key for key, count in answered.items() if key[2] in wanted and count > 1]


def score(rows: Sequence[Row], adapter: str | None) -> list[float]:
    scored = [nats([*row[0], *row[1]], adapter, Scripted.weights)[len(row[0]) - 1 :] for row in rows]
    return [-sum(each) / len(each) for each in scored]


@pytest.fixture(scope="module")
def facts(tiny_folder: Callable[..., Path]) -> ModelFacts:
    return ModelFacts.read(str(tiny_folder()), lora=LORA, thinking="off", on_cpu=True)


@pytest.fixture(scope="module")
def adapter(facts: ModelFacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The adapter of a run, with its proof. Clients get copies of a probe that is written once, which saves seconds."""
    made, unlike = tmp_path_factory.mktemp("made"), LORA.model_copy(update={"alpha": LORA.alpha + 1})
    store = AdapterStore(made / "adapters")
    of_the_run = write_probe_adapter(facts, unlike, store, made / "one")
    write_proof(store, of_the_run, facts.pairs(DIALOGUES, ["of training"] * len(ROWS)), score, exact=True)
    probe = write_probe_adapter(facts, LORA, store, made / "two")

    def copied(facts: ModelFacts, lora: LoraSettings, into: AdapterStore, folder: Path) -> str:
        shutil.copytree(store.folder / probe, into.folder / probe)
        return probe

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served, "write_probe_adapter", copied)
        yield store.folder / of_the_run


@pytest.fixture
def benches(facts: ModelFacts, adapter: Path, tmp_path: Path) -> Iterator[Callable[[int], Bench]]:
    with ExitStack() as stack:
        yield lambda servers: Bench(facts, adapter, tmp_path / str(servers), stack, servers)


@pytest.fixture(scope="module")
def whole(facts: ModelFacts, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """What servers without a fault answer."""
    with ExitStack() as stack:
        bench = Bench(facts, adapter, tmp_path_factory.mktemp("whole"), stack, 1)
        found = bench.work(bench.policy())
        assert len(set(found[0])) == len(ROWS)
        assert found[:2] != found[2:]
        return found


def under_an_adapter(request: Request) -> bool:
    return request.body["model"] != "base"


def shortened(choice: dict[str, Any]) -> None:
    choice["token_ids"] = choice["token_ids"][:1]


def with_a_start_token(choice: dict[str, Any]) -> None:
    choice["prompt_token_ids"] = [1, *choice["prompt_token_ids"]]


def without_numbers(choice: dict[str, Any]) -> None:
    for each in choice["prompt_logprobs"][1:]:
        each.update({key: {"logprob": float("nan")} for key in each})


def without_ids(choice: dict[str, Any]) -> None:
    choice["token_ids"] = None


def restarts(bench: Bench, proxy: ChaosProxy, server: Scripted) -> None:
    """In the middle of its answers, without its adapters."""

    async def play(_: ChaosProxy, answer: Any) -> Any:
        server.restart()
        return await answer()

    proxy.play(play, times=1, if_=under_an_adapter)


def restarts_with(**changed: Any) -> Callable[[Bench, ChaosProxy, Scripted], None]:
    """As something else, with the first reply that is asked for."""

    def arrange(bench: Bench, proxy: ChaosProxy, server: Scripted) -> None:
        async def play(_: ChaosProxy, answer: Any) -> Any:
            server.restart()
            for name, value in changed.items():
                setattr(server, name, value)
            return await answer()

        proxy.play(play, times=1)

    return arrange


def knows_the_adapter(bench: Bench, proxy: ChaosProxy, server: Scripted) -> None:
    server.loaded[bench.adapter] = "of another client"


def fault(play: Play, on: str = "reply", times: int = ALWAYS, **more: Any) -> Callable[..., None]:
    return lambda bench, proxy, server: proxy.play(play, on=on, times=times, **more)


# What one of two servers does in the middle of the work, and what the note says of it; None: nobody notices.
FAULTS: dict[str, tuple[Callable[[Bench, ChaosProxy, Scripted], None], str | None]] = {
    "restarted: it knows no adapter": (restarts, None),
    "it has the adapter already": (knows_the_adapter, None),
    "status 500, once": (fault(says(500, DEAD), times=1), None),
    "cut off, once": (fault(cut_off, times=2), None),
    "a page of a gateway, once": (fault(sends("<html>502</html>"), times=2), None),
    "too many requests, once": (fault(says(429, "slow down"), times=2), None),
    "late": (fault(slow(0.2), times=4), None),
    "status 500": (fault(says(500, DEAD)), "status 500: EngineCore"),
    "cut off": (fault(cut_off), "RemoteProtocolError: peer closed"),
    "silent": (fault(silent), "ReadTimeout"),
    "silent at a loss": (fault(silent, "loss"), "ReadTimeout"),
    "killed by a request": (fault(dies, times=1), "(RemoteProtocolError|ReadError|ConnectError)"),
    "killed by a loss under an adapter": (
        fault(dies, "loss", if_=under_an_adapter),
        "(RemoteProtocolError|ReadError|ConnectError)",
    ),
    "its engine is dead at a load": (fault(says(500, DEAD), "load"), "status 500: EngineCore"),
    "silently shortened": (fault(changes(shortened)), "ended a reply after 1 of 6 tokens without an end token"),
    "another template: a token before each prompt": (
        fault(changes(with_a_start_token)),
        "does not answer in the token ids of the request",
    ),
    "no token ids": (fault(changes(without_ids)), "does not answer in the token ids"),
    "no choices": (fault(sends('{"choices": []}')), "does not answer in the token ids"),
    "losses that are no numbers": (fault(changes(without_numbers), "loss"), "log-probabilities that are no numbers"),
    "no losses": (fault(changes(lambda choice: choice.pop("prompt_logprobs") and None), "loss"), "no log-prob"),
    "restarted with another base": (restarts_with(weights="of another"), "has another base than"),
    "restarted with another model": (restarts_with(root="Qwen/Other", model="new"), "serves Qwen/Other"),
    "restarted with another version": (restarts_with(version="0.99", model="new"), "is vLLM 0.99 with a context"),
    "restarted with a smaller context": (restarts_with(context=64, model="new"), "with a context of 64 tokens"),
    "restarted under another name": (restarts_with(model="new"), None),
    "restarted without LoRA": (restarts_with(runtime_lora=False), "loads no adapters: start it with --enable-lora"),
    "restarted for smaller adapters": (restarts_with(max_rank=4), "start it with a larger --max-lora-rank"),
    "it does not apply the adapter": (restarts_with(applies=False), "its losses are those of the base"),
    "DoRA": (fault(says(500, "vLLM does not yet support DoRA."), "load"), "set lora.use_dora to false"),
    "a damaged adapter": (fault(says(500, "Error while deserializing header"), "load"), "look into its log"),
    "no shared disk": (fault(says(404, "No adapter found for /runs"), "load"), "a disk that the server shares"),
    "it wants a key": (fault(says(401, "Unauthorized")), "status 401"),
}


# Here all that the server answered in this call is dropped, and asked again.
DROPPED = ("restarted with another base", "losses that are no numbers", "no losses")
# One of each kind; the others take 15 s of CPU.
QUICK = ("restarted: it knows no adapter", "cut off, once", "killed by a request", "restarted with another base")


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if each in QUICK else pytest.mark.engines) for each in FAULTS]
)
def test_a_fault_costs_no_answer(benches: Callable[[int], Bench], whole: tuple[Any, ...], name: str) -> None:
    """One of two servers is left out and named; one alone stops the run, which goes on when it is mended."""
    (arrange, words), timeout_s = FAULTS[name], 1.0 if "silent" in name else 20.0
    pair, alone = benches(2), benches(1)
    policy = pair.policy(timeout_s)
    arrange(pair, pair.proxies[0], pair.servers[0])
    assert pair.work(policy) == whole
    assert not pair.twice(name in DROPPED)
    left_out = {line for line in pair.said if "left out" in line}
    assert bool(left_out) == (words is not None)
    assert all(pair.proxies[0].url in line and re.search(words or "", line) for line in left_out), left_out

    policy, before = alone.policy(timeout_s), dict(vars(alone.servers[0]))
    arrange(alone, alone.proxies[0], alone.servers[0])
    if words is not None:
        with pytest.raises(StoppedError, match=words) as stopped:
            alone.work(policy)
        assert "\n" not in str(stopped.value)
        if name in DROPPED:
            alone.proxies[0].answered.clear()
        alone.proxies[0].mend()
        vars(alone.servers[0]).update(before)
        alone.servers[0].restart()
        policy = alone.policy()
    assert alone.work(policy) == whole
    assert not alone.twice()


# What a server does at the start, and what is said before anything is asked.
REFUSED: dict[str, tuple[Callable[..., None], type[NsloraError], str]] = {
    "not there": (fault(dies, "models"), StoppedError, "cannot be used: start it, or correct engine.replies"),
    "status 503": (fault(says(503, "loading"), "models"), StoppedError, "status 503: loading"),
    "no vLLM": (fault(sends('{"data": []}'), "models"), ModelError, "names no model with its context"),
    "no vLLM either": (fault(sends("[1]"), "models"), StoppedError, "cannot be used"),
    "killed by a loss under an adapter": (
        fault(dies, "loss", if_=under_an_adapter),
        ModelError,
        "fails at a loss under an adapter: .* name no lm_head",
    ),
    "too large a rank": (
        fault(says(500, "LoRA rank 8 is greater than max_lora_rank 4."), "load"),
        ModelError,
        "start it with a larger --max-lora-rank",
    ),
    "DoRA": (fault(says(500, "vLLM does not yet support DoRA."), "load"), ModelError, "set lora.use_dora to false"),
    "several servers behind one address": (
        fault(says(404, "The model does not exist."), "loss", if_=under_an_adapter),
        ModelError,
        "name each of them in engine.replies",
    ),
    "another template": (fault(changes(with_a_start_token), "loss"), ModelError, "in the token ids of the request"),
    "losses that are no numbers": (fault(changes(without_numbers), "loss"), ModelError, "that are no numbers"),
    "another model": (lambda b, p, server: setattr(server, "root", "Qwen/Other"), ModelError, "serves Qwen/Other"),
    "another base": (lambda b, p, server: setattr(server, "weights", "of another"), ModelError, "has another base"),
    "another version": (lambda b, p, server: setattr(server, "version", "0.99"), ModelError, "is vLLM 0.99"),
    "it applies nothing": (lambda b, p, server: setattr(server, "applies", False), ModelError, "as without it"),
}


def test_a_server_that_cannot_serve_is_refused_at_the_start(benches: Callable[[int], Bench]) -> None:
    bench = benches(2)
    bench.servers[1].restart()
    before = dict(vars(bench.servers[1]))
    for name, (arrange, kind, words) in REFUSED.items():
        arrange(bench, bench.proxies[1], bench.servers[1])
        with pytest.raises(kind, match=words):
            bench.policy()
        bench.proxies[1].mend()
        vars(bench.servers[1]).update(before)
        bench.servers[1].restart()
        assert {each.name for each in bench.store.folder.iterdir()} == {bench.adapter}, name
    assert not sum((each.asked for each in bench.proxies), Counter[str]())["reply"]
    probes = bench.servers[0].loads
    assert len(set(probes)) == len(probes) >= len(REFUSED)  # of several runs at once, none takes away another's
