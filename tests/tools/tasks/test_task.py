"""Tasks load from files, folders and rows; whatever is wrong with them is said in one sentence, with its place."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nslora.tools.errors import NsloraError, RewardError, TaskError
from nslora.tools.prompt import Demonstration, Prompt, parse
from nslora.tools.rewards.reward import Reward
from nslora.tools.tasks.readers import SourceRow, read_rows
from nslora.tools.tasks.splits import same_question, split_off
from nslora.tools.tasks.task import Task, embedded_tasks, load_task, task_from_rows

ROWS = {
    "train": [{"question": "What is a?", "reference": "A"}, {"question": "What is b?", "reference": "B"}],
    "validation": [{"question": "What is c?", "reference": "C"}],
    "test": [{"question": "What is d?", "reference": "D"}],
}
FILES = {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, rows in ROWS.items():
        (tmp_path / f"{split}.jsonl").write_text(jsonl(rows))
    return tmp_path


@pytest.fixture
def task_yaml(folder: Path) -> Callable[..., Path]:
    def write(**content: Any) -> Path:
        path = folder / "task.yaml"
        path.write_text(yaml.safe_dump({"name": "letters", "data": FILES, **content}, sort_keys=False))
        return path

    return write


def refused(source: Any, **options: Any) -> str:
    """The message with which a task is refused; one line."""
    with pytest.raises((TaskError, RewardError)) as caught:
        load_task(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Loading


def test_a_folder_without_task_yaml_is_a_task_of_exact_matches(folder):
    task = load_task(folder)
    assert task.name == folder.name
    assert [row.id for row in task.train] == ["train-1", "train-2"]
    assert task.reward(task.train[0], "a.").passed
    assert task.prompt == Prompt()


def test_a_folder_a_path_and_a_string_name_the_same_task(folder, task_yaml):
    path = task_yaml()
    assert load_task(folder).hash == load_task(str(folder)).hash == load_task(path).hash


def test_columns_are_mapped_to_fields(folder, task_yaml):
    for split, rows in ROWS.items():
        mapped = [{"q": row["question"], "a": row["reference"], "key": 7 + i} for i, row in enumerate(rows)]
        (folder / f"{split}.jsonl").write_text(jsonl(mapped))
    task = load_task(task_yaml(fields={"question": "q", "reference": "a"}))
    assert (task.train[0].question, task.train[0].reference) == ("What is a?", "A")
    assert task.train[0].fields == {"q": "What is a?", "a": "A", "key": 7}


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_other_formats_give_the_same_rows(folder, suffix):
    from pyarrow import Table
    from pyarrow.parquet import write_table

    before = load_task(folder).hash
    for split, rows in ROWS.items():
        (folder / f"{split}.jsonl").unlink()
        path = folder / f"{split}.{suffix}"
        if suffix == "csv":
            path.write_text("question,reference\n" + "".join(f"{r['question']},{r['reference']}\n" for r in rows))
        elif suffix == "json":
            path.write_text(json.dumps(rows))
        else:
            write_table(Table.from_pylist(rows), path)
    assert load_task(folder).hash == before


def test_a_dataset_is_loaded_by_its_splits(tmp_path, monkeypatch):
    """A local folder of files stands for a dataset of the hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "letters").mkdir()
    for split, rows in ROWS.items():
        (tmp_path / "letters" / f"{split}.jsonl").write_text(jsonl(rows))
    splits = {split: split for split in ROWS}
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump({"dataset": {"path": "letters", "splits": splits}}))
    task = load_task(path)
    assert [row.question for row in task.train] == ["What is a?", "What is b?"]
    assert task.test[0].reference == "D"


def test_one_file_is_cut_into_splits(folder, task_yaml):
    (folder / "rows.jsonl").write_text(jsonl([{"question": f"What is {n}?", "reference": f"n{n}"} for n in range(10)]))
    task = load_task(task_yaml(data="rows.jsonl", split={"validation": 0.2, "test": 0.3, "seed": 1}))
    assert [len(rows) for rows in (task.train, task.validation, task.test)] == [5, 2, 3]
    assert load_task(folder).hash == task.hash
    assert load_task(folder, split={"validation": 0.2, "test": 0.3, "seed": 2}).hash != task.hash


