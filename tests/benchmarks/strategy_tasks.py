"""The tasks of bench_strategies and bench_peers, as ordinary task folders with a known cause of failure.

If the base model must know the answers, the facts are some that SmolLM2-135M-Instruct answers in all five wordings. The
base's reward on the task `nothing-missing` verifies this.
"""

import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ifeval_check
import yaml

from nslora.tools.files import read_jsonl, write_jsonl, write_text
from nslora.tools.schema import Example
from nslora.tools.tasks.task import Task, load_task

KNOWN = {
    "the capital of France": "Paris",
    "the capital of Germany": "Berlin",
    "the capital of England": "London",
    "the capital of Japan": "Tokyo",
    "the capital of Russia": "Moscow",
    "the capital of Egypt": "Cairo",
    "the capital of China": "Beijing",
    "the capital of Austria": "Vienna",
    "the capital of Ireland": "Dublin",
    "the capital of Sweden": "Stockholm",
    "the capital of Norway": "Oslo",
    "the capital of Poland": "Warsaw",
    "the capital of Canada": "Ottawa",
    "the capital of Cuba": "Havana",
    "the capital of Kenya": "Nairobi",
    "the capital of India": "New Delhi",
    "the capital of Thailand": "Bangkok",
    "the capital of Iran": "Tehran",
    "the capital of Iraq": "Baghdad",
    "the capital of South Korea": "Seoul",
    "the capital of Syria": "Damascus",
    "the capital of Scotland": "Edinburgh",
    "the capital of Wales": "Cardiff",
    "the capital of Nigeria": "Abuja",
    "the capital of the Netherlands": "Amsterdam",
    "the capital of Pakistan": "Islamabad",
    "the capital of Croatia": "Zagreb",
    "the capital of Taiwan": "Taipei",
    "the capital of Texas": "Austin",
    "the capital of Zimbabwe": "Harare",
}
WORDINGS: Mapping[str, Sequence[str]] = {
    "train": ("What is {}?", "Tell me: what is {}?"),
    "validation": ("Can you tell me what {} is?",),
    "test": ("Do you know what {} is?", "Please tell me what {} is."),
}
SPLITS = ("train", "validation", "test")
CARDS = (60, 30, 60)  # in each split, as many as the handbook has questions
STYLES = ("json", "label", "upper", "bullet")
FACT = {"name": "fact", "check": "contains", "field": "key"}
JSON_STYLE = {
    "name": "style",
    "check": "json_schema",
    "schema": {
        "type": "object",
        "properties": {"answer": {"type": "string", "minLength": 1}},
        "required": ["answer"],
        "additionalProperties": False,
    },
}
REPLY_TOKENS = 24
# Rows of each split of the public sets, small enough for a 135M model on two cores. A training job on 60 rows of GSM8K
# (8 epochs of about 185 tokens per row) would take 34 of the 60 TFLOP: every order would end after one update.
GSM8K_ROWS, IFEVAL_ROWS, BBH_ROWS = (30, 30, 60), (40, 30, 40), (50, 40, 60)


@dataclass(frozen=True)
class BenchTask:
    """planted: the known cause of failure of the base. tflop: the compute that every strategy gets."""

    name: str
    planted: str
    tflop: float
    seeds: int
    source: Callable[[Path], tuple[str, Mapping[str, Any]]]  # folder to write into -> arguments of load_task
    rounds: int = 8

    def load(self, folder: Path) -> Task:
        source, options = self.source(folder / self.name)
        return load_task(source, **options)


def bench_tasks(data: Path | None) -> dict[str, BenchTask]:
    """All tasks by name. Tasks on public sets are included only if `data`, the folder with their files, is given."""
    tasks = [BenchTask(f"handbook-{style}", "content and form", 60.0, 5, handbook(style)) for style in STYLES]
    tasks += [
        BenchTask("form-only", "form", 60.0, 3, written(known_rows, [FACT, JSON_STYLE])),
        BenchTask("content-only", "content", 60.0, 3, handbook("plain")),
        BenchTask(
            "styled-references",
            "content and form; references in style",
            60.0,
            3,
            written(styled_rows, [FACT, JSON_STYLE]),
        ),
        BenchTask("nothing-missing", "nothing: the base earns full reward", 60.0, 3, written(known_rows, [FACT])),
        BenchTask("nothing-possible", "nothing: no split teaches another", 60.0, 3, written(split_facts, [FACT])),
        BenchTask("nothing-but-chance", "nothing: references are coin flips", 60.0, 3, written(coin_flips, [FACT])),
    ]
    if data is not None:
        tasks += public_tasks(data)
    return {task.name: task for task in tasks}


def handbook(style: str) -> Callable[[Path], tuple[str, Mapping[str, Any]]]:
    return lambda _: ("handbook", {"style": style})


