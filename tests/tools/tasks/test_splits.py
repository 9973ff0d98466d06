"""Which rows go to which split: shares, labels, samples, duplicates, ids."""

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from nslora.tools.errors import NsloraError, TaskError
from nslora.tools.tasks.check import check_task
from nslora.tools.tasks.near_duplicates import near_pairs
from nslora.tools.tasks.task import Task, load_task, task_from_rows
from nslora.tools.workspace.budget import plan_of
from nslora.tools.workspace.settings import RunSettings

SPLITS = ("train", "validation", "test")


def rows_of(count: int, start: int = 0, **columns: Any) -> list[dict[str, Any]]:
    return [{"question": f"What is {n}?", "reference": f"n{n}", **columns} for n in range(start, start + count)]


def one_file(folder: Path, rows: list[dict[str, Any]], **content: Any) -> Task:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(yaml.safe_dump({"data": "rows.jsonl", "split": {}, **content}))
    return load_task(folder)


def sizes(task: Task) -> list[int]:
    return [len(getattr(task, split)) for split in SPLITS]


# Samples


def test_a_cap_draws_a_sample_in_order_and_says_so():
    options: dict[str, Any] = {"train": rows_of(40), "validation": rows_of(30, 40), "test": rows_of(20, 70)}
    task = task_from_rows(**options, rows={"validation": 10, "test": 20, "seed": 3})
    assert sizes(task) == [40, 10, 20]
    assert task.notes == ("validation: a sample of 10 of 30 rows (rows.validation, seed 3).",)
    numbers = [int(row.id.split("-")[1]) for row in task.validation]
    assert numbers == sorted(numbers)
    assert task.hash == task_from_rows(**options, rows={"validation": 10, "seed": 3}).hash
    assert task.hash != task_from_rows(**options, rows={"validation": 10, "seed": 4}).hash
    assert task_from_rows(**options, rows={"validation": 30}).hash == task_from_rows(**options).hash


@pytest.mark.parametrize("rows", [{"validation": 0}, {"valid": 3}, {"test": 1.5}])
def test_a_cap_that_is_none_is_refused(rows):
    with pytest.raises(TaskError, match="rows"):
        task_from_rows(train=rows_of(3), validation=rows_of(1, 3), test=rows_of(1, 4), rows=rows)


def test_a_large_file_gives_samples_of_its_default_shares(tmp_path):
    """100,000 rows with `split: {}` would take 900,168 replies at 20,000 validation and test rows; here are 20,000."""
    task = one_file(tmp_path, rows_of(20_000))
    assert sizes(task) == [18_500, 500, 1000]
    assert task.notes == (
        "validation: a sample of 500 rows, not 0.2 of all 20,000; `split: {validation: 0.2}` gives the whole share.",
        "test: a sample of 1,000 rows, not 0.2 of all 20,000; `split: {test: 0.2}` gives the whole share.",
        "train: a training job may learn from all 18,500 rows; `rows: {train: 5000}` draws a sample.",
    )
    assert plan_of(task, RunSettings()).warnings[:3] == task.notes

    # (6 rounds + 1) * (500 validation rows, 24 of train) + 6 edits * 2 askers * 1,000 train rows + 2 * 1,000 of test
    one_file(tmp_path, rows_of(7000))
    few = load_task(tmp_path, rows={"train": 5000})
    assert " to 17668 replies" in plan_of(few, RunSettings()).lines["generation"]
    assert " to 65668 replies" in plan_of(few, RunSettings(remade_rows=None)).lines["generation"]


def test_shares_that_are_stated_are_whole_and_a_large_validation_is_said(tmp_path):
    task = one_file(tmp_path, rows_of(15_000), split={"validation": 0.2, "test": 0.2})
    assert sizes(task) == [9000, 3000, 3000]
    assert task.notes == ("validation: each round answers all 3,000 rows; `rows: {validation: 500}` draws a sample.",)


def test_a_small_file_is_cut_as_before(tmp_path):
    assert sizes(one_file(tmp_path, rows_of(1000))) == [600, 200, 200]
    assert one_file(tmp_path, rows_of(1000)).notes == ()


# Labels


def test_labels_get_their_share_of_each_split(tmp_path):
    rows = [{"question": f"What is {n}?", "reference": "rare" if n % 10 == 0 else "common"} for n in range(100)]
    advice = "The references are 2 labels: `split: {stratify: true}` gives each the same share of a split."
    assert one_file(tmp_path, rows).notes == (advice,)
    for seed in range(5):
        task = one_file(tmp_path, rows, split={"stratify": True, "seed": seed})
        assert task.notes == ()
        counts = [Counter(row.reference for row in getattr(task, split)) for split in SPLITS]
        assert [(each["common"], each["rare"]) for each in counts] == [(54, 6), (18, 2), (18, 2)]


