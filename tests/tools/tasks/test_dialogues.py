"""Rows of several turns: read, asked, judged, trained on and remade with all their turns."""

from pathlib import Path
from typing import Any

import pytest
import trl
from fakes import FakePolicy

from nslora.graph.runs.run import Run
from nslora.tools.dataset.remade import RemadeRow, hinted, read_rows, with_hint, write_rows
from nslora.tools.editor.failures_view import failure_texts
from nslora.tools.errors import TaskError
from nslora.tools.files import read_jsonl
from nslora.tools.inference.chat_template import ChatFormat
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.rewards.score import Graded, Score
from nslora.tools.schema import Example, answered
from nslora.tools.tasks.check import check_task
from nslora.tools.tasks.regression_set import read_regression_set
from nslora.tools.tasks.task import Task, task_from_rows
from nslora.tools.testing.tiny_model import byte_tokenizer
from nslora.tools.testing.tiny_task import KEEPERS, PLACES

Message = dict[str, str]
EARLIER = (("user", "Where is {}?"), ("assistant", "By the {}."))


def message(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def turns(place: str, keeper: str, *, wording: str = "Who keeps it?") -> list[Message]:
    earlier = [message(role, text.format(place)) for role, text in EARLIER]
    return [*earlier, message("user", wording), message("assistant", keeper)]


def share_gpt(messages: list[Message]) -> list[Message]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[each["role"]], "value": each["content"]} for each in messages]


DIALOGUES = [turns(f"place {n}", f"keeper {n}") for n in range(8)]
FORMATS: dict[str, Any] = {
    "messages": lambda turns: {"messages": turns},
    "ShareGPT": lambda turns: {"conversations": share_gpt(turns)},
    "prompt-completion": lambda turns: {"prompt": turns[:-1], "completion": turns[-1:]},
    "prompt and completion's text": lambda turns: {"prompt": turns[:-1], "completion": turns[-1]["content"]},
    "preference pairs": lambda turns: {"prompt": turns[:-1], "chosen": turns[-1:], "rejected": turns[:1]},
    "preference pairs without prompts": lambda turns: {"chosen": turns, "rejected": turns[:-1]},
    "hh-rlhf": lambda turns: {
        "chosen": "".join(f"\n\n{'Human' if t['role'] == 'user' else 'Assistant'}: {t['content']}" for t in turns),
        "rejected": "",
    },
    "prompts with answers": lambda turns: {"prompt": turns[:-1], "answer": turns[-1]["content"]},
}


def task_of(rows: list[dict[str, Any]], **options: Any) -> Task:
    return task_from_rows(train=rows[:-4], validation=rows[-4:-2], test=rows[-2:], **options)


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_of_several_turns_asks_them_all_and_its_last_answer_is_the_reference(name: str) -> None:
    task = task_of([FORMATS[name](each) for each in DIALOGUES], prompt=Prompt(template="Q: {question}"))
    row = task.train[0]
    assert (row.question, row.reference) == ("Who keeps it?", DIALOGUES[0][-1]["content"])
    assert task.prompt.dialogue(row) == [*DIALOGUES[0][:-2], message("user", "Q: Who keeps it?")]
    assert any("weights learn the last assistant turn" in note for note in task.notes)
    assert check_task(task).rows[0].messages == task.prompt.dialogue(row)


def test_system_turn_demonstrations_history_and_question_come_in_this_order() -> None:
    prompt = Prompt("Be brief.", "Q: {question}", (Demonstration("Who?", "Ada"),))
    row = Example("1", "Why?", None, {}, history=(("system", "You are Bo."), ("user", "Hm?"), ("assistant", "Yes.")))
    assert prompt.dialogue(row) == [
        message("system", "Be brief.\n\nYou are Bo."),
        message("user", "Q: Who?"),
        message("assistant", "Ada"),
        message("user", "Hm?"),
        message("assistant", "Yes."),
        message("user", "Q: Why?"),
    ]
    assert row.asked == "System: You are Bo.\n\nUser: Hm?\n\nAssistant: Yes.\n\nUser: Why?"


@pytest.mark.parametrize("several", [True, False])
def test_system_messages_that_differ_stay_the_rows_own_system_turns(several: bool) -> None:
    kept = slice(None) if several else slice(-2, None)
    rows = [{"messages": [message("system", f"You are {n}."), *each[kept]]} for n, each in enumerate(DIALOGUES)]
    task = task_of(rows)
    assert task.prompt == Prompt()
    assert task.prompt.dialogue(task.train[0]) == rows[0]["messages"][:-1]
    shared = [{"messages": [message("system", "You are Bo."), *each]} for each in DIALOGUES]
    own = task_of(shared, prompt=Prompt("Be brief."))
    assert own.prompt.dialogue(own.train[0])[0] == message("system", "Be brief.\n\nYou are Bo.")


def test_dialogues_that_differ_in_an_earlier_turn_are_different_questions() -> None:
    """All of these rows end with the same question; a question of one split may not be in another one, whole."""
    rows = [{"messages": each} for each in DIALOGUES]
    assert len({row.asked for row in task_of(rows).train}) == 4
    with pytest.raises(TaskError, match="The splits overlap: 1 of the 2 test rows"):
        task_of([*rows[:-1], rows[0]])
    assert len(task_of([*rows[:-1], rows[0]], duplicates="drop").train) == 3


