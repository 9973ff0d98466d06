"""Metering, recipes and tables of bench_peers, on a policy without a model and records made up here."""

import dataclasses
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peers_dspy
import pytest
from bench_peers import RECORDS, our_record, records_of
from chat_server import serve_chat
from form import README, in_readme
from peers_meter import BatchedChat, Batcher, Meter
from peers_recipes import Bench, trl_sft, trl_sft_best_rate, trl_sft_to_the_cap
from peers_tables import figures, readme_lines, tables

from nslora.tools.inference.flops import FlopRates
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policy import Generated
from nslora.tools.tasks.task import Task, task_from_rows

RATES = FlopRates(forward=1e9, training=2e9)


class Plain:
    """A policy that answers by a function of the dialogue; a token is a word."""

    fingerprint = name = "plain"
    context_tokens = 10_000

    def __init__(self, reply: Callable[[Any], str]) -> None:
        self.reply = reply

    def count_tokens(self, dialogue: Any) -> int:
        return sum(len(turn["content"].split()) for turn in dialogue)

    def generate(self, dialogues: Sequence[Any], *, adapter: str | None, max_new_tokens: int) -> Generated:
        if any("fail" in turns[-1]["content"] for turns in dialogues):
            raise ValueError("no room")
        time.sleep(0.02)  # whatever comes meanwhile waits, as with a real model
        return Generated(tuple(self.reply(turns) for turns in dialogues), 1)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def shouted(dialogue: Any) -> str:
    return str(dialogue[-1]["content"].upper())


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    policy: Any = Plain(shouted)
    found = Batcher(policy, Meter(RATES, 1.0))
    yield found
    found.close()


def test_requests_from_many_threads_share_batches_and_each_is_counted(batcher: Batcher) -> None:
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda i: batcher.ask(user(f"row {i}"), 8)[0], range(16)))
    assert replies == [f"ROW {i}" for i in range(16)]
    assert sum(batcher.batches) == 16
    assert len(batcher.batches) < 8
    # Prompt and reply are two words each.
    assert batcher.meter.forward_tokens == 16 * 4
    assert batcher.meter.cost()["tflop"] == pytest.approx(16 * 4 * 1e9 / 1e12)


def test_what_was_answered_ahead_is_counted_only_when_it_is_asked(batcher: Batcher) -> None:
    batcher.ahead = lambda dialogue: [user("two"), user("three")]
    assert batcher.ask(user("one"), 8) == ("ONE", 2)
    assert (batcher.batches, batcher.meter.forward_tokens) == ([3], 2)
    assert batcher.ask(user("two"), 8) == ("TWO", 2)
    assert (batcher.batches, batcher.meter.forward_tokens) == ([3], 4)


def test_a_request_that_fails_raises_where_it_was_asked(batcher: Batcher) -> None:
    with pytest.raises(ValueError, match="no room"):
        batcher.ask(user("fail"), 8)
    assert batcher.ask(user("on"), 8)[0] == "ON"
    assert batcher.meter.requests == 1


def test_editor_calls_are_told_apart_and_the_test_split_is_free(batcher: Batcher) -> None:
    chat = BatchedChat(batcher=batcher, max_tokens=8, edits=True)
    message = chat.invoke("a b")
    assert message.usage_metadata == {"input_tokens": 2, "output_tokens": 2, "total_tokens": 4}
    with batcher.meter.paused():
        chat.invoke("c d")
    assert (batcher.meter.editor_calls, batcher.meter.editor_tokens, batcher.meter.forward_tokens) == (1, 4, 4)


def questions(split: str, count: int) -> list[dict[str, str]]:
    return [{"question": f"{split} question {i}?", "reference": "yes"} for i in range(count)]


def bench_of(policy: Any, folder: Path, cap_tflop: float = 1.0, **task: Any) -> Bench:
    made: Task = task_from_rows(
        train=questions("train", 12), validation=questions("check", 4), test=questions("test", 4), **task
    )
    meter = Meter(RATES, cap_tflop)
    return Bench(made, 0, "", policy, meter, Batcher(policy, meter), folder)


