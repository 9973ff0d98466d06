"""Reference style: what references share counts as form, whatever the reward pays for the rest."""

import json

import pytest

from nslora.tools.classifier.attribution import Attribution, attribute, need_of
from nslora.tools.classifier.classify import classify_failures
from nslora.tools.classifier.layouts import QUESTION, Layout, bare, reference_style_of
from nslora.tools.rewards.functions import callable_check
from nslora.tools.rewards.reward import Reward
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example
from nslora.tools.tasks.task import load_task

ANSWERS = ["the grey heron", "Lena Torsby", "in 1864", "96 kg", "white pine", "two eggs", "Saturday", "brass bells"]
STYLES = {
    "bold": Layout("**", "**"),
    "call": Layout('reply("', '")'),
    "json": Layout('{"answer": "', '"}', escaped=True),
    "bullet": Layout("- "),
    "label": Layout("ANSWER: ", " [END]"),
    "records": Layout("Our records say: ", "."),
    "tag": Layout("<answer>", "</answer>"),
    "upper": Layout(case="upper"),
    "two-lines": Layout("Reply:\n"),
    "restate": Layout(f"{QUESTION} That is: "),
}
WRONG = "a broken wheel"


def rows_in(style: str) -> list[Example]:
    questions = [f"What is kept in hall {i}?" for i in range(len(ANSWERS))]
    return [
        Example(f"train-{i}", question, STYLES[style].wrap(answer, question), {"key": answer})
        for i, (question, answer) in enumerate(zip(questions, ANSWERS, strict=True))
    ]


def with_references(*references: str | None) -> list[Example]:
    return [Example(f"train-{i}", f"Question {i}?", reference, {}) for i, reference in enumerate(references)]


def reward_in(style: str, combine: str = "mean") -> Reward:
    def fact(reply: str, example: Example) -> float:
        return float(example.fields["key"].lower() in reply.lower())

    def formed(reply: str, question: str) -> float:
        return float(STYLES[style].explains(reply, question))

    made = [callable_check(function).model_copy(update={"name": function.__name__}) for function in (fact, formed)]
    return Reward(made, combine)  # type: ignore[arg-type]


def failing(style: str, reward: Reward, wording: str, answer: str | None) -> list[Graded]:
    texts = [(row, wording.format(answer or row.fields["key"])) for row in rows_in(style)]
    return [Graded(row, text, reward(row, text)) for row, text in texts]


def judged(style: str, reward: Reward, wording: str, answer: str | None) -> list[Attribution]:
    return classify_failures(failing(style, reward, wording, answer), reward, train=rows_in(style))


@pytest.mark.parametrize("style", STYLES)
def test_the_style_of_references_is_found_and_so_are_their_answers(style: str) -> None:
    style_found = reference_style_of(rows_in(style))
    assert style_found == STYLES[style]
    answers = [bare(row, style_found).reference for row in rows_in(style)]
    assert answers == [answer.upper() if style == "upper" else answer for answer in ANSWERS]


def test_escapes_of_a_styled_answer_are_resolved() -> None:
    answers = ('the "north" gate', 'a "red" door', '"old" bells', 'one path, the "high" one', 'no "gate" at all')
    texts = [json.dumps({"answer": answer}) for answer in answers]
    rows = with_references(*texts)
    style_found = reference_style_of(rows)
    assert style_found is not None
    answer = bare(rows[0], style_found).reference or ""
    assert answer == answers[0]
    assert style_found.wrap(answer, "") == texts[0]