@given(st.lists(st.integers(0, 9), min_size=5, max_size=30), st.integers(0, 5))
def test_a_cut_keeps_every_row_once_and_the_rows_of_one_question_together(questions, seed):
    rows = [SourceRow(number, "", {"question": str(question)}) for number, question in enumerate(questions, 1)]
    parts = split_off(rows, {"validation": 0.25, "test": 0.25}, seed, lambda row: row.columns["question"])
    assert sorted(row.number for part in parts.values() for row in part) == [row.number for row in rows]
    asked = [{row.columns["question"] for row in part} for part in parts.values()]
    assert sum(map(len, asked)) == len(set.union(*asked))


def test_a_prompt_may_stand_in_the_document_or_in_a_file_beside_it(folder, task_yaml):
    prompt = Prompt("Be brief.", "Q: {question}", (Demonstration("What is z?", "Z"),))
    (folder / "prompt.md").write_text(prompt.render())
    assert load_task(task_yaml(prompt="prompt.md")).prompt == prompt
    assert load_task(task_yaml(prompt=prompt.render())).prompt == prompt


def test_a_prompt_with_a_byte_order_mark_is_the_same_prompt(folder, task_yaml):
    prompt = Prompt("Be brief.", "Q: {question}", ())
    marked = "\ufeff" + prompt.render()
    (folder / "prompt.md").write_text(marked, encoding="utf-8")
    assert load_task(task_yaml(prompt="prompt.md")).prompt == prompt
    assert rows_task(prompt=marked).prompt == prompt
    assert parse(marked) == prompt


def test_a_task_without_references_says_so(folder, task_yaml):
    for split, rows in ROWS.items():
        (folder / f"{split}.jsonl").write_text(jsonl([{"question": row["question"]} for row in rows]))
    task = load_task(task_yaml(fields={"reference": None}, reward=["upper_case"]))
    assert task.train[0].reference is None
    assert "`reference: null`" in refused(task_yaml(reward=["upper_case"]))


def test_a_style_and_overrides_are_chosen_when_loading(task_yaml):
    path = task_yaml(styles={"loud": ["upper_case"], "short": [{"check": "length", "max_words": 1}]}, style="loud")
    assert list(load_task(path).reward(load_task(path).train[0], "A").checks) == ["exact_match", "upper_case"]
    other = load_task(path, style="short", combine="all", max_new_tokens=5)
    assert list(other.reward(other.train[0], "A").checks) == ["exact_match", "length"]
    assert (other.reward.combine, other.max_new_tokens) == ("all", 5)


def test_source_and_options_load_the_same_task_in_another_process(folder, task_yaml, monkeypatch):
    task_yaml(styles={"loud": ["upper_case"]})
    (folder / "mine.py").write_text("def judge(reply):\n    return 1\n")
    monkeypatch.chdir(folder)
    prompt = Prompt("Be brief.").render()
    task = load_task("task.yaml", style="loud", reward={"checks": ["mine:judge"]}, prompt=prompt)
    code = (
        "import json, sys; from nslora.tools.tasks.task import load_task; "
        "source, options = json.loads(sys.argv[1]); print(load_task(source, **options).hash)"
    )
    given = json.dumps([task.source, dict(task.options)])
    other = subprocess.run([sys.executable, "-c", code, given], capture_output=True, text=True, cwd="/", check=True)
    assert other.stdout.strip() == task.hash


def test_the_hash_does_not_depend_on_where_the_task_lies(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert load_task(folder).hash == load_task(other).hash


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "# System\n\nBe brief.\n\n# Question template\n\n{question}"},
        {"reward": {"combine": "all"}},
        {"reward": [{"check": "exact_match", "ignore_case": False}]},
        {"data": {**FILES, "test": "more.jsonl"}},
        {"goal": "Name the letter."},
    ],
)
def test_rows_reward_start_prompt_and_goal_each_change_the_hash(folder, task_yaml, change):
    (folder / "more.jsonl").write_text(jsonl([{"question": "What is e?", "reference": "E"}]))
    assert load_task(task_yaml(**change)).hash != load_task(task_yaml()).hash


def test_the_package_brings_the_handbook():
    assert "handbook" in embedded_tasks()
    assert load_task("handbook").source == "handbook"