def test_textgrad_keeps_a_prompt_unless_validation_falls(tmp_path: Path) -> None:
    """The policy says yes under the start and no once the editor's sentence stands in the system prompt."""
    from peers_recipes import START_PROMPT, textgrad_rules

    def reply(dialogue: Any) -> str:
        train = "train" in dialogue[-1]["content"]
        return "no" if train or dialogue[0]["content"] != START_PROMPT else "yes"

    found = textgrad_rules(bench := bench_of(Plain(reply), tmp_path))
    assert found.settings["prompt"] == START_PROMPT
    assert found.settings["steps"] == 12
    assert found.needs
    # Each step: three rows backward and one edit.
    assert bench.meter.editor_calls == 12 * 4
    # The start, and after each step three train rows and the whole validation split.
    assert bench.meter.requests == 4 + 12 * (3 + 4)


def test_textgrad_with_an_editor_that_cannot_write_records_where_it_broke(tmp_path: Path) -> None:
    from peers_recipes import textgrad_policy

    found = textgrad_policy(bench_of(Plain(lambda dialogue: "no"), tmp_path))
    assert [each["where"] for each in found.breaks] == ["step 1 of 12"]
    assert found.breaks[0]["message"].startswith("IndexError: ")
    assert found.replies == ("no",) * 4


def test_random_search_tries_what_the_cap_admits_and_counts_it(tmp_path: Path) -> None:
    pytest.importorskip("dspy")

    def reply(dialogue: Any) -> str:
        shown = sum(turn["role"] == "assistant" for turn in dialogue)
        return f"[[ ## answer ## ]]\n{'yes' if shown else 'no'}\n\n[[ ## completed ## ]]"

    bench = bench_of(Plain(reply), tmp_path, cap_tflop=15.0)
    found = peers_dspy.random_search(bench)
    assert found.replies == ["yes"] * 4
    assert found.settings["chosen"] == -2  # labelled demonstrations are the first that help
    assert 2 < found.settings["candidates_tried"] < 13
    assert 0 < bench.meter.tflop <= 15.0
    assert not found.breaks


def test_plain_sft_counts_the_trainers_own_tokens_and_fills_the_cap(
    tiny_folder: Callable[..., Path], tiny_policy: Callable[..., LocalPolicy], tmp_path: Path
) -> None:
    bench = bench_of(policy := tiny_policy(), tmp_path)
    bench.model = str(tiny_folder())
    once = trl_sft(bench)
    assert len(once.replies) == 4
    assert once.settings["steps"] == 1  # twelve rows, sixteen a step
    one_epoch = bench.meter.tflop
    rows = sum(len(ids) for row in bench.task.train for ids in policy.format.pair_ids(user(row.question), "yes"))
    assert bench.meter.trained_tokens == pytest.approx(rows, rel=0.05)
    bench.meter.cap_tflop, bench.meter.trained_tokens = 3.5 * one_epoch, 0
    assert trl_sft_to_the_cap(bench).settings["epochs"] == 3
    assert 2 * one_epoch < bench.meter.tflop <= bench.meter.cap_tflop


def test_a_rate_is_chosen_on_validation_within_the_cap(
    tiny_folder: Callable[..., Path], tiny_policy: Callable[..., LocalPolicy], tmp_path: Path
) -> None:
    bench = bench_of(policy := tiny_policy(), tmp_path)
    bench.model = str(tiny_folder())
    trl_sft(bench)
    bench.meter.cap_tflop, bench.meter.trained_tokens = 9 * bench.meter.tflop, 0
    asked: list[str | None] = []
    generate = policy.generate

    def noted(dialogues: Any, *, adapter: str | None, max_new_tokens: int) -> Any:
        asked.append(adapter)
        replies = generate(dialogues, adapter=adapter, max_new_tokens=max_new_tokens)
        # Only what the second rate has trained answers validation rightly.
        right = len(asked) == 2
        return dataclasses.replace(replies, replies=("yes" if right else "no",) * len(dialogues))

    policy.generate = noted  # type: ignore[method-assign]
    found = trl_sft_best_rate(bench)
    assert found.settings["validation_reward_by_rate"] == {"0.0002": 0.0, "0.001": 1.0, "0.004": 0.0}
    assert found.settings["learning_rate"] == 0.001
    assert asked[3] == asked[1] != asked[0]  # the test questions go to the best one alone
    assert bench.meter.forward_tokens > 0
    assert bench.meter.tflop <= bench.meter.cap_tflop