@pytest.mark.parametrize(
    "references",
    [
        ANSWERS,
        ["in 1911", "in 1864", "in 1738", "in 1802", "in 1777"],
        ["12 kg", "96 kg", "40 kg", "7 kg", "31 kg"],
        ["It is open.", "They are shut.", "Nobody may enter.", "Dogs pay two eggs.", "All may use it."],
        ["A", "B", "C", "D", "A", "B"],
        ["2021-03-04", "2021-05-06", "2021-07-08", "2021-09-10", "2021-11-12"],
        ["ann@ex.com", "bob@ex.com", "cyd@ex.com", "dan@ex.com", "eve@ex.com"],
        ["8:00", "9:00", "10:00", "11:00", "12:00"],
        ["-12", "-40", "-7", "-96", "-31"],
        ["$12", "$40", "$7", "$96", "$31"],
        ["Yes, it is open.", "Yes, they are.", "Yes, always.", "Yes, on Mondays.", "Yes, by boat."],
        ["grey heron", "white pine", "two eggs", "brass bells", "felt hats"],
        ["- one\n- two", "- three\n- four", "- five\n- six", "- seven\n- eight", "- nine\n- ten"],
        ["**one**", "**two**", "three", "four", "five", "six"],
        ["**one**", "**two**", "**one**", "**two**"],
        [
            '{"a": "x", "b": "y"}',
            '{"a": "z", "b": "w"}',
            '{"a": "u", "b": "v"}',
            '{"a": "q", "b": "r"}',
            '{"a": "s", "b": "t"}',
        ],
        [None, "", "   "],
        [],
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_references_share_by_their_kind_is_no_style(references: list[str | None]) -> None:
    assert reference_style_of(with_references(*references)) is None


def test_one_reference_in_ten_may_lack_the_style() -> None:
    texts = [f"[[{word}]]" for word in ANSWERS] + [f"[[{i}]]" for i in range(10, 20)]
    rows = with_references(*texts, "outside")
    assert reference_style_of(rows) == Layout("[[", "]]")
    assert bare(rows[-1], reference_style_of(rows)).reference == "outside"


def test_a_question_that_is_a_part_of_the_answers_hides_no_style() -> None:
    rows = [
        Example(f"train-{i}", word, f"**{word}s**", {})
        for i, word in enumerate(("heron", "tree", "egg", "bell", "wheel", "key"))
    ]
    assert reference_style_of(rows) == Layout("**", "**")


def test_the_embedded_task_has_plain_references() -> None:
    assert reference_style_of(load_task("handbook").train) is None


@pytest.mark.parametrize("combine", ["mean", "all"])
@pytest.mark.parametrize("style", STYLES)
def test_a_base_model_that_lacks_both_does_not_seem_to_lack_more_content(style: str, combine: str) -> None:
    reward = reward_in(style, combine)
    need = need_of(judged(style, reward, "I believe that it is {}, but ask at the desk.", WRONG))
    assert need.both == 1.0
    assert need.p_content == pytest.approx(0.5)


@pytest.mark.parametrize("combine", ["mean", "all"])
@pytest.mark.parametrize("style", STYLES)
def test_right_answers_out_of_style_lack_form_and_wrong_ones_in_style_lack_content(style: str, combine: str) -> None:
    reward = reward_in(style, combine)
    assert {each.verdict for each in judged(style, reward, "It is {}!", None)} == {"form"}
    framed = [(row, STYLES[style].wrap(WRONG, row.question)) for row in rows_in(style)]
    found = classify_failures(
        [Graded(row, text, reward(row, text)) for row, text in framed], reward, train=rows_in(style)
    )
    assert {each.verdict for each in found} == {"content"}


def test_a_reward_for_another_style_than_the_references_have_decides() -> None:
    reward = reward_in("json")
    rows = rows_in("bold")
    good = [
        Graded(row, STYLES["json"].wrap(row.fields["key"], ""), reward(row, STYLES["json"].wrap(row.fields["key"], "")))
        for row in rows[:2]
    ]
    replies = {"form": "**{}**", "both": f"**{WRONG}**", "content": json.dumps({"answer": WRONG})}
    for verdict, text in replies.items():
        texts = [(row, text.replace("{}", row.fields["key"])) for row in rows[3:]]
        found = classify_failures(
            [Graded(row, each, reward(row, each)) for row, each in texts], reward, known_good=good, train=rows
        )
        assert [each.verdict for each in found[3:]] == [verdict] * len(found[3:]), verdict


def test_the_reward_gets_the_row_with_its_own_reference() -> None:
    rows = rows_in("bold")

    def exact(reply: str, reference: str) -> float:
        assert reference.startswith("**")
        return float(reply == reference)

    reward = Reward([callable_check(exact)])
    found = classify_failures(
        [Graded(row, row.fields["key"], reward(row, row.fields["key"])) for row in rows], reward, train=rows
    )
    assert {each.verdict for each in found} == {"form"}
    assert all(each.repaired_reward == 1.0 for each in found)


def test_without_the_reference_style_more_content_than_form_seems_missing() -> None:
    reward, rows = reward_in("bold"), rows_in("bold")
    failures = [Graded(row, f"It is {WRONG}!", reward(row, f"It is {WRONG}!")) for row in rows]
    content, form = (
        sum(getattr(each, name) for each in attribute(failures, reward)) for name in ("content_deficit", "form_deficit")
    )
    assert content > 1.5 * form