def test_loading_a_task_does_not_import_the_heavy_libraries():
    code = (
        "import sys; from nslora.tools.tasks.task import load_task; load_task('handbook'); "
        "print([m for m in ('torch', 'datasets', 'pyarrow', 'sympy', 'transformers') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# Rows from Python


def rows_task(**changes: Any) -> Task:
    return task_from_rows(**{**ROWS, **changes})


def test_rows_from_python_make_a_task_with_a_function_as_its_reward():
    task = rows_task(reward=lambda question, reference, reply: (float(reply == reference), "No."), name="mine")
    assert isinstance(task.reward, Reward)
    assert task.reward(task.train[0], "A").value == 1.0
    assert task.reward(task.train[0], "x").feedback.startswith("No.")
    assert (task.name, task.source, task.options) == ("mine", "", {})


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"train": ["a"]}, "train row 1: got str, but a row is an object"),
        ({"train": []}, "The split 'train' has no rows"),
        ({"max_new_tokens": 0}, "max_new_tokens: input should be greater than or equal to 1"),
        ({"max_new_tokens": 8.5}, "max_new_tokens: input should be a valid integer (came: '8.5')"),
        ({"max_new_tokens": True}, "max_new_tokens: input should be a valid integer (came: 'True')"),
        ({"train": {"question": "q"}}, "train: got dict; give a list of rows"),
        ({"train": 5}, "train: got int; give a list of rows"),
        ({"name": " "}, "task_from_rows: name: "),
        ({"prompt": 5}, "prompt: input should be a valid string (came: '5')"),
        ({"fields": {"answer": "a"}}, "unknown field 'fields.answer' (known: id, question, reference)"),
        ({"prompt": "# Question template\n\nno place"}, "the start prompt is rejected"),
        ({"train": [{"question": "q", "reference": "r", "id": True}]}, "the id in the column 'id' is True"),
    ],
)
def test_wrong_rows_from_python_are_refused(change, part):
    with pytest.raises(NsloraError) as caught:
        rows_task(**change)
    assert part in str(caught.value)


def test_rows_may_come_from_a_generator_and_ids_from_an_array():
    rows = [{**row, "id": np.int64(number)} for number, row in enumerate(ROWS["train"])]
    task = rows_task(train=(row for row in rows))
    assert [row.id for row in task.train] == [str(number) for number in range(len(rows))]


# What is refused


