"""Answers of several lines: the marks are form, the text after them is content."""

import pytest

from nslora.tools.classifier.answer_lines import find_lines, lines_of, mark_of, marked, marked_block, unmarked
from nslora.tools.classifier.answer_spans import Span, replace, spans
from nslora.tools.classifier.layouts import Layout, align, states

STEPS = "Open the flap\nStrike a match\nClose the flap"
OTHER = "Lift the lid\nPour the oil\nShut the lid"


@pytest.mark.parametrize("mark", ["- ", "* ", "1. ", "1) ", "Step 1: ", "(a) ", "## "])
def test_marks_before_every_line_are_found_taken_off_and_put_back(mark: str) -> None:
    text = marked(STEPS, mark)
    assert mark_of(text) == mark
    assert unmarked(text) == STEPS


def test_a_number_in_a_mark_counts_on() -> None:
    assert marked(STEPS, "1. ").splitlines() == ["1. Open the flap", "2. Strike a match", "3. Close the flap"]


def test_a_text_of_one_line_keeps_what_looks_like_a_mark() -> None:
    assert unmarked("- 5") == "- 5"
    assert mark_of("- 5") == ""


def test_lines_are_found_below_one_another_with_or_without_marks_and_not_in_another_order() -> None:
    assert find_lines("Do this:\n" + marked(STEPS, "- ") + "\nDone.", lines_of(STEPS)) is not None
    assert find_lines("Close the flap\nStrike a match\nOpen the flap", lines_of(STEPS)) is None
    assert find_lines("Open the flap\nStrike a match\nClose the flap slowly", lines_of(STEPS)) is None


def test_the_longest_run_of_marked_lines_is_the_answer() -> None:
    reply = "- Hello\nFollow these:\n1. Lift\n2. Pour\n3. Shut\nBye"
    start, end = marked_block(reply) or (0, 0)
    assert reply[start:end] == "1. Lift\n2. Pour\n3. Shut"
    assert marked_block("No list here.\n- one") is None


@pytest.mark.parametrize(
    ("reply", "layout"),
    [
        (marked(STEPS, "- "), Layout(mark="- ")),
        ("STEPS\n" + STEPS + "\nEND", Layout("STEPS\n", "\nEND")),
        ("Do this:\n" + marked(STEPS, "1. "), Layout("Do this:\n", mark="1. ")),
    ],
)
def test_a_layout_has_a_mark_for_each_line(reply: str, layout: Layout) -> None:
    assert align(reply, STEPS) == layout
    assert layout.wrap(STEPS, "") == reply
    assert layout.wrap(OTHER, "") == reply.replace(STEPS, OTHER) if STEPS in reply else marked(OTHER, layout.mark)


def test_a_reply_states_its_lines_whatever_the_marks() -> None:
    assert states(marked(STEPS, "2) "), STEPS)
    assert not states(marked(OTHER, "2) "), STEPS)


def test_a_content_repair_keeps_the_marks() -> None:
    reply = "Sure.\n" + marked(OTHER, "1. ")
    first = spans(reply, STEPS, "How is the stove lit?", [])[0]
    assert isinstance(first, Span)
    assert replace(reply, first, STEPS) == "Sure.\n" + marked(STEPS, "1. ")
