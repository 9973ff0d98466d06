"""The core of a reference that is a sentence."""

import pytest

from nslora.tools.classifier.answer_core import CoreBook, shared_runs


@pytest.mark.parametrize(
    ("question", "reference", "core"),
    [
        ("At what time does the ferry leave?", "The ferry leaves at 6:45 every morning.", "6:45"),
        ("Who leads the team?", "The team is led by Mira Holt today.", "Mira Holt"),
        ("What colour are the signs?", "The signs are painted in orange.", "orange"),
        ("How many pens are in 3 boxes of 4 pens?", "Each box holds 4, so there are 3 * 4 = 12.\n#### 12", "12"),
    ],
)
def test_the_core_of_a_sentence_is_among_the_first_that_are_tried(question: str, reference: str, core: str) -> None:
    assert core in CoreBook().likely(reference, question)[:4]


def test_what_the_reply_shares_with_the_reference_goes_first() -> None:
    reference = "Lost things are kept in the boathouse beside the pier."
    assert CoreBook().likely(reference, "Where are lost things?", "In the boathouse.")[0].endswith("boathouse")


def test_the_look_of_earlier_cores_breaks_ties() -> None:
    book = CoreBook()
    reference, question = "Carts and riders pay two eggs in copper bowls.", "What do carts and riders pay?"
    book.note("Boats pay three coins in linen bags.", "three coins")
    assert book.likely(reference, question)[0] == "two eggs"


def test_no_part_of_the_question_is_taken_for_the_answer() -> None:
    found = CoreBook().likely("The Brenning ferry leaves at noon.", "When does the Brenning ferry leave?")
    assert not any("Brenning" in each or "ferry" in each for each in found)


def test_the_replys_own_answer_is_in_the_reference_and_not_in_the_question() -> None:
    reply = "The ferry goes at 6:45, I think."
    ((start, end),) = shared_runs(reply, "The ferry leaves at 6:45 every morning.", "When does the ferry leave?")
    assert reply[start:end] == "6:45"