def test_a_missing_task_is_refused_with_the_embedded_ones():
    assert refused("handbok") == (
        "No task 'handbok': give a folder, a task.yaml, a file of rows such as rows.csv, or an embedded task (known: "
        "handbook, handbook-agent)."
    )


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (
            {"nam": "x"},
            "task.yaml:6: unknown field 'nam' (known: agent, data, dataset, duplicates, fields, ",
        ),
        ({"max_new_tokens": "many"}, "task.yaml:6: max_new_tokens: input should be a valid integer"),
        ({"reward": {"combine": "max"}}, "task.yaml:7: reward.combine: input should be 'mean' or 'all' (came: 'max')"),
        ({"reward": {"checks": []}}, "task.yaml:7: reward.checks"),
        ({"reward": {"checks": ["exact_match", "exakt"]}}, "task.yaml:9: Unknown check 'exakt': known are exact_match"),
        ({"reward": ["exakt"]}, "Unknown check 'exakt'"),
        ({"reward": ["upper_case", "upper_case"]}, "Two checks are named 'upper_case'"),
        ({"style": "loud"}, "unknown style 'loud' (known: none)"),
        ({"styles": {"a": [], "b": []}, "style": "c"}, "task.yaml:6: unknown style 'c' (known: a, b)"),
        ({"styles": {"a": ["exakt"]}, "style": "a"}, "task.yaml:8: Unknown check 'exakt'"),
        ({"data": {"train": "train.jsonl"}}, "task.yaml: no source for validation and test"),
        ({"data": {"validation": "train.jsonl"}}, "the field 'data.train' is missing"),
        ({"dataset": {"path": "x"}}, "give either `data` (files) or `dataset`"),
        ({"split": {}}, "`split` has nothing to cut"),
        ({"data": "train.jsonl", "split": {"test": 0.8}}, "leave nothing for train"),
        ({"data": "train.jsonl", "split": {"test": 2}}, "split.test: input should be less than 1"),
        ({"data": "train.jsonl", "split": {"test": 0.1}}, "The split 'validation' has no rows"),
        ({"data": {**FILES, "test": "tset.jsonl"}}, "tset.jsonl: there is no such file"),
        ({"data": {**FILES, "test": "test.txt"}}, "the format '.txt' is unknown (known: .jsonl"),
        ({"data": {**FILES, "test": "empty.jsonl"}}, "empty.jsonl: the split 'test' has no rows"),
        ({"prompt": "none.md"}, "none.md: cannot be read"),
        ({"prompt": "# Rules\n\nSay it."}, "the start prompt is rejected"),
        ({"reward": [{"check": "contains", "field": "key"}]}, "jsonl:1: the check 'contains' needs the field 'key'"),
        ({"reward": ["numeric"]}, "train.jsonl:1: the check 'numeric' needs a number in the field 'reference', but"),
        ({"fields": {"id": "nr"}}, "train.jsonl:1: the id in the column 'nr' is None"),
    ],
)
def test_a_wrong_task_yaml_is_refused_with_file_line_and_field(folder, task_yaml, content, part):
    (folder / "empty.jsonl").write_text("\n")
    message = refused(task_yaml(**content))
    assert part in message
    assert message.startswith(str(folder)) or "'validation' has no rows" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name: [a\ndata: b\n", "task.yaml:2: invalid YAML"),
        ("- a\n", "task.yaml: got list; write a mapping"),
        ("", "task.yaml: got NoneType; write a mapping"),
        ("name: \x00", "task.yaml: invalid YAML"),
        ("name: a\nreward:\n  - {check: contains, field: x, field: y}\n", "task.yaml:3: the key 'field' comes twice"),
    ],
)
def test_a_task_yaml_that_is_no_mapping_is_refused(folder, text, part):
    (folder / "task.yaml").write_text(text)
    assert part in refused(folder)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"question": "q", "reference": "r"}\n{"question": \n', "train.jsonl:2: invalid JSON"),
        ('{"question": "q", "question": "p"}', "train.jsonl:1: invalid JSON (the key 'question' comes twice"),
        ("\n[1]\n", "train.jsonl:2: got list, but a row is an object"),
        (
            '{"q": "a", "reference": "r"}',
            "train.jsonl:1: no field 'question' (found: q, reference): name the column",
        ),
        ('{"question": "a", "a": "r"}', "train.jsonl:1: no field 'reference' (found: question, a)"),
        ('{"question": "a", "reference": null}', "train.jsonl:1: the reference is None: fill it in or remove"),
        ('{"question": "a", "reference": NaN}', "train.jsonl:1: the reference is nan: fill it in or remove the row"),
        ('{"question": "a", "reference": [NaN, null]}', "train.jsonl:1: the reference is no text: it holds NaN"),
        ('{"question": "a", "reference": []}', "train.jsonl:1: the reference is empty"),
        ('{"question": "a", "reference": {"km": 5}}', "train.jsonl:1: the reference is no text: it holds an object"),
        ('{"question": "a", "reference": {"value": 5, "unit": "km"}}', "not known which of them are right answers"),
        ('{"question": "a", "reference": " "}', "train.jsonl:1: the reference is empty"),
        ('{"question": 3, "reference": "r"}', "train.jsonl:1: the question '3' has the type int"),
        ('{"question": "", "reference": "r"}', "train.jsonl:1: the question is empty"),
        ("[" * 100_000, "train.jsonl:1: invalid JSON"),
    ],
)
def test_a_wrong_row_is_refused_with_file_and_line(folder, text, part):
    (folder / "train.jsonl").write_text(text)
    assert part in refused(folder)


def test_a_file_that_is_no_text_is_refused(folder):
    (folder / "train.jsonl").write_bytes(b'{"question": "\xff"}')
    assert "train.jsonl: the file is not UTF-8 at byte 14" in refused(folder)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("train.csv", b"question,reference\na,b,c\n", "train.csv:2: 3 values for 2 columns"),
        ("train.csv", b"question,reference\na\n", "train.csv:2: 1 values for 2 columns"),
        ("train.csv", b'question,reference\n"a,b\n', "invalid CSV"),
        ("train.csv", b"question,reference,question\na,b,c\n", "train.csv:1: the column 'question' comes twice"),
        ("train.json", b'[\n{"question": }]', "train.json:2: invalid JSON"),
        ("train.json", b'{"question": "a"}', "train.json: got dict; write a list of JSON objects"),
        ("train.json", b"[1]", "train.json, row 1: got int"),
        ("train.json", b'[{"question": "a", "question": "b"}]', "train.json: invalid JSON (the key 'question' comes"),
        ("train.parquet", b"PAR1", "train.parquet: invalid Parquet"),
    ],
)
def test_malformed_files_of_other_formats_are_refused(folder, name, content, part):
    (folder / "train.jsonl").unlink()
    (folder / name).write_bytes(content)
    assert part in refused(folder)