def record(peer: str, passed: str, **more: Any) -> dict[str, Any]:
    return {
        "task": "one",
        "peer": peer,
        "seed": 0,
        "planted": "form",
        "cap_tflop": 60.0,
        "needs": "",
        "breaks": [],
        "result": {"passed": passed, "rewards": [float(each) for each in passed], "checks": {}},
        "left_with": "x | y",
        "cost": {"tflop": 10.0, "editor_calls": 2},
        "wall_s": 3.0,
        "date": "2026-11-25",
        "machine": {"processor": "a processor"},
        **more,
    }


def test_who_needs_more_than_the_machine_has_is_listed_apart_and_not_scored() -> None:
    rows = [
        record("nslora", "1111"),
        record("other", "1100"),
        record("needy", "1000", needs="a strong editor", breaks=[{"where": "w", "message": "m | n"}]),
    ]
    text = "\n".join(tables(rows))
    assert "| nslora | 1.00 [0.40, 1.00] | 1.000 | 10.0 | 2 | 3 | x \\| y |" in text
    assert text.index("| other |") < text.index("want more than this machine has") < text.index("| needy |")
    assert "| needy | a strong editor | broke | (0.25) |" in text
    assert "| needy | w | m \\| n |" in text
    names = {each.name: each for each in figures(rows)}
    assert "one: needy, all checks" not in names
    assert names["one: nslora less the best peer (other)"].value == pytest.approx(0.5)


def test_the_readme_names_everyone_and_scores_only_who_ran_by_its_recipe() -> None:
    rows = [
        record("other", "1100"),
        record("nslora", "1111"),
        record("needy", "1000", needs="a strong editor"),
        {**record("nslora", "0111"), "task": "two"},
    ]
    text = "\n".join(readme_lines(rows))
    assert text.splitlines()[0].startswith("| peer | one | two | TFLOP |")
    assert "| nslora | 1.00 / 1.00 | 0.75 / 0.75 |" in text
    lines = ("| nslora |", "| other | 0.50 / 0.50 | – |", "| needy | (0.25 / 0.25) | – |")
    assert sorted(lines, key=text.index) == list(lines)
    assert "needy: a strong editor." in text


def test_the_readme_shows_what_is_on_record() -> None:
    wanted = in_readme("bench-peers", readme_lines(records_of(RECORDS)))
    assert README.read_text(encoding="utf-8") == wanted, "run: make bench-peers, or bench_peers.py --table"


def test_a_peer_above_the_cap_falls_short() -> None:
    over = record("other", "11", cost={"tflop": 60.5, "editor_calls": 0})
    assert [each.holds for each in figures([record("nslora", "11"), over]) if each.goal] == [True, False]


def test_our_row_is_a_record_of_the_strategies() -> None:
    found = {
        "task": "one",
        "strategy": "neurosymbolic",
        "seed": 0,
        "planted": "form",
        "cap_tflop": 60.0,
        "result": {"passed": "11", "rewards": [1.0, 1.0], "checks": {}},
        "changed": True,
        "stop": "enough",
        "rounds": [{"action": "textgrad", "kept": True}, {"action": "lora", "kept": False}],
        "wall_s": 1.0,
        "cost": {"tflop": 5.0, "editor_calls": 4.0, "start_tflop": 1.0},
        "commit": "c",
        "date": "2026-11-25",
        "machine": {"processor": "p"},
        "from": "bench-strategies",
    }
    ours = our_record(found)
    assert ours["left_with"].startswith("a prompt document, with")
    assert ours["settings"]["rounds"] == ["textgrad", "(lora)"]
    assert "| nslora | 1.00" in "\n".join(tables([json.loads(json.dumps(ours))]))


def test_a_local_server_answers_everyone_who_comes_at_once(batcher: Batcher) -> None:
    """DSPy scores a connection that was reset as a wrong answer."""
    barrier = threading.Barrier(60)
    with serve_chat(BatchedChat(batcher=batcher, max_tokens=8)) as server:

        def post(number: int) -> str:
            body = json.dumps({"model": "m", "messages": user(f"row {number}")}).encode()
            barrier.wait()
            with urllib.request.urlopen(f"{server.base_url}/chat/completions", data=body, timeout=30) as answer:
                return str(json.load(answer)["choices"][0]["message"]["content"])

        with ThreadPoolExecutor(60) as pool:
            assert list(pool.map(post, range(60))) == [f"ROW {number}" for number in range(60)]