def written(
    rows: Callable[[], dict[str, list[dict[str, Any]]]],
    checks: Sequence[Mapping[str, Any]],
    reply_tokens: int = REPLY_TOKENS,
) -> Callable[[Path], tuple[str, Mapping[str, Any]]]:
    """A task that is written to its folder on first use."""

    def source(folder: Path) -> tuple[str, Mapping[str, Any]]:
        if not (folder / "task.yaml").is_file():
            for split, values in rows().items():
                write_jsonl(folder / f"{split}.jsonl", values)
            if any(check["check"].startswith("ifeval_check:") for check in checks):
                shutil.copy(ifeval_check.__file__, folder)
            fields: dict[str, str | None] = {"question": "question", "reference": "reference"}
            if "reference" not in read_jsonl(folder / "train.jsonl")[0]:
                fields["reference"] = None
            write_text(
                folder / "task.yaml",
                yaml.safe_dump(
                    {
                        "name": folder.name,
                        "fields": fields,
                        "data": {split: f"{split}.jsonl" for split in SPLITS},
                        "max_new_tokens": reply_tokens,
                        "reward": {"combine": "mean", "checks": [dict(c) for c in checks]},
                    }
                ),
            )
        return str(folder), {}

    return source


def known_rows() -> dict[str, list[dict[str, Any]]]:
    """Facts that the base model knows in every wording."""
    return {
        split: [
            {"question": wording.format(subject), "reference": answer, "key": answer}
            for wording in WORDINGS[split]
            for subject, answer in KNOWN.items()
        ]
        for split in SPLITS
    }


def handbook_rows() -> dict[str, tuple[Example, ...]]:
    task = load_task("handbook")
    return {"train": task.train, "validation": task.validation, "test": task.test}


def styled_rows() -> dict[str, list[dict[str, Any]]]:
    """The handbook with references that already follow the house style."""
    return {
        split: [
            {
                "id": row.id,
                "question": row.question,
                "key": row.fields["key"],
                "reference": json.dumps({"answer": row.reference}),
            }
            for row in rows
        ]
        for split, rows in handbook_rows().items()
    }


def split_facts() -> dict[str, list[dict[str, Any]]]:
    """Ten of the handbook's thirty facts per split: no split asks about a fact of another split."""
    rows = handbook_rows()
    subjects = sorted({row.id.rpartition("-")[0] for row in rows["train"]})
    everything = [row for split in SPLITS for row in rows[split]]
    return {
        split: [
            {"id": row.id, "question": row.question, "reference": row.reference, "key": row.fields["key"]}
            for row in everything
            if row.id.rpartition("-")[0] in subjects[i :: len(SPLITS)]
        ]
        for i, split in enumerate(SPLITS)
    }


def coin_flips() -> dict[str, list[dict[str, Any]]]:
    """Cards with random answers, half of them "yes" in every split; each card is in one split.

    The base answers both ways and passes about half of the rows. Updates change many replies and cannot help: a
    candidate that beats the base on a split does so by luck.
    """
    draw = random.Random(0)
    cards = draw.sample(range(100, 1000), sum(CARDS))
    rows = {}
    for split, size in zip(SPLITS, CARDS, strict=True):
        answers = ["yes", "no"] * (size // 2)
        draw.shuffle(answers)
        rows[split] = [
            {
                "question": f"Is the answer to card {cards.pop()} yes or no? Answer yes or no.",
                "reference": answer,
                "key": answer,
            }
            for answer in answers
        ]
    return rows


def public_rows(
    data: Path,
    path: str,
    sizes: Sequence[int],
    fields: Mapping[str, str],
    wanted: Callable[[dict[str, Any]], bool] = lambda row: True,
) -> Callable[[], dict[str, list[Any]]]:
    """The first rows of each split of a public set in the folder `data`, with its columns renamed."""
    separator = "." if path.startswith("bbh") else "/"
    return lambda: {
        split: [
            {new: row[old] for new, old in fields.items()}
            for row in read_jsonl(data / f"{path}{separator}{split}.jsonl")
            if wanted(row)
        ][:size]
        for split, size in zip(SPLITS, sizes, strict=True)
    }


def public_tasks(data: Path) -> list[BenchTask]:
    """GSM8K, BIG-Bench Hard and IFEval from the folder `data`. This repository contains none of them."""

    rows = partial(public_rows, data)
    question = {"question": "question", "reference": "answer"}
    ifeval = {"question": "prompt", "instruction_id_list": "instruction_id_list", "kwargs": "kwargs"}
    return [
        BenchTask(
            "gsm8k",
            "unknown (public set)",
            60.0,
            3,
            written(
                rows("gsm8k", GSM8K_ROWS, {"question": "question", "reference": "solution", "key": "answer"}),
                [{"name": "answer", "check": "numeric", "field": "key"}],
                reply_tokens=160,
            ),
        ),
        BenchTask(
            "bbh-object-counting",
            "unknown (public set)",
            60.0,
            3,
            written(rows("bbh/object_counting", BBH_ROWS, question), [{"name": "answer", "check": "numeric"}]),
        ),
        BenchTask(
            "bbh-word-sorting",
            "unknown (public set)",
            60.0,
            3,
            written(
                rows("bbh/word_sorting", BBH_ROWS, question),
                [{"name": "answer", "check": "exact_match"}],
                reply_tokens=64,
            ),
        ),
        BenchTask(
            "ifeval",
            "unknown (public set)",
            60.0,
            3,
            written(
                rows("ifeval", IFEVAL_ROWS, ifeval, ifeval_check.usable),
                [{"name": "instructions", "check": "ifeval_check:followed"}],
                reply_tokens=192,
            ),
        ),
    ]