def test_a_dialogue_is_another_task_than_its_last_question() -> None:
    plain = [{"prompt": each[-2]["content"] + str(n), "completion": "x"} for n, each in enumerate(DIALOGUES)]
    with_turns = [{**row, "prompt": [*each[:2], message("user", row["prompt"])], "completion": "x"} for row, each in
                  zip(plain, DIALOGUES, strict=True)]  # fmt: skip
    tasks = [task_of(rows) for rows in (plain, with_turns)]
    assert len({task.hash for task in tasks}) == 2


def test_an_editor_sees_all_turns() -> None:
    row = task_of([{"messages": each} for each in DIALOGUES]).train[0]
    shown = failure_texts(Graded(row, "x", Score(0.0, {"exact_match": 0.0}, "No.")))
    assert shown.question == row.asked
    assert shown.question.startswith(f"User: {DIALOGUES[0][0]['content']}\n\nAssistant: ")


def test_hints_stand_in_the_last_turn_and_in_demonstrations_of_a_dialogue() -> None:
    row = task_of([{"messages": each} for each in DIALOGUES]).train[0]
    prompt = hinted(Prompt(demonstrations=(Demonstration(row.asked, "x"),)), [row])
    hint = f"(The answer is: {row.reference})"
    assert prompt.demonstrations[0].question == f"{row.asked}\n{hint}"
    assert prompt.dialogue(with_hint(row))[-1]["content"] == f"Who keeps it?\n{hint}"
    assert prompt.dialogue(with_hint(row))[-3:-1] == DIALOGUES[0][:2]


def test_remade_rows_keep_their_turns_and_trl_writes_what_was_trained(tmp_path: Path) -> None:
    row = task_of([{"messages": each} for each in DIALOGUES]).train[0]
    prompt, chat = Prompt("Be brief."), ChatFormat(byte_tokenizer(chat_template=True))
    made = RemadeRow(row.id, row.question, "Ada", prompt.hash, None, 1.0, history=row.history)
    write_rows(tmp_path / "rows.jsonl", [made, RemadeRow("2", "Who?", "Bo", prompt.hash, None, 1.0)])
    assert read_rows(tmp_path / "rows.jsonl")[0] == made
    assert "history" not in read_jsonl(tmp_path / "rows.jsonl")[1]
    as_trl = made.as_trl(prompt)
    assert as_trl["prompt"] == prompt.dialogue(row)
    written = trl.apply_chat_template({key: as_trl[key] for key in ("prompt", "completion")}, chat.tokenizer)
    asked, learnt = chat.pair_ids(prompt.dialogue(row), "Ada")
    assert chat.tokenizer(written["prompt"], add_special_tokens=False)["input_ids"] == asked
    assert (written["prompt"] + written["completion"]).startswith(chat.tokenizer.decode([*asked, *learnt]))


def test_functions_of_trl_get_all_turns_and_others_their_text() -> None:
    seen: list[Any] = []

    def of_trl(prompts: list[Any], completions: list[Any]) -> list[float]:
        seen.append(prompts[0])
        return [1.0]

    def own(question: str, reference: str, reply: str) -> float:
        seen.append(question)
        return 1.0

    row = task_of([{"messages": each} for each in DIALOGUES]).train[0]
    for function in (of_trl, own):
        task_of([{"messages": each} for each in DIALOGUES], reward=function).reward(row, "x")
    assert row.asked in seen
    assert all(each in (row.asked, DIALOGUES[0][:-1]) for each in seen)


def test_the_regression_set_may_hold_dialogues(tmp_path: Path) -> None:
    import json

    task = task_of([{"messages": each} for each in DIALOGUES])
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"messages": turns("moon", "Mo")}))
    (row,) = read_regression_set(str(path), task)
    assert task.prompt.dialogue(row) == turns("moon", "Mo")[:-1]
    path.write_text(json.dumps({"messages": DIALOGUES[0]}))
    with pytest.raises(TaskError, match="is also in the train split"):
        read_regression_set(str(path), task)


def test_a_run_trains_on_the_last_turn_after_all_others(tmp_path: Path) -> None:
    splits = [
        [{"messages": turns(place, KEEPERS[n % 3], wording=wording)} for n, place in enumerate(PLACES)]
        for wording in ("Who keeps it?", "Who is its keeper?", "Name the keeper.")
    ]
    task = task_from_rows(train=splits[0], validation=splits[1], test=splits[2])
    policy = FakePolicy(tmp_path / "run" / "adapters")
    settings: dict[str, Any] = {"strategy": "lora", "max_rounds": 1, "reuse_replies": False}
    run = Run.create(tmp_path / "run", task=task, model=policy, editor="rules", **settings)
    run.adapt()
    rows = [row for job in policy.jobs for row in job.rows]
    assert rows
    by_id = {row.id: row for row in task.train}
    for row in rows:
        assert answered(row.dialogue, by_id[row.source].reference or "")[-4:] == [
            *(message(*turn) for turn in by_id[row.source].history),
            message("user", "Who keeps it?"),
            message("assistant", by_id[row.source].reference or ""),
        ]
