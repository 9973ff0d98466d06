"""What people bring as rows: columns in prompts, several right answers, numbers, labels, the formats of public data."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nslora.tools.errors import NsloraError
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.rewards.reward import build_reward
from nslora.tools.tasks.task import Task, load_task, task_from_rows

LETTERS = "abcdefgh"


def template(text: str) -> str:
    return Prompt("", "{question}").render().replace("{question}", text)


def task_of(rows: list[dict[str, Any]], **options: Any) -> Task:
    """The rows as train; validation and test get two others each, made by another letter in their texts."""
    return task_from_rows(train=rows[:-2], validation=rows[-2:-1], test=rows[-1:], **options)


def refused(rows: list[dict[str, Any]], **options: Any) -> str:
    with pytest.raises(NsloraError) as caught:
        task_of(rows, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def asked(task: Task) -> str:
    return task.prompt.dialogue(task.train[0])[-1]["content"]


# Columns in prompts

ALIKE = [{"instruction": "Translate to French.", "input": f"word {c}", "output": f"mot {c}"} for c in LETTERS]
DIFFERENT = [{"instruction": f"Spell {c}.", "input": "", "output": c} for c in LETTERS]
IN_CONTEXT = [{"context": f"{c} was first.", "question": f"Who, {c}?", "reference": c, "n": 3} for c in LETTERS]


def test_alpaca_rows_ask_instruction_and_input_though_the_instruction_is_alike():
    task = task_of(ALIKE)
    assert asked(task) == "Translate to French.\n\nword a"
    assert (task.train[0].reference, task.notes) == ("mot a", ("The rows are read as Alpaca.",))
    assert asked(task_of(DIFFERENT)) == "Spell a."


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{instruction}\nInput: {input}\nOutput:", "Translate to French.\nInput: word a\nOutput:"),
        ("{{question}}\nInput: {{ input }}", "Translate to French.\nInput: word a"),
        ("### {question}", "### Translate to French.\n\nword a"),
    ],
)
def test_alpaca_columns_are_put_into_the_prompt_once(text, wanted):
    assert asked(task_of(ALIKE, prompt=template(text))) == wanted


def test_a_column_that_alone_tells_the_rows_apart_must_be_asked():
    fields = {"question": "instruction", "reference": "output"}
    message = refused(ALIKE, fields=fields)
    assert "All 8 rows ask the same question" in message
    assert "the column 'input' is not asked" in message
    assert asked(task_of(ALIKE, fields=fields, prompt=template("{question}: {input}"))).endswith(": word a")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Q: {{question}}", "Q: Who, a?"),
        ("C: {context}\nQ: {question}\nA:", "C: a was first.\nQ: Who, a?\nA:"),
        ("{n} {context} {question}", "3 a was first. Who, a?"),
        (r'{question} {"a": {"b": 1}} \boxed{context} x^{n}', r'Who, a? {"a": {"b": 1}} \boxed{context} x^{n}'),
    ],
)
def test_columns_are_filled_in_and_other_braces_stay(text, wanted):
    task = task_of(IN_CONTEXT, prompt=template(text))
    assert asked(task) == wanted
    assert task.prompt.template.count("{question}") == 1


def test_a_demonstration_is_asked_as_a_row_is():
    prompt = Prompt("", "C: {context}\nQ: {question}\nA:", (Demonstration("C: z was first.\nQ: Who, z?", "z"),))
    turns = task_of(IN_CONTEXT, prompt=prompt).prompt.messages("C: y was first.\nQ: Who, y?")
    assert [turn["content"] for turn in turns[::2]] == [
        "C: z was first.\nQ: Who, z?\nA:",
        "C: y was first.\nQ: Who, y?\nA:",
    ]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"prompt": template("{passage}: {question}")}, "{passage}, which is no column (columns: context, question"),
        ({"prompt": template("{{ passage }} {question}")}, "{passage}, which is no column"),
        ({"prompt": Prompt("Use {context}.")}, "The system turn uses {context}"),
    ],
)
def test_a_prompt_with_what_is_no_column_is_refused_at_load(changes, part):
    assert part in refused(IN_CONTEXT, **changes)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (float("nan"), "train row 1: the column 'context' of the prompt holds 'nan', which is no text"),
        ({"title": "a"}, "train row 1: the column 'context' of the prompt holds"),
    ],
)
def test_a_column_of_the_prompt_that_is_no_text_is_refused(value, part):
    rows = [{**IN_CONTEXT[0], "context": value}, *IN_CONTEXT[1:]]
    assert part in refused(rows, prompt=template("{context} {question}"))


def test_a_path_and_a_list_are_put_into_the_prompt():
    rows = [{**row, "context": {"text": ["one", "two"]}} for row in IN_CONTEXT]
    assert asked(task_of(rows, prompt=template("{context.text}\n{question}"))) == "one\ntwo\nWho, a?"


# Formats of public data


def turns(c: str, *, system: str | None = None, role: str = "role", content: str = "content") -> list[dict[str, str]]:
    names = ("human", "gpt") if role == "from" else ("user", "assistant")
    own = [] if system is None else [{role: "system", content: system}]
    return [*own, {role: names[0], content: f"Who, {c}?"}, {role: names[1], content: c}]


@pytest.mark.parametrize(
    "row_of",
    [
        lambda c: {"messages": turns(c)},
        lambda c: {"conversations": turns(c, role="from", content="value")},
        lambda c: {"prompt": f"Who, {c}?", "completion": c},
        lambda c: {"messages": np.array(turns(c), dtype=object)},
        lambda c: {"prompt": turns(c)[:1], "completion": turns(c)[1:]},
        lambda c: {"messages": [{"role": "user", "content": [{"type": "text", "text": f"Who, {c}?"}]}, turns(c)[1]]},
    ],
)
def test_rows_of_public_formats_are_taken_as_they_are(row_of):
    task = task_of([row_of(c) for c in LETTERS])
    assert (asked(task), task.train[0].reference) == ("Who, a?", "a")
    assert task.prompt == Prompt()


def test_a_system_message_that_all_rows_share_is_the_system_turn():
    task = task_of([{"messages": turns(c, system="Be brief.")} for c in LETTERS])
    assert task.prompt == Prompt("Be brief.")
    assert task.train[0].question == "Who, a?"


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"messages": []}, "the dialogue has no user turn (turns: none)"),
        ({"messages": "Who?"}, "the messages are str"),
        ({"messages": ["Who?"]}, "a message is str"),
        (
            {"messages": turns("a")[:1]},
            "no field 'reference' (found: messages, question): the dialogue ends with a user",
        ),
        ({"messages": turns("a")[:1] + turns("a")}, "has two user turns in a row (turns 1 and 2): make them one"),
        ({"messages": [*turns("a"), turns("a")[1]]}, "has two assistant turns in a row (turns 2 and 3)"),
        ({"messages": turns("a")[1:] + turns("a")}, "begins with an assistant turn"),
        ({"messages": turns("a") + turns("b", system="Now b.")}, "has a system turn after its beginning"),
        ({"messages": [*turns("a"), {"role": "tool", "content": "7"}, *turns("b")]}, "has a turn of tool"),
        ({"messages": [turns("a")[0], {**turns("a")[1], "tool_calls": [{}]}]}, "has a turn of assistant with a tool"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a part of the type image"),
        ({"messages": [{"role": "user", "content": None}]}, "a message has no text"),
        ({"text": "Who?"}, "no column 'messages', which other rows have"),
    ],
)
def test_a_dialogue_that_a_row_cannot_hold_is_refused(row, part):
    message = refused([{"messages": turns("z")}, row, *({"messages": turns(c)} for c in LETTERS)])
    assert message.startswith("train row 2: ")
    assert part in message


# The pages

PAGES = Path(__file__).parents[3]


def test_the_task_of_the_readme_loads(tmp_path):
    (content,) = re.findall(r"```yaml\n(.*?)```", (PAGES / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "task.yaml").write_text(content)
    lines = [f'"In {c}.","Who, {c}?",{c}' for c in "abcdefghij"]
    (tmp_path / "rows.csv").write_text("\n".join(["context,ask,answers", *lines]))
    task = load_task(tmp_path)
    letter = task.train[0].reference
    assert asked(task) == f"In {letter}.\n\nQuestion: Who, {letter}?"
    assert [len(task.train), len(task.validation), len(task.test)] == [6, 2, 2]


def test_the_examples_of_the_tasks_page_are_a_prompt_and_a_judge():
    page = (PAGES / "tools/tasks/README.md").read_text(encoding="utf-8")
    prompt, reward = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    assert asked(task_of(IN_CONTEXT, **prompt)) == "Passage: a was first.\n\nQuestion: Who, a?"
    (judge,) = build_reward(reward["reward"]).judges
    assert (judge.judge, judge.most_calls, judge.at_once) == ("openai:gpt-4o", 3, 8)


# Several right answers


def answered(reference: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"question": f"Who, {c}?", "reference": reference, **more} for c in LETTERS]


@pytest.mark.parametrize(
    "reference",
    [
        ["Ada", "Ada L."],
        [["Ada"], ["Ada L."]],
        {"value": "Ada", "aliases": ["Ada L.", "Ada"], "type": "person"},
        {"text": ["Ada", "Ada L."], "answer_start": [1, 2]},
        [{"text": "Ada"}, {"text": "Ada L."}],
        np.array(["Ada", "Ada L."]),
    ],
)
@pytest.mark.parametrize("column", ["reference", "answer"])
def test_any_of_several_right_answers_is_right_and_weights_learn_the_first(reference, column):
    rows = [{"question": row["question"], column: reference} for row in answered("x")]
    task = task_of(rows, fields={"reference": column})
    row = task.train[0]
    assert (row.reference, row.answers) == ("Ada", ("Ada", "Ada L."))
    assert [task.reward(row, reply).value for reply in ("Ada", "Ada L.", "Ada, Ada L.", "", "['Ada', 'Ada L.']")] == [
        *(1, 1, 0, 0, 0)
    ]
    checked = task_of(answered("Ada", answer=reference), reward=[{"check": "exact_match", "field": "answer"}])
    assert [checked.reward(checked.train[0], reply).value for reply in ("Ada L.", "Bob")] == [1, 0]


def test_a_path_names_the_right_answers():
    rows = [{"question": f"Who, {c}?", "answers": {"text": ["Ada", "A."], "score": [1, 2]}} for c in LETTERS]
    task = task_of(rows, fields={"reference": "answers.text"}, reward=[{"check": "contains", "field": "answers.text"}])
    assert task.train[0].answers == ("Ada", "A.")
    assert task.reward(task.train[0], "It is A.").passed


def test_one_answer_must_be_right_under_all_checks():
    """A reply that is right by one answer's number and another one's text is wrong."""
    task = task_of(answered(["18", "20.0"]), reward=["contains", "numeric"], combine="all")
    assert [task.reward(task.train[0], reply).value for reply in ("18", "20.0", "18 or 20", "19")] == [1, 1, 0, 0]


def test_an_answer_that_a_check_cannot_read_is_left_out_of_the_comparison():
    task = task_of(answered(["18", "eighteen apples"]), reward=["numeric"])
    assert [task.reward(task.train[0], reply).value for reply in ("18", "17")] == [1, 0]
    assert "needs a number" in refused(answered(["x", "y"]), reward=["numeric"])


def test_a_function_is_asked_for_each_right_answer_until_one_is_full():
    task = task_of(answered(["Ada", "Ada L."]), reward=lambda question, reference, reply: float(reply == reference))
    assert [task.reward(task.train[0], reply).value for reply in ("Ada", "Ada L.", "x")] == [1, 1, 0]


@pytest.mark.parametrize("columns", [{"answers": ["Ada", "A."]}, {"answer": "Ada"}, {"key": ["Ada"], "answer": "no"}])
def test_answers_without_a_column_for_references_are_the_references(columns):
    reward = [{"check": "contains", "field": next(iter(columns))}]
    rows = [{"question": f"Who, {c}?", **columns} for c in LETTERS]
    task = task_of(rows, reward=reward)
    assert task.train[0].reference == "Ada"
    assert "is the reference" in task.notes[0]
    none = task_of(rows, reward=reward, fields={"reference": None})
    assert none.train[0].reference is None
    assert "reference: null" in none.notes[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(7, "7"), (7.5, "7.5"), (True, "true"), (False, "false"), (np.int64(7), "7"), (np.bool_(True), "true"), (0, "0")],
)
def test_numbers_and_booleans_are_references_as_text(value, text):
    task = task_of(answered(value))
    assert (task.train[0].reference, task.train[0].answers) == (text, ())
    assert task.reward(task.train[0], text).passed


@pytest.mark.parametrize("value", [float("nan"), None, np.float64("nan")])
def test_a_missing_value_is_refused_with_its_row(value):
    rows = answered("Ada")
    assert refused([{**rows[0], "reference": value}, *rows[1:]]).startswith("train row 1: the reference is ")
    by_field = [{"check": "contains", "field": "key"}]
    keyed = [{**row, "key": "Ada"} for row in rows]
    message = refused([{**keyed[0], "key": value}, *keyed[1:]], reward=by_field)
    assert message.startswith("train row 1: the check 'contains' needs ")
    assert ("missing or empty" if value is None else "NaN, a missing value") in message


def test_an_object_whose_answers_are_unknown_is_refused_for_a_check():
    message = refused(answered("x", key={"value": 5, "unit": "km"}), reward=[{"check": "contains", "field": "key"}])
    assert (
        "the check 'contains' needs text in the field 'key', which holds an object with the keys value, unit" in message
    )


def test_labels_of_a_dataset_are_their_names(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = [
        datasets.Dataset.from_list([{"text": f"{s} {c}", "label": i % 2} for i, c in enumerate(LETTERS)], features)
        for s in ("one", "two", "three")
    ]
    fields = {"question": "text", "reference": "label"}
    task = task_from_rows(train=rows[0], validation=rows[1], test=rows[2], fields=fields)
    assert [row.reference for row in task.train[:2]] == ["bad", "good"]
    assert task.train[0].fields["label"] == "bad"
    unlabelled = datasets.Dataset.from_list([{"text": "x", "label": -1}], features)
    with pytest.raises(NsloraError, match="test row 1: the reference is None"):
        task_from_rows(train=rows[0], validation=rows[1], test=unlabelled, fields=fields)


# Hashes


def test_one_answer_in_a_list_is_another_task_than_several():
    hashes = {task_of(answered(reference)).hash for reference in (["Ada"], ["Ada", "A."], "Ada")}
    assert len(hashes) == 3


def test_the_hash_of_plain_rows_is_that_of_earlier_versions():
    """Computed with the version before several answers, columns in prompts and samples."""
    task = task_of([{"question": f"Who, {c}?", "reference": c, "n": 3} for c in LETTERS])
    assert task.hash_of({}) == HASH_BEFORE  # of the first revisions of the checks
    assert load_task("handbook").hash == HANDBOOK_BEFORE


HASH_BEFORE = "bd7990cfce3f319fc286b7b3ed712797574c4262dd3e0fd93df20c787cde7a76"
HANDBOOK_BEFORE = "e3c501a0eeea402ebc604c5971f31a34d5a5b8046cf957ccb8df01fc1df717d1"


# Files and frames


def test_other_files_give_the_same_rows(tmp_path):
    splits = {"train": LETTERS[:4], "validation": LETTERS[4:6], "test": LETTERS[6:]}
    hashes = set()
    for suffix, mark in ((".tsv", "\t"), (".csv", ";"), (".csv", ","), (".tsv.gz", "\t"), (".jsonl.gz", "")):
        folder = tmp_path / f"{suffix}{ord(mark or 'j')}"
        folder.mkdir()
        for split, letters in splits.items():
            rows = [{"question": f"Who is {c}, say", "reference": c} for c in letters]
            if mark:
                lines = [
                    mark.join(("question", "reference")),
                    *(mark.join((f'"{r["question"]}"', r["reference"])) for r in rows),
                ]
            else:
                lines = [json.dumps(row) for row in rows]
            data = ("\n".join(lines) + "\n").encode()
            (folder / f"{split}{suffix}").write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
        hashes.add(load_task(folder).hash)
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("train.jsonl.gz", b"{}", "invalid gzip"),
        ("train.jsonl.gz", gzip.compress(b'{"question": "a", "reference": "b"}' * 99, mtime=0)[:-20], "ends too early"),
        ("train.tsv", b"question\treference\na\tb\tc\n", "3 values for 2 columns; quote values with tabs"),
        ("train.csv", b"question;reference\na;b;c\n", "quote values with semicolons"),
        ("train.parquet.gz", b"", "the format '.gz' is unknown"),
    ],
)
def test_malformed_files_are_refused(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(content)
    data = dict.fromkeys(("train", "validation", "test"), name)
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({"data": data}))
    with pytest.raises(NsloraError) as caught:
        load_task(tmp_path)
    assert part in str(caught.value)


def test_frames_are_rows():
    pandas = pytest.importorskip("pandas")
    rows = [{"question": f"Who, {c}?", "reference": c, "n": 3} for c in LETTERS]
    frames = [pandas.DataFrame(part) for part in (rows[:-2], rows[-2:-1], rows[-1:])]
    task = task_from_rows(train=frames[0], validation=frames[1], test=frames[2])
    assert task.hash == task_of(rows).hash
    frames[0]["hint"] = ["h", *[float("nan")] * (len(frames[0]) - 1)]
    splits = {"train": frames[0], "validation": frames[1].assign(hint=None), "test": frames[2].assign(hint=None)}
    hinted = task_from_rows(**splits, prompt="{hint}:{question}").train
    assert [hinted[0].question, hinted[1].question, hinted[1].fields["n"]] == ["h:Who, a?", ":Who, b?", 3]
    frames[0].loc[0, "reference"] = None
    with pytest.raises(NsloraError, match="train row 1: the reference is"):
        task_from_rows(train=frames[0], validation=frames[1], test=frames[2])