def test_rows_of_one_question_stay_together_when_labels_are_shared_out(tmp_path):
    rows = [{"question": f"What is {n // 2}?", "reference": "ab"[n % 2], "id": n} for n in range(60)]
    task = one_file(tmp_path, rows, split={"stratify": True})
    assert sizes(task) == [36, 12, 12]


# Duplicates


def test_duplicates_are_dropped_on_demand_with_a_note():
    train = [*rows_of(10), *rows_of(2), {"question": "WHAT IS 3", "reference": "other"}]
    options: dict[str, Any] = {
        "train": train,
        "validation": [*rows_of(5, 20), *rows_of(1)],
        "test": [*rows_of(5, 30), *rows_of(1, 1), *rows_of(1, 20)],
    }
    with pytest.raises(TaskError, match=r"The splits overlap: 1 of the 6 validation rows .*`duplicates: drop`"):
        task_from_rows(**options)
    task = task_from_rows(**options, duplicates="drop")
    assert sizes(task) == [9, 5, 7]
    assert task.notes == (
        "train: of 13 rows, 2 that are in validation too and 2 that are in test too are dropped.",
        "validation: of 6 rows, 1 that are in test too are dropped.",
    )


def test_rows_that_repeat_within_a_split_are_dropped_only_on_demand():
    options: dict[str, Any] = {"train": rows_of(4) * 2, "validation": rows_of(1, 5), "test": rows_of(1, 6)}
    assert sizes(task_from_rows(**options)) == [8, 1, 1]
    task = task_from_rows(**options, duplicates="drop")
    assert (sizes(task), task.notes) == (
        [4, 1, 1],
        ("train: of 8 rows, 4 that repeat another are dropped.",),
    )


def test_rows_of_one_question_are_merged_on_demand():
    train = [{"question": f"What is {n // 2}?", "reference": ["a", "b", f"n{n}"][: 1 + n % 2 * 2]} for n in range(8)]
    options: dict[str, Any] = {"train": train, "validation": rows_of(1, 20), "test": [*rows_of(1, 30), *rows_of(1, 3)]}
    reward = [{"check": "exact_match", "field": "reference"}]
    task = task_from_rows(**options, duplicates="merge", reward=reward)
    assert sizes(task) == [3, 1, 2]
    assert (task.train[0].reference, task.train[0].answers) == ("a", ("a", "b", "n1"))
    assert [task.reward(task.train[0], reply).value for reply in ("a", "b", "n1", "n3")] == [1, 1, 1, 0]
    assert task.notes == (
        "train: 8 rows ask 4 questions; each is one row, and a reply to any of its answers is right.",
        "train: of 4 rows, 1 that are in test too are dropped.",
    )
    assert not check_task(task).wrong


def test_dropping_what_does_not_repeat_changes_nothing():
    options: dict[str, Any] = {"train": rows_of(4), "validation": rows_of(1, 5), "test": rows_of(1, 6)}
    assert task_from_rows(**options).hash == task_from_rows(**options, duplicates="drop").hash


# Ids


def test_own_ids_are_ignored_on_demand():
    options: dict[str, Any] = {"train": rows_of(3, id=1), "validation": rows_of(1, 5), "test": rows_of(1, 6)}
    with pytest.raises(NsloraError, match=r"`id: false`"):
        task_from_rows(**options)
    assert [row.id for row in task_from_rows(**options, fields={"id": False}).train] == [
        "train-1",
        "train-2",
        "train-3",
    ]


# Configs of a dataset

CARD = "---\nconfigs:\n" + "".join(
    f"- config_name: {name}\n  data_files:\n"
    + "".join(f"  - split: {split}\n    path: {name}/{split}.jsonl\n" for split in ("train", "test"))
    for name in ("easy", "hard")
)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"name": "easy"}, None),
        ({"name": "hard"}, None),
        ({}, "split train: it has several configs (easy, hard): write one of them under dataset.name."),
        ({"name": "mid"}, "(mid), split train: the config 'mid' is unknown (easy, hard): write"),
        ({"name": "easy", "splits": {"train": "dev"}}, "split dev: the split is unknown (train, test): name"),
        ({"name": "easy", "splits": {"train": "train[:4]"}}, None),
    ],
)
def test_a_dataset_with_configs_is_read_by_the_name_of_one(tmp_path, monkeypatch, changes, part):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "README.md").write_text(f"{CARD}---\n")
    for name in ("easy", "hard"):
        (tmp_path / "set" / name).mkdir()
        for split, start in (("train", 0), ("test", 20)):
            rows = [{"question": f"What is {name} {n}?", "reference": name} for n in range(start, start + 10)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / "set" / name / f"{split}.jsonl").write_text(text)
    dataset = {"path": "set", "splits": {"train": "train", "test": "test"}} | changes
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({"dataset": dataset, "split": {}}))
    if part is None:
        assert {row.reference for row in load_task(tmp_path).train} == {changes["name"]}
        return
    with pytest.raises(TaskError) as caught:
        load_task(tmp_path)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