def test_a_long_field_of_a_csv_file_is_read(folder):
    (folder / "train.jsonl").unlink()
    (folder / "train.csv").write_text(f"question,reference\n{'x' * 200_000},b\n")
    assert len(read_rows(folder / "train.csv")[0].columns["question"]) == 200_000


def test_a_line_separator_inside_a_json_text_is_no_end_of_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "a\u2028b"}\n', encoding="utf-8")
    assert read_rows(tmp_path / "rows.jsonl")[0].columns == {"question": "a\u2028b"}


def test_files_of_splits_are_found_and_the_others_are_cut_from_train(folder):
    rows = "".join(jsonl([{"question": f"q{n}", "reference": "x"}]) for n in range(10))
    (folder / "train.jsonl").write_text(rows)
    (folder / "validation.jsonl").rename(folder / "dev.jsonl")
    (folder / "task.yaml").write_text("reward: [contains]\n")
    whole = load_task(folder)
    assert [len(whole.train), whole.validation[0].question, whole.reward.checks[0].name] == [
        10,
        "What is c?",
        "contains",
    ]
    (folder / "dev.jsonl").unlink()
    (folder / "task.yaml").unlink()
    assert [len(getattr(load_task(folder), split)) for split in FILES] == [8, 2, len(whole.test)]
    alone = load_task(folder / "train.jsonl")
    assert [alone.name, len(alone.train), len(alone.test)] == ["train", 6, 2]
    assert load_task(alone.source).hash == alone.hash
    (folder / "train.jsonl").unlink()
    assert "there is no file of train rows, train.jsonl (or .json, .csv" in refused(folder)


def test_ids_that_stand_twice_are_refused(folder):
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(jsonl([{"id": 7, **ROWS[split][0]}]))
    assert "The id '7' repeats, in train and in test" in refused(folder)


@pytest.mark.parametrize(("held_out", "other"), [("validation", "train"), ("test", "train"), ("test", "validation")])
def test_overlapping_splits_are_refused_with_the_count_and_the_first_question(folder, held_out, other):
    copies = [{"question": f"  {row['question'].upper().rstrip('?')} ", "reference": "x"} for row in ROWS[other]]
    new = {"question": "What is new?", "reference": "N"}
    (folder / f"{held_out}.jsonl").write_text(jsonl([new, *copies]))
    message = refused(folder)
    assert f"{len(copies)} of the {len(copies) + 1} {held_out} rows are in {other}" in message
    assert f"first {held_out}-2 {copies[0]['question']!r}" in message


@pytest.mark.parametrize("twin", ["What: is a?", "**What** is a", "WHAT IS A!", "\uff37\uff48\uff41\uff54 is a?"])
def test_a_question_that_a_prompt_would_be_refused_for_overlaps(twin):
    with pytest.raises(TaskError, match="1 of the 1 validation rows are in train"):
        rows_task(validation=[{"question": twin, "reference": "A"}])


def test_questions_that_differ_in_a_sign_are_different_ones():
    assert same_question("What is 2+3?") != same_question("What is 2*3?")
    assert same_question("What  is IT?") == same_question("what is it")


def test_an_unknown_override_is_refused_as_such(folder):
    assert refused(folder, temperature=1).startswith("load_task: unknown field 'temperature'")


def test_an_unknown_combination_is_refused(folder):
    assert "known: mean, all" in refused(folder, combine="max")


def test_a_dataset_that_does_not_exist_is_refused_with_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "task.yaml").write_text("dataset: {path: ./none, splits: {train: a, validation: b, test: c}}\n")
    message = refused(tmp_path)
    assert message.startswith("dataset ./none, split a: cannot be loaded")


def test_refusing_a_task_writes_nothing(folder):
    before = sorted(folder.rglob("*"))
    (folder / "train.jsonl").write_text("{")
    refused(folder)
    assert sorted(folder.rglob("*")) == before


def test_a_task_that_may_not_be_read_is_named(folder, monkeypatch):
    def forbidden(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", forbidden)
    assert "cannot be read (Permission denied)" in refused(folder)


def test_another_reply_length_is_another_task(keepers: Task) -> None:
    longer = load_task(keepers.source, max_new_tokens=keepers.max_new_tokens + 1)
    assert longer.hash != keepers.hash == load_task(keepers.source).hash
