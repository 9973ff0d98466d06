"""Per-task Bradley-Terry heads: no reward call, verdicts on forms and facts they were not trained on."""

from dataclasses import dataclass, field

import pytest

from nslora.tools.classifier.attribution import Attribution
from nslora.tools.classifier.bradley_terry import blend, fit_heads
from nslora.tools.classifier.layouts import Layout


@dataclass(frozen=True)
class Row:
    id: str
    question: str
    reference: str | None
    fields: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Value:
    value: float


@dataclass(frozen=True)
class Reply:
    example: Row
    reply: str
    score: Value


ROWS = [Row(f"train-{i}", f"In which year did house {i} open?", str(1801 + 7 * i)) for i in range(10)]
UNSEEN = Row("validation-1", "When was the mill built?", "1777")


LAYOUTS = [Layout('{"answer": "', '"}', escaped=True), Layout("- "), Layout("<a>", "</a>")]


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
    return request.param


@pytest.mark.parametrize(
    ("year", "good_form", "truth"), [("1066", True, "content"), ("1777", False, "form"), ("1066", False, "both")]
)
def test_heads_tell_content_from_form_on_a_row_they_never_saw(layout, year, good_form, truth):
    reply = layout.wrap(year, "") if good_form else f"As far as I can tell, the mill dates from {year}, or later."
    (found,) = fit_heads(ROWS, layout).attribute([Reply(UNSEEN, reply, Value(0.0))])
    assert found.verdict == truth
    assert found.calls == 0
    assert found.repaired == layout.wrap("1777", "")


def test_the_same_seed_gives_the_same_heads():
    assert fit_heads(ROWS, Layout("- "), seed=3) == fit_heads(ROWS, Layout("- "), seed=3)


def test_a_row_without_a_reference_lacks_form():
    (found,) = fit_heads(ROWS, Layout("- ")).attribute([Reply(Row("x", "Sing.", None), "la", Value(0.0))])
    assert (found.verdict, found.p_content) == ("form", 0.0)


def test_rows_with_equal_references_train_no_head():
    assert fit_heads([Row(str(i), "Is it?", "yes") for i in range(6)], Layout("- ")) is None


def test_a_blend_averages_the_verdict_and_keeps_what_the_reward_said():
    repair = Attribution("a", 1.0, 0.0, 1.0, 0.5, "content", "- 1777", 1.0, 4)
    head = Attribution("a", 0.9, 0.9, 0.5, 0.5, "both", "- 1777", 0.5, 0)
    found = blend(repair, head)
    assert (found.p_content, found.verdict) == (0.75, "both")
    assert (found.content_deficit, found.form_deficit, found.repaired_reward, found.calls) == (1.0, 0.0, 1.0, 4)
