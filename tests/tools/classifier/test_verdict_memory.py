"""Which update mended which failure, and what the classifier makes of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nslora.tools.classifier.attribution import Attribution
from nslora.tools.classifier.verdict_memory import HEADS, Correction, Verdict, corrected, learn, verdicts_of


def attribution(row: str, content: float, form: float, verdict: str) -> Attribution:
    total = content + form
    p_content = content / total if total else 0.5
    return Attribution(row, content, form, p_content, 0.5, verdict, None, 1.0, 3)  # type: ignore[arg-type]


LACKS = [
    attribution("content", 1.0, 0.0, "content"),
    attribution("form", 0.0, 1.0, "form"),
    attribution("both", 0.5, 0.5, "both"),
]
BEFORE = {"content": 0.5, "form": 0.5, "both": 0.0}


def test_a_failure_that_passes_after_weights_lacked_content_and_no_form() -> None:
    found = verdicts_of("lora", BEFORE, {**BEFORE, "content": 1.0}, LACKS)
    assert [(each.head, each.missing) for each in found] == [("content", True), ("form", False)]


def test_a_failure_that_passes_after_an_edit_lacked_form_and_no_content() -> None:
    found = verdicts_of("textgrad", BEFORE, {**BEFORE, "form": 1.0}, LACKS)
    assert [(each.head, each.missing) for each in found] == [("form", True), ("content", False)]


def test_a_reward_that_only_rose_speaks_for_what_was_taught_and_says_nothing_of_the_rest() -> None:
    found = verdicts_of("textgrad", BEFORE, {**BEFORE, "both": 0.5}, LACKS)
    assert [(each.head, each.missing) for each in found] == [("form", True)]


def test_a_failure_that_stayed_or_was_not_seen_again_says_nothing() -> None:
    assert verdicts_of("lora", BEFORE, BEFORE, LACKS) == []
    assert verdicts_of("lora", BEFORE, {"content": 0.2}, LACKS) == []


def test_without_verdicts_nothing_changes() -> None:
    assert learn([]) == {head: Correction() for head in HEADS}
    assert corrected(LACKS, learn([])) == LACKS


def test_verdicts_that_agree_change_no_verdict_of_the_classifier() -> None:
    agreeing = [
        Verdict("content", 1.0, 0.08, True),
        Verdict("form", 0.0, 0.08, False),
        Verdict("form", 1.0, 0.08, True),
        Verdict("content", 0.0, 0.08, False),
    ] * 10
    after = corrected(LACKS, learn(agreeing))
    assert [each.verdict for each in after] == ["content", "form", "both"]
    assert all(abs(new.p_content - old.p_content) < 0.05 for new, old in zip(after, LACKS, strict=True))


def test_small_deficits_that_turned_out_to_be_there_are_believed_from_then_on() -> None:
    doubted = attribution("row", 0.05, 0.6, "form")
    learnt = learn([Verdict("content", 0.05, 0.08, True)] * 12 + [Verdict("content", 0.0, 0.08, False)] * 12)
    (after,) = corrected([doubted], learnt)
    assert after.verdict == "both"
    assert after.content_deficit > 0.08
    assert after.p_content > doubted.p_content


def test_one_odd_verdict_does_not_turn_the_classifier_round() -> None:
    after = corrected(LACKS, learn([Verdict("content", 1.0, 0.08, False)]))
    assert [each.verdict for each in after] == ["content", "form", "both"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(HEADS), st.floats(0, 1), st.booleans()), max_size=40))
def test_whatever_happened_more_deficit_never_counts_as_less(happened: list[tuple[str, float, bool]]) -> None:
    learnt = learn([Verdict(head, deficit, 0.08, missing) for head, deficit, missing in happened])  # type: ignore
    for head in HEADS:
        curve = [learnt[head].deficit(raw, 0.08) for raw in (0.0, 0.05, 0.2, 0.6, 1.0)]
        assert curve == sorted(curve)
        assert all(0.0 <= value <= 1.0 for value in curve)


def test_the_order_of_verdicts_does_not_matter() -> None:
    verdicts = [
        Verdict("content", 0.1, 0.03, True),
        Verdict("content", 0.9, 0.08, False),
        Verdict("content", 0.4, 0.08, True),
    ]
    one, other = learn(verdicts)["content"], learn(verdicts[::-1])["content"]
    assert (one.scale, one.shift) == pytest.approx((other.scale, other.shift))