# Near-duplicates

WORDS = "alder birch cedar elm fir hazel larch maple oak pine rowan spruce willow yew ash beech lime plum pear quince"


def sentence(seed: int, length: int = 14) -> str:
    return " ".join(random.Random(seed).choices(WORDS.split(), k=length))


def nearly_alike(count: int) -> list[dict[str, Any]]:
    """Each question comes a second time with one more word."""
    rows = [{"question": sentence(n), "reference": f"n{n}"} for n in range(count)]
    return [*rows, *({"question": f"{row['question']} please", "reference": row["reference"]} for row in rows)]


@pytest.mark.parametrize("stratify", [False, True])
def test_questions_that_are_nearly_alike_go_to_one_split(tmp_path, stratify):
    rows = [{**row, "reference": row["reference"][-1]} for row in nearly_alike(40)]
    task = one_file(tmp_path, rows, split={"stratify": stratify})
    assert sizes(task) == [48, 16, 16]
    for split in SPLITS:
        asked = {row.question for row in getattr(task, split)}
        assert all(f"{each} please" in asked or each.removesuffix(" please") in asked for each in asked)
    assert task.notes[0].startswith(
        "split: 80 questions that are nearly alike, in 40 groups, are not cut apart (first '"
    )
    assert check_task(task).notes == task.notes
    cut = one_file(tmp_path, rows, split={"stratify": stratify, "near_duplicates": "apart"})
    assert not any("nearly alike" in note for note in cut.notes)
    (found,) = (note for note in check_task(cut).notes if "nearly alike" in note)
    assert re.match(
        r"\d+ questions of validation and test are nearly alike to one of another split \(\w+ and \w+: '", found
    )


def test_questions_of_one_template_are_cut_as_different_ones(tmp_path):
    rows = [{"question": f"Tell me in one word who is it that keeps {n}", "reference": f"n{n}"} for n in range(50)]
    task = one_file(tmp_path, rows)
    assert sizes(task) == [30, 10, 10]
    assert "split: 50 questions are alike but for a few words, more than a split holds" in task.notes[0]
    assert task.hash == one_file(tmp_path, rows, split={"near_duplicates": "apart"}).hash


def test_near_duplicates_of_given_splits_are_noted_and_exact_ones_dropped():
    first, second = (sentence(n) for n in (1, 2))
    train = [{"question": each, "reference": "x"} for each in (first, second, "Who?")]
    test = [{"question": f"{first} please", "reference": "x"}, {"question": "Why?", "reference": "x"}]
    options: dict[str, Any] = {"train": train, "validation": [train[1]], "test": test}
    task = task_from_rows(**options, duplicates="drop")
    assert sizes(task) == [2, 1, 2]
    assert task.notes[1].startswith(
        "1 questions of validation and test are nearly alike to one of another split (train"
    )
    assert sum("nearly alike" in note for note in check_task(task).notes) == 1


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (sentence(1), sentence(1).upper() + "!", True),
        (sentence(1), sentence(2), False),
        (sentence(1, 300), sentence(1, 300) + " yew oak", True),
        (sentence(1, 300), sentence(3, 300), False),
        ("Who?", "who", True),
        ("Who?", "Why?", False),
        ("王芳是谁的老师，她住在哪里，她喜欢什么水果？", "王芳是谁的老师，她住在哪里，她喜欢什么水果", True),
        ("?", "!", False),
    ],
)
def test_what_is_nearly_alike(one: str, other: str, alike: bool):
    assert near_pairs([one, "Nothing of the kind.", other]) == ([(0, 2)] if alike else [])


def test_all_groups_of_questions_are_found():
    """Against the definition: Jaccard similarity of all pairs, whatever is shared and rare."""
    rng = random.Random(0)
    texts = [sentence(rng.randrange(60)).split() for _ in range(200)]
    for text in texts:
        text[rng.randrange(14)] = rng.choice(["yew", "oak", text[0]])
    asked = list(dict.fromkeys(" ".join(text) for text in texts))
    sets = [set(itertools.pairwise(text.split())) for text in asked]
    links = [{n for n, other in enumerate(sets) if len(one & other) >= 0.8 * len(one | other)} for one in sets]
    groups = {min(_linked(n, links)) for n in range(len(asked))}
    assert len(asked) - len(groups) == len(near_pairs(asked)) > 5


def _linked(start: int, links: list[set[int]]) -> set[int]:
    found, new = set[int](), {start}
    while new:
        found |= new
        new = {other for each in new for other in links[each]} - found
    return found
