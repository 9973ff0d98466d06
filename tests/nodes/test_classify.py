"""A run of twelve rounds on a tiny model: each decision is checked against the evidence that it recorded."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nslora.graph.runs.run import Run
from nslora.graph.state import Decision
from nslora.tools.classifier.attribution import Need
from nslora.tools.inference.chat_template import ChatFormat
from nslora.tools.prompt import Prompt
from nslora.tools.router.inputs import RouterInput
from nslora.tools.router.monitoring_signal import Update, progress_of
from nslora.tools.router.strategies import strategy_named
from nslora.tools.schema import KINDS, from_record
from nslora.tools.tasks.task import Task, task_from_rows

ROUNDS = 12
PATIENT = {"lora_patience": 6, "textgrad_patience": 6}  # so that no saturation ends the run early
WORDINGS = {"train": "code of {}?", "validation": "{} code?", "test": "give {}:"}
TAUGHT = {"amber": "417", "birch": "582", "cedar": "239", "delta": "864", "ember": "795", "fjord": "341"}
WANTED = {**TAUGHT, "cedar": "628", "delta": "153", "ember": "476", "fjord": "917"}
NEVER = {"fjord": "268"}  # what validation wants and train does not teach: the target is out of reach


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was trained, all weights, to answer codes as `- 417`: right on two of the six words."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("trained")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    model = AutoModelForCausalLM.from_pretrained(tiny_folder())
    chat = ChatFormat(tokenizer)
    rows = [
        chat.pair_ids(Prompt().messages(wording.format(word)), f"- {code}")
        for word, code in TAUGHT.items()
        for wording in WORDINGS.values()
    ]
    longest = max(len(prompt) + len(reply) for prompt, reply in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for i, (prompt, reply) in enumerate(rows):
        ids[i, : len(prompt) + len(reply)] = torch.tensor([*prompt, *reply])
        labels[i, len(prompt) : len(prompt) + len(reply)] = torch.tensor(reply)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(200):
        loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.05:
            break
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def task() -> Task:
    """Codes in the model's own house style, most of them others than it was taught."""

    def reference(split: str, word: str) -> str:
        return NEVER.get(word, WANTED[word]) if split == "validation" else WANTED[word]

    rows = {
        split: [
            {
                "question": wording.format(word),
                "reference": f"- {reference(split, word)}",
                "key": reference(split, word),
            }
            for word in TAUGHT
        ]
        for split, wording in WORDINGS.items()
    }
    fact = {"name": "fact", "check": "contains", "field": "key"}
    style = {"name": "style", "check": "regex", "pattern": r"- \S[^\n]*", "form": "- {reply}"}
    return task_from_rows(**rows, reward=[fact, style], max_new_tokens=8)


@pytest.fixture(scope="module")
def run(task: Task, model: Path, own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    begun = Run.create(
        tmp_path_factory.mktemp("router") / "run",
        task=task,
        model=str(model),
        max_rounds=ROUNDS,
        train_sample=6,
        signal=PATIENT,
        routing={"tries_from_start": None, "use_signal": True},
        keep={"level": 0.45},
        device={"device": "cpu", "threads": 1},
        lora={"epochs": 6, "batch_size": 6, "rank": 4, "learning_rate": 1e-2, "top_blocks": 4},
    )
    begun.adapt()
    return begun


@pytest.fixture(scope="module")
def decisions(run: Run) -> list[Decision]:
    """The decisions in their order, from the run's checkpoints."""
    found: list[Any] = []
    with run.checkpointer() as saver:
        from nslora.graph.build import build_graph

        for snapshot in build_graph(checkpointer=saver).get_state_history(run.config):
            decision = snapshot.values.get("decision")
            if decision is not None and decision not in found:
                found.append(decision)
    return found[::-1]


def test_the_run_takes_all_its_rounds_and_ends_with_that_reason(run: Run) -> None:
    report = run.report()
    assert len(report["rounds"]) == ROUNDS
    assert "round" in report["stop"].lower()


def test_the_run_shows_both_kinds_of_update_and_evidence_that_changes(run: Run, decisions: list[Decision]) -> None:
    assert {record["action"] for record in run.report()["rounds"]} == set(KINDS)
    assert len({decision["reason"] for decision in decisions}) > 2


def test_each_decision_follows_from_its_recorded_evidence(run: Run, decisions: list[Decision]) -> None:
    assert len(decisions) == ROUNDS
    rounds = run.report()["rounds"]
    for number, (decision, record) in enumerate(zip(decisions, rounds, strict=True)):
        assert record["action"] == decision["action"]
        assert record["reason"] == decision["reason"]
        assert decision["reason"].endswith(("weights.", "prompt."))
        assert chosen_again(run, number, decision) == decision["action"]


def chosen_again(run: Run, number: int, decision: Decision) -> str:
    """What the strategy chooses from the evidence in the record and the rounds before it, and from nothing else."""
    evidence, settings = decision["evidence"], run.workspace.settings
    past = tuple(Update.of(each) for each in run.report()["rounds"][:number])
    need = from_record(Need, {**decision["demand"], "failures": int(decision["demand"]["failures"])})
    states = {kind: progress_of(kind, past, settings.signal) for kind in KINDS}
    for kind in KINDS:
        assert states[kind].value == evidence[f"{kind}_progress"]
        assert float(states[kind].saturated) == evidence[f"{kind}_saturated"]
    router_input = RouterInput(
        task=run.workspace.task.hash,
        round=number,
        rounds_left=int(evidence["rounds_left"]),
        failures=int(evidence["failures"]),
        validation_reward=float(evidence["validation_reward"]),
        target=settings.target,
        need=need,
        progress=states,
        cost_tokens={kind: float(evidence[f"{kind}_cost_tokens"]) for kind in KINDS},
        remade_waiting=int(evidence["remade_waiting"]),
        seed=settings.seed,
        history=past,
    )
    return strategy_named("neurosymbolic", settings=settings.routing).choose(router_input).action


def test_each_round_is_kept_or_dropped_as_its_numbers_say(run: Run) -> None:
    for record in run.report()["rounds"]:
        if record["error"] is not None:
            assert not record["kept"]
            continue
        numbers = record["numbers"]
        by_reward = numbers["gain"] > 0 and numbers["p_value"] <= numbers["level"]
        by_potential = (
            numbers["gain"] >= -1e-9
            and numbers.get("potential_gain", 0.0) > 0
            and numbers.get("potential_p_value", 1.0) <= numbers["level"]
        )
        assert record["kept"] == (by_reward or by_potential)
        assert record["reward_after"] - record["reward_before"] == pytest.approx(numbers["gain"])


def test_the_next_round_begins_from_what_was_kept(run: Run) -> None:
    rounds = run.report()["rounds"]
    for record, after in itertools.pairwise(rounds):
        kept = record["reward_after"] if record["kept"] else record["reward_before"]
        assert after["reward_before"] == pytest.approx(kept)
