"""What stands in the way, said before anything is trained: on a scripted policy, so that the causes are known."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.tools.errors import SettingsError, TooLongError
from nslora.tools.evaluation.acceptance import smallest_detectable_gain
from nslora.tools.policy import Generated
from nslora.tools.tasks.task import Task, task_from_rows
from nslora.tools.workspace.diagnosis import Diagnosis, diagnose
from nslora.tools.workspace.settings import RunSettings

WORDINGS = {"train": "Code of {}?", "validation": "What is the code of {}?", "test": "Tell the code of {}."}
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "islet", "jetty")
CODES = {word: str(317 + 41 * i) for i, word in enumerate(WORDS)}
STYLE = {"name": "style", "check": "regex", "pattern": r"- \S[^\n]*", "form": "- {reply}"}


class ScriptedPolicy:
    """Replies as a function of the question; whatever a diagnosis must not do raises."""

    name, fingerprint, context_tokens = "scripted", "scripted", 4096

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer, self.asked = answer, list[str]()

    def generate(
        self,
        dialogues: Sequence[Any],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Generated:
        assert adapter is None
        questions = [dialogue[-1]["content"] for dialogue in dialogues]
        self.asked += questions
        on_progress(len(questions), len(questions))
        return Generated(tuple(self.answer(each) for each in questions), 4 * len(questions))

    def reference_losses(
        self, dialogues: Sequence[Any], references: Sequence[str], *, adapter: str | None
    ) -> list[float]:
        return [2.0] * len(references)

    def count_tokens(self, dialogue: Sequence[Any]) -> int:
        return sum(len(turn["content"].split()) for turn in dialogue)

    def train(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a diagnosis trained")

    def describe(self) -> dict[str, Any]:
        return {}


def task(checks: tuple[Any, ...] = ("contains", STYLE), rows: int = 10) -> Task:
    splits = {
        split: [{"question": wording.format(word), "reference": code} for word, code in list(CODES.items())[:rows]]
        for split, wording in WORDINGS.items()
    }
    return task_from_rows(**splits, reward=checks, max_new_tokens=8)


def code_in(question: str) -> str:
    return next(code for word, code in CODES.items() if word in question)


def found(answer: Callable[[str], str], **options: Any) -> Diagnosis:
    return diagnose(task(**options), ScriptedPolicy(answer))  # type: ignore[arg-type]


def test_wrong_content_in_the_right_form_advises_weights_and_bounds_them() -> None:
    diagnosis = found(lambda question: "- 100")
    bounds = {bound.repair: bound for bound in diagnosis.bounds}
    assert diagnosis.advice == "weights"
    assert diagnosis.need.content == 1.0
    assert (bounds["content"].reward, bounds["form"].gain) == (1.0, 0.0)
    assert bounds["content"].interval[0] <= bounds["content"].gain == 0.5


def test_right_content_in_the_wrong_form_advises_the_prompt() -> None:
    diagnosis = found(code_in)
    bounds = {bound.repair: bound for bound in diagnosis.bounds}
    assert diagnosis.advice == "prompt"
    assert (diagnosis.need.form, bounds["form"].reward, bounds["content"].gain) == (1.0, 1.0, 0.0)


def test_where_both_are_wrong_only_both_repairs_together_reach_full_reward() -> None:
    diagnosis = found(lambda question: "I do not know.")
    bounds = {bound.repair: bound.reward for bound in diagnosis.bounds}
    assert bounds["both"] == 1.0
    assert max(bounds["content"], bounds["form"]) < 1.0


def test_a_model_that_needs_nothing_is_left_alone() -> None:
    diagnosis = found(lambda question: f"- {code_in(question)}")
    assert diagnosis.advice == "no change"
    assert "Nothing to gain" in diagnosis.reason


def test_a_gain_too_small_for_the_validation_rows_is_said_to_be_so() -> None:
    diagnosis = found(lambda question: "- 100" if "amber" in question else f"- {code_in(question)}")
    assert diagnosis.smallest_detectable == smallest_detectable_gain(10, level=0.05, step=0.5)
    assert diagnosis.advice == "no change"
    assert "10 validation rows show no gain below" in diagnosis.reason


def test_without_references_a_row_may_gain_what_it_misses() -> None:
    splits = {split: [{"question": wording.format(word)} for word in WORDS] for split, wording in WORDINGS.items()}
    free = task_from_rows(
        **splits, reward=(STYLE, {"check": "length", "max_words": 9}), max_new_tokens=8, fields={"reference": None}
    )
    diagnosis = diagnose(free, ScriptedPolicy(code_in))  # type: ignore[arg-type]
    assert diagnosis.reward == 0.5
    assert diagnosis.smallest_detectable == smallest_detectable_gain(10, level=0.05, step=0.5)


def test_a_question_beyond_the_context_is_named() -> None:
    long = ScriptedPolicy(code_in)
    long.context_tokens = 12
    with pytest.raises(TooLongError, match=r"outgrow the model's context of 12 tokens .*validation validation-1,"):
        diagnose(task(), long)  # type: ignore[arg-type]


def test_the_test_split_is_not_looked_at() -> None:
    policy = ScriptedPolicy(code_in)
    diagnose(task(), policy)  # type: ignore[arg-type]
    assert not any(question.startswith("Tell") for question in policy.asked)


def test_costs_are_told_for_each_kind_and_for_a_whole_run() -> None:
    costs = {cost.what: cost for cost in found(lambda question: "- 100").costs}
    assert costs["one evaluation"].tokens == 20 * 4
    job = costs["one LoRA update"]
    assert job.tokens == RunSettings().lora.epochs * 10 * 4  # "Code of amber?" and its code: four words
    assert all(0 < low <= high for cost in costs.values() for low, high in [cost.seconds])
    assert costs["a run of up to 6 rounds"].seconds[1] > job.seconds[1]


def test_the_command_names_bounds_what_cannot_be_seen_and_costs(
    tiny_folder: Callable[..., Path], own_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "found.json"
    folder = tmp_path / "task"
    folder.mkdir()
    for split, wording in WORDINGS.items():
        rows = [json.dumps({"question": wording.format(word), "reference": CODES[word]}) for word in WORDS[:6]]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    (folder / "task.yaml").write_text(
        "data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}\nmax_new_tokens: 4\n"
        "reward: [contains]\n"
    )
    done = CliRunner().invoke(app, ["diagnose", str(folder), "--model", str(tiny_folder()), "--json", str(out)])
    assert done.exit_code == 0, done.output
    for words in ("upper bounds", "too small to see", "about what it would cost", "advice"):
        assert words in done.output
    assert json.loads(out.read_text())["validation_rows"] == 6


@pytest.mark.parametrize("rows", [1, 2])
def test_very_few_rows_are_told_to_be_too_few(rows: int) -> None:
    diagnosis = found(lambda question: "- 100", rows=rows)
    assert diagnosis.smallest_detectable > 0.5
    assert diagnosis.advice == "no change"


def test_a_file_that_cannot_be_written_is_told_before_a_model_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["diagnose", "handbook", "--json", str(tmp_path / "file" / "found.json")])
    assert isinstance(done.exception, SettingsError)
    assert "cannot be written" in str(done.exception)
