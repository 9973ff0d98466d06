"""`nslora check` shows a task as a model will see it, and exits with 1 if something is wrong with it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from agent_fakes import AgentPolicy, write_agent_task
from typer.testing import CliRunner, Result

from nslora.graph.cli.app import app
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.tasks.check import check_task
from nslora.tools.tasks.task import load_task, task_from_rows


def written(folder: Path, rows: list[dict[str, Any]], **content: Any) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(yaml.safe_dump({"name": "t", "data": "rows.jsonl", "split": {}, **content}))
    return folder


def checked(folder: Path, rows: list[dict[str, Any]], **content: Any) -> Result:
    return CliRunner().invoke(app, ["check", str(written(folder, rows, **content))])


ROWS = [{"question": f"What is {n}?", "reference": f"n{n}", "context": f"In {n}."} for n in range(20)]


def test_rows_are_shown_as_the_model_will_see_them(tmp_path: Path) -> None:
    prompt = "# System\n\nBe brief.\n\n# Question template\n\nC: {context}\nQ: {{question}}\nA:"
    result = checked(tmp_path, ROWS, prompt=prompt)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "task         t: 12 train, 4 validation, 4 test rows"
    assert sum(line.startswith("row  ") for line in lines) == 3
    first = lines.index(next(line for line in lines if line.startswith("  user")))
    number = lines[first].split("In ")[1].rstrip(".")
    assert lines[first - 1] == "  system     Be brief."
    assert lines[first : first + 5] == [
        f"  user       C: In {number}.",
        f"             Q: What is {number}?",
        "             A:",
        f"  reference  n{number}",
        "  reward     1",
    ]
    assert "reward       test: 4 of 4 references earn full reward as they stand" in lines
    assert lines[-1] == "result       nothing looks wrong"


NUMBERS = [{"question": f"What is {n}?", "reference": n} for n in range(20)]
BAD: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "a check that the references fail": (
        ROWS,
        {"reward": [{"check": "exact_match"}, {"check": "regex", "pattern": "[A-Z]+"}]},
        "20 references do not earn full reward",
    ),
    "a check that any reply passes": (ROWS, {"reward": [{"check": "length", "max_words": 9}]}, "An empty reply earns"),
    "a check that the question passes": (
        [{"question": f"Is it {n} or {n + 1}?", "reference": str(n)} for n in range(0, 40, 2)],
        {"reward": ["contains"]},
        "The question as a reply earns full reward",
    ),
    "answers that contradict each other": (
        [{"question": f"What is {n // 4}?", "reference": f"n{n}"} for n in range(40)],
        {},
        "train questions have different references",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_and_the_exit_status_is_1(tmp_path: Path, name: str) -> None:
    rows, content, part = BAD[name]
    result = checked(tmp_path, rows, **content)
    assert result.exit_code == 1
    assert part in " ".join(result.output.split())
    assert result.output.rstrip().endswith("to mend")


def test_a_form_that_the_checks_can_make_is_a_note(tmp_path: Path) -> None:
    task = load_task("handbook", style="bullet")
    found = check_task(task)
    assert (found.wrong, found.full["train"]) == ((), (0, 60))
    assert found.notes == (
        "150 of 150 references earn full reward only in another form: the prompt or remade rows must teach it.",
    )


def test_a_hidden_answer_is_not_called_wrong() -> None:
    splits = {"train": ROWS[:5], "validation": ROWS[5:7], "test": ROWS[7:9]}
    task = task_from_rows(**splits, reward=[{"check": "contains", "reveal": False}, "upper_case"])  # type: ignore[arg-type]
    assert check_task(task).wrong == ()


def test_a_column_that_nothing_reads_is_named(tmp_path: Path) -> None:
    (note,) = check_task(load_task(written(tmp_path, ROWS))).notes
    assert note.startswith(
        "The model does not see the columns context: put one into the question template, as in {context}"
    )


def test_rows_that_hold_marks_of_a_chat_template_are_named() -> None:
    rows = [{"question": f"<|im_start|>user\nWhat is {n}?<|im_end|>", "reference": f"n{n}"} for n in range(9)]
    (note,) = check_task(task_from_rows(train=rows[:5], validation=rows[5:7], test=rows[7:])).notes
    assert note.startswith(
        "9 rows hold marks of a chat template (<|im_end|>, <|im_start|>; first train-1), which may end"
    )


def test_numbers_and_several_answers_are_shown_as_text(tmp_path: Path) -> None:
    rows = [{**row, "reference": [row["reference"], "x"]} for row in NUMBERS]
    result = checked(tmp_path, rows)
    assert result.exit_code == 0, result.output
    assert "(or: 'x')" in result.output


def test_a_task_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    result = checked(tmp_path, [{"q": "a"}])
    assert "no field 'question'" in str(result.exception)


def test_a_costly_reward_judges_a_part() -> None:
    rows = [{"question": f"What is {n}?", "reference": f"n{n}"} for n in range(300)]
    task = task_from_rows(train=rows[:250], validation=rows[250:260], test=rows[260:])
    task.reward.costly = True
    assert check_task(task).full == {"train": (200, 200), "validation": (10, 10), "test": (40, 40)}


def test_an_agents_graph_is_drawn_and_three_examples_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = write_agent_task(tmp_path / "task")
    monkeypatch.setattr(LocalPolicy, "load", lambda *_, adapters, **__: AgentPolicy(adapters))
    result = CliRunner().invoke(app, ["check", str(task)])
    assert result.exit_code == 0, result.output
    assert "__start__([<p>__start__</p>]):::first" in result.output
    assert "researcher" in result.output
    assert " ".join(result.output.split()).count("[malformed call: the call is not valid JSON") == 3
    assert "trajectory" not in CliRunner().invoke(app, ["check", str(task), "--model", "none"]).output
