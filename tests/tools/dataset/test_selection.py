"""The train rows that a training job learns from, and the recorded reason of each."""

from pathlib import Path

from nslora.tools.classifier.attribution import Attribution, VerdictName
from nslora.tools.dataset.remade import RemadeRow
from nslora.tools.dataset.selection import Material, choose_material, training_rows
from nslora.tools.evaluation.records import Failure, Row
from nslora.tools.prompt import Prompt
from nslora.tools.schema import Example

TRAIN = [Example(f"t{i}", f"Question {i}?", f"answer {i}", {}) for i in range(6)]
PROMPT = Prompt("Be brief.")


def failure(number: int, verdict: VerdictName, content: float, form: float) -> Failure:
    answer = Attribution(f"t{number}", content, form, content / (content + form), 1.0, verdict, None, 0.0, 0)
    return Failure(f"t{number}", "train", TRAIN[number].question, "wrong", "", answer)


def material() -> Material:
    """t0 lacks content, t1 form, t2 passes; t3 to t5 were not looked at."""
    rows = [Row(f"t{i}", "train", 0.0, {"fact": float(i == 2)}, 0.0, None) for i in range(3)]
    return choose_material(TRAIN, rows, [failure(0, "content", 1.0, 0.25), failure(1, "form", 0.0, 1.0)], seed="0")


def test_content_is_taught_and_a_share_of_the_mastered_rows_is_replayed() -> None:
    chosen = material()
    assert chosen.content == ("t0", "t3", "t4", "t5")
    assert chosen.mastered == ("t1", "t2")
    for share, replayed in ((0.0, 0), (0.25, 1), (0.5, 2), (1.0, 2)):
        rows = training_rows(TRAIN, chosen, PROMPT, {}, everything=False, replay_share=share, seed="0")
        assert [row.source for row in rows if row.origin == "reference"] == ["t0", "t3", "t4", "t5"]
        assert sum(row.origin == "replay" for row in rows) == replayed


def test_each_row_says_why_it_is_there(tmp_path: Path) -> None:
    material().save(tmp_path / "material.json")
    chosen = Material.load(tmp_path / "material.json")
    assert chosen == material()
    rows = training_rows(TRAIN, chosen, PROMPT, {}, everything=False, replay_share=0.5, seed="0")
    assert {row.source: chosen.why(row, everything=False) for row in rows} == {
        "t0": "content missing 1.00, form missing 0.25",
        "t1": "mastered (content missing 0.00, form missing 1.00): replayed so that it is not forgotten",
        "t2": "mastered (full reward): replayed so that it is not forgotten",
        **{f"t{i}": "not in the sample that was looked at" for i in (3, 4, 5)},
    }


def test_verified_replies_take_the_place_of_references_and_new_ones_teach_every_row() -> None:
    made = {"t1": [RemadeRow("t1", TRAIN[1].question, '{"answer": "1"}', "p" * 16, None, 1.0)]}
    rows = training_rows(TRAIN, material(), PROMPT, made, everything=True, replay_share=0.25, seed="0")
    assert [(row.source, row.origin, row.completion) for row in rows[:2]] == [
        ("t0", "reference", "answer 0"),
        ("t1", "remade", '{"answer": "1"}'),
    ]
    assert len(rows) == len(TRAIN)
    assert material().why(rows[1], everything=True) == (
        "new remade data teaches every row (content missing 0.00, form missing 1.00)"
    )
