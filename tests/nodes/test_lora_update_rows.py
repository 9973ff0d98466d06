"""A run on rows with a passage and several right answers: what is asked, what is right, what weights learn."""

from pathlib import Path
from typing import Any

from fakes import FakePolicy

from nslora.graph.runs.run import Run
from nslora.tools.tasks.task import task_from_rows
from nslora.tools.testing.tiny_task import KEEPERS, PLACES

PROMPT = "# Question template\n\nPassage {n}: {passage}\nQ: {question}"
WORDINGS = ("Who keeps the {}?", "The keeper of what is named, of the {}?", "Name the keeper of the {}?")


def test_a_run_asks_the_passage_and_learns_the_first_right_answer(tmp_path: Path) -> None:
    train, validation, test = (
        [
            {
                "passage": f"A note on the {place}.",
                "question": wording.format(place),
                "reference": [KEEPERS[n % 3], f"Mx {KEEPERS[n % 3]}"],
                "n": n,
            }
            for n, place in enumerate(PLACES)
        ]
        for wording in WORDINGS
    )
    task = task_from_rows(train=train, validation=validation, test=test, reward=["exact_match"], prompt=PROMPT)
    policy = FakePolicy(tmp_path / "run" / "adapters")
    settings: dict[str, Any] = {"strategy": "lora", "max_rounds": 1, "reuse_replies": False}
    Run.create(tmp_path / "run", task=task, model=policy, editor="rules", **settings).adapt()
    assert policy.asked
    assert all(question.startswith("Passage ") and "\nQ: " in question for question, _ in policy.asked)
    learnt = {row.completion for job in policy.jobs for row in job.rows}
    assert learnt
    assert learnt <= set(KEEPERS)
