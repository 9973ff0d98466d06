"""Counterfactual repair where references are numbers with units, sentences, or several lines."""

import json

import pytest

from nslora.tools.classifier.attribution import attribute
from nslora.tools.rewards.score import Graded, Score
from nslora.tools.schema import Example


def as_json(text):
    return json.dumps({"answer": text})


def is_json(reply):
    try:
        found = json.loads(reply)
    except json.JSONDecodeError:
        return False
    return isinstance(found, dict) and set(found) == {"answer"}


CASES = {
    "units": (
        [("How heavy is the bell?", "12.5 kg"), ("How long is the pier?", "340 m"),
         ("How deep is the well?", "48.2 m")],
        as_json, is_json, lambda row, reply: row.reference in reply.lower(),
        {"content": [as_json("51 m"), as_json("48.3 m"), as_json("about 50 metres")],
         "form": ["48.2 m", "The well is 48.2 m deep.", "It is 48.2 M."],
         "both": ["51 m", "The well is 51 metres deep.", "I do not know."]}),
    "sentences": (
        [("Who leads the choir?", "The choir is led by Mira Holt."), ("Who runs the mill?", "Tom Pell runs it."),
         ("Who keeps the bees?", "The bees are kept by Anna Reed.")],
        lambda text: as_json(text.removesuffix(" runs it.").removesuffix(".").rpartition(" by ")[2]), is_json,
        lambda row, reply: next(name for name in ("Mira Holt", "Tom Pell", "Anna Reed") if name in row.reference)
        in reply,
        {"content": [as_json("Bob Stone"), as_json("The bees are kept by Bob Stone.")],
         "form": ["Anna Reed", "The bees are kept by Anna Reed.", "I think Anna Reed keeps them."],
         "both": ["Bob Stone", "The bees are kept by Bob Stone."]}),
    "lines": (
        [("Which steps open the lock?", "Turn the key\nPull the handle\nPush the door"),
         ("Which steps start the pump?", "Open the valve\nPress the button"),
         ("Which steps light the stove?", "Open the flap\nStrike a match\nClose the flap")],
        lambda text: "- " + text.replace("\n", "\n- "), lambda reply: all(line.startswith("- ") for line in
                                                                         reply.splitlines()) and bool(reply),
        lambda row, reply: all(line in reply for line in row.reference.splitlines()),
        {"content": ["- Lift the lid\n- Pour the oil\n- Shut the lid"],
         "form": ["Open the flap\nStrike a match\nClose the flap",
                  "First:\n1. Open the flap\n2. Strike a match\n3. Close the flap"],
         "both": ["Lift the lid\nPour the oil\nShut the lid", "You light it with fire."]}),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("all_or_nothing", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_references_with_units_sentences_and_lines(case, all_or_nothing, known):
    facts, wrap, formed, right, replies = CASES[case]
    rows = [Example(f"train-{i}", question, reference, {}) for i, (question, reference) in enumerate(facts)]

    def reward(row, reply):
        parts = (right(row, reply), formed(reply))
        return Score(float(all(parts)) if all_or_nothing else sum(parts) / 2, {}, "", None)

    good = [Graded(row, wrap(row.reference), reward(row, wrap(row.reference))) for row in rows[:2]] if known else []
    assert all(each.score.value == 1.0 for each in good)
    for truth, texts in replies.items():
        for text in texts:
            (found,) = attribute([Graded(rows[2], text, reward(rows[2], text))], reward, known_good=good)
            assert (truth, found.verdict) == (truth, truth), text
            assert found.calls <= 12
