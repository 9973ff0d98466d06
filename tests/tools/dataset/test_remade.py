"""Remade data: verified, once each, with their origin, and a data set of their own."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nslora.graph.state import first_state
from nslora.nodes.monitor import remade_after
from nslora.tools.dataset.remade import (
    LAYOUT,
    RemadeRow,
    hinted,
    known_rows,
    read_rows,
    remake,
    rows_by_source,
    with_hint,
    write_rows,
)
from nslora.tools.dataset.selection import Material, training_rows
from nslora.tools.files import write_jsonl
from nslora.tools.inference.chat_template import ChatFormat
from nslora.tools.inference.reply_cache import ReplyCache
from nslora.tools.policy import Generated, OnProgress, no_progress
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.schema import Example
from nslora.tools.tasks.task import Task, load_task
from nslora.tools.testing.tiny_task import write_tiny_task

PROMPT = Prompt(
    "Begin with a dash.",
    demonstrations=(Demonstration("Who keeps the mill?", "- ok"), Demonstration("Who keeps the moon?", "- nobody")),
)


class Answers:
    """A policy whose replies are a function of the question and the adapter; it keeps what it was asked."""

    fingerprint = "answers"

    def __init__(self, reply: Callable[[str, str | None], str], context_tokens: int = 1000) -> None:
        self.context_tokens = context_tokens
        self._reply = reply
        self.asked: list[tuple[str, str | None]] = []

    def generate(
        self,
        dialogues: Sequence[Sequence[dict[str, str]]],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: OnProgress = no_progress,
    ) -> Generated:
        questions = [dialogue[-1]["content"] for dialogue in dialogues]
        self.asked += [(question, adapter) for question in questions]
        return Generated(tuple(self._reply(question, adapter) for question in questions), len(questions))

    def count_tokens(self, dialogue: Sequence[dict[str, str]]) -> int:
        return sum(len(turn["content"].split()) for turn in dialogue)


def answer_of(question: str) -> str:
    return question.partition("(The answer is: ")[2].rstrip(")")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_task(write_tiny_task(tmp_path / "task", rows=4))


def remade(task: Task, reply: Callable[[str, str | None], str], **options: Any) -> tuple[list[RemadeRow], Answers]:
    policy: Any = Answers(reply)
    made = remake(policy, None, task.reward, PROMPT, task.train, adapter="a1", max_new_tokens=12, **options)
    return list(made.rows), policy


def test_a_row_whose_hint_does_not_fit_the_context_is_not_asked_but_put_into_a_layout(task: Task) -> None:
    longer = replace(task.train[1], reference="ab " * 30)
    policy: Any = Answers(lambda question, _: f"- {answer_of(question)}", context_tokens=60)
    made = remake(
        policy, None, task.reward, PROMPT, (task.train[0], longer, *task.train[2:]), adapter="a1", max_new_tokens=12
    )
    assert not any(longer.question in question for question, _ in policy.asked)
    assert {row.question for row in made.rows} == {row.question for row in task.train}


def test_the_hint_stands_in_the_question_and_in_the_demonstrations_of_train(task: Task) -> None:
    hinted_row = with_hint(Example("1", "Who {reference}?", "a {question}", {}))
    assert hinted_row.question == "Who {reference}?\n(The answer is: a {question})"
    prompt = hinted(PROMPT, [Example("train-1", "Who keeps the mill", "ok", {})])
    assert [each.question for each in prompt.demonstrations] == [
        "Who keeps the mill?\n(The answer is: ok)",
        "Who keeps the moon?",
    ]
    rows, _ = remade(task, lambda question, _: f"- {answer_of(question)}")
    assert {row.question for row in rows} == {row.question for row in task.train}
    assert not any("The answer is" in json.dumps(row.as_trl(PROMPT)) for row in rows)


def test_the_adapter_answers_what_the_base_could_not_and_a_layout_what_neither_could(task: Task) -> None:
    hard = task.train[1].question

    def reply(question: str, adapter: str | None) -> str:
        good = adapter is not None or not question.startswith(hard)
        return f"- {answer_of(question)}" if good and task.train[2].question not in question else "no idea"

    rows, policy = remade(task, reply, edit="1-abc")
    assert [(row.source, row.adapter) for row in rows] == [
        (task.train[0].id, None),
        (task.train[1].id, "a1"),
        (task.train[2].id, LAYOUT),
        (task.train[3].id, None),
    ]
    assert rows[2].reply == f"- {task.train[2].reference}"
    assert {(row.prompt, row.edit, row.reward) for row in rows} == {(PROMPT.hash, "1-abc", 1.0)}
    assert len([None for _, adapter in policy.asked if adapter == "a1"]) == 2


def test_a_layout_is_learnt_from_what_the_reward_pays_for_in_full_or_not_at_all(task: Task) -> None:
    rows, policy = remade(task, lambda question, adapter: "no idea")  # one demonstration shows the layout
    assert [row.adapter for row in rows] == [LAYOUT] * 4
    assert all(task.reward(example, row.reply).passed for example, row in zip(task.train, rows, strict=True))
    nothing: Any = remake(policy, None, task.reward, Prompt(), task.train, adapter=None, max_new_tokens=8)  # type: ignore[arg-type]
    assert nothing.rows == ()


def test_a_source_row_has_no_more_replies_than_the_cap_and_none_twice(task: Task) -> None:
    def differs(question: str, adapter: str | None) -> str:
        return f"- {answer_of(question)}{'!' if adapter else ''}"

    def same(question: str, adapter: str | None) -> str:
        return f"- {answer_of(question)}"

    assert len(remade(task, differs)[0]) == 4
    rows, _ = remade(task, differs, per_row=2)
    assert len(rows) == 8
    assert [row.adapter for row in rows[:2]] == [None, "a1"]
    assert len(remade(task, same, per_row=2)[0]) == 4


def test_a_reply_that_the_length_limit_cut_is_no_row(task: Task, tmp_path: Path) -> None:
    class CutsTheSecond(Answers):
        def generate(self, dialogues: Sequence[Sequence[dict[str, str]]], **options: Any) -> Generated:
            return replace(super().generate(dialogues, **options), truncated=frozenset([1]))

    policy: Any = CutsTheSecond(lambda question, _: f"- {answer_of(question)} and so on")
    for cache in (None, ReplyCache(tmp_path / "replies.sqlite"), ReplyCache(tmp_path / "replies.sqlite")):
        made = remake(
            policy, cache, task.reward, Prompt("Begin with a dash."), task.train, adapter=None, max_new_tokens=12
        )
        assert [row.source for row in made.rows if row.adapter != LAYOUT] == [
            task.train[0].id,
            *(row.id for row in task.train[2:]),
        ]
    assert len(policy.asked) == 2 * len(task.train)  # the third time the mark comes from the cache


def test_references_of_rows_that_no_reply_could_be_paid_for_are_put_into_layouts(task: Task) -> None:
    policy: Any = Answers(lambda question, _: f"- {answer_of(question)}")
    made = remake(
        policy, None, task.reward, PROMPT, task.train[:2], adapter=None, max_new_tokens=12, unasked=task.train[2:]
    )
    assert [row.adapter for row in made.rows] == [None, None, LAYOUT, LAYOUT]
    assert len(policy.asked) == 2


def test_rows_that_are_known_already_stand_in_for_references_that_teach_the_wrong_form(task: Task) -> None:
    one, two, three, four = task.train
    rows = known_rows(
        task.reward,
        PROMPT,
        task.train,
        own={one.id: f"- {one.reference}!"},
        mended={two.id: f"- It is {two.reference}", three.id: "no idea"},
        adapter="a1",
    )
    assert [(row.source, row.adapter) for row in rows] == [
        (one.id, "a1"),
        (two.id, LAYOUT),
        (three.id, LAYOUT),
        (four.id, LAYOUT),
    ]
    assert rows[1].reply == f"- It is {two.reference}"
    assert all(task.reward(example, row.reply).passed for example, row in zip(task.train, rows, strict=True))
    as_wanted = [replace(row, reference=f"- {row.reference}") for row in task.train]
    own = {one.id: f"- {one.reference}!"}
    assert known_rows(task.reward, PROMPT, as_wanted, own=own, mended={}, adapter=None) == []


def test_rows_are_found_again_by_their_source_and_feed_a_training_job(task: Task, tmp_path: Path) -> None:
    rows, _ = remade(task, lambda question, adapter: f"- {answer_of(question)}{'!' if adapter else ''}", per_row=2)
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    by_source = rows_by_source(rows)
    job = training_rows(
        task.train, Material((), (), ()), PROMPT, by_source, everything=True, replay_share=0.0, seed="0"
    )
    assert [row.completion for row in job] == [row.reply for row in rows]
    assert {row.origin for row in job} == {"remade"}


@pytest.mark.parametrize("chat_template", [True, False])
def test_the_file_is_a_data_set_that_datasets_loads_and_trl_trains_on(
    task: Task, tmp_path: Path, tiny_folder: Callable[..., Path], chat_template: bool
) -> None:
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows, _ = remade(task, lambda question, _: f"- {answer_of(question)}")
    write_jsonl(tmp_path / "remade.jsonl", [row.as_trl(PROMPT, as_text=not chat_template) for row in rows])
    data = load_dataset(
        "json", data_files=str(tmp_path / "remade.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert data.column_names == ["prompt", "completion", "source", "prompt_hash", "edit", "adapter", "reward"]
    assert data[0]["completion"] == ([{"role": "assistant", "content": "- ok"}] if chat_template else " - ok")
    folder = tiny_folder("llama", chat_template)
    model = AutoModelForCausalLM.from_pretrained(folder)
    trainer = SFTTrainer(
        model=model,
        train_dataset=data,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=2),
        args=SFTConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=1,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        ),
    )
    chat = ChatFormat(AutoTokenizer.from_pretrained(folder))
    prompt, completion = chat.pair_ids(PROMPT.messages(rows[0].question), rows[0].reply)
    first = next(iter(trainer.train_dataset))
    whole = [*prompt, *completion]  # TRL tokenizes the newline after the end of a turn, too
    assert first["input_ids"][: len(whole)] == whole
    assert first["labels"][: len(whole)] == [*[-100] * len(prompt), *completion]
    before = {name: value.clone() for name, value in trainer.model.named_parameters() if "lora_B" in name}
    trainer.train()
    assert any(not value.equal(before[name]) for name, value in trainer.model.named_parameters() if name in before)


KEPT, NEW = {"prompt": "kept", "rows": 5, "waiting": True}, {"prompt": "new", "rows": 3, "waiting": True}


@pytest.mark.parametrize(
    ("edit_kept", "pool", "after"),
    [
        (True, None, NEW),
        (False, None, NEW),
        (True, KEPT, NEW),
        (False, KEPT, KEPT),  # the prompt in force goes before a dropped one
        (False, {**KEPT, "waiting": False}, NEW),  # what was trained on waits for nothing
        (False, {**KEPT, "prompt": "dropped before"}, NEW),
    ],
)
def test_a_training_job_learns_from_the_newest_edit_but_for_the_kept_one_that_still_waits(
    edit_kept: bool, pool: Any, after: Any
) -> None:
    state = {**first_state("kept"), "remade": pool}
    proposal: Any = {"kind": "textgrad", "candidate": {"adapter": None, "prompt": "new"}, "new_rows": 3}
    verdict: Any = {"kept": edit_kept, "reason": "", "numbers": {}, "by_test": edit_kept}
    assert remade_after(state, proposal, verdict) == after
    assert remade_after(state, {**proposal, "new_rows": 0}, verdict) == pool
    assert remade_after(state, {**proposal, "candidate": None}, verdict) == pool
