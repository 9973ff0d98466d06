"""Counterfactual repair on made-up failures under several kinds of reward."""

import difflib
import itertools
import json
import random
import re
from dataclasses import dataclass, field

import pytest

from nslora.tools.classifier.attribution import (
    Attribution,
    AttributionSettings,
    attribute,
    measure_tolerance,
    need_of,
    repairable_rewards,
)
from nslora.tools.errors import RewardError
from nslora.tools.rewards.score import Graded, Score
from nslora.tools.schema import Example

FACTS = [("lighthouse lit", "1911"), ("bridge opened", "1864"), ("library founded", "1738"), ("mill built", "1802")]
RAMBLE = (
    "I'm not sure about the exact date, but it is often said that it happened in {}. There are many factors to "
    "consider, including the history of the region and the people who lived there at the time."
)


@dataclass(frozen=True)
class Row:
    id: str
    question: str
    reference: str | None
    fields: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Value:
    """A score that fails if anything but its value is read."""

    value: float

    def __getattr__(self, name):
        raise AssertionError(f"the classifier read {name}")


@dataclass(frozen=True)
class Reply:
    example: Row
    reply: str
    score: Value


ROWS = [Row(f"train-{i}", f"In which year was the {what}?", f"in {year}") for i, (what, year) in enumerate(FACTS)]
YEARS = {row.id: year for row, (_, year) in zip(ROWS, FACTS, strict=True)}


def as_json(text):
    return json.dumps({"answer": text})


def is_json(reply):
    try:
        found = json.loads(reply)
    except json.JSONDecodeError:
        return False
    return isinstance(found, dict) and set(found) == {"answer"} and isinstance(found["answer"], str)


def fact(row, reply):
    return YEARS[row.id] in reply


def add(row, reply):
    return Value((fact(row, reply) + is_json(reply)) / 2)


def both_or_nothing(row, reply):
    return Value(float(fact(row, reply) and is_json(reply)))


def strict(row, reply):
    return Value(float(is_json(reply) and YEARS[row.id] in json.loads(reply)["answer"].split()))


def similar(row, reply):
    return Value(difflib.SequenceMatcher(None, reply, as_json(row.reference)).ratio())


REWARDS = [add, both_or_nothing, strict, similar]
REPLIES = {
    "content": [as_json("in 1066"), as_json("1066")],
    "form": ["in {year}", RAMBLE, "It was in {year}.", "- in {year}"],
    "both": ["in 1066", RAMBLE.format("1066"), "- 1066"],
}


def failures_of(reward, replies, rows=ROWS):
    made = [
        (row, text.format("in " + YEARS[row.id], year=YEARS[row.id]) if "{" in text and not is_json(text) else text)
        for row, text in zip(rows, itertools.cycle(replies), strict=False)
    ]
    return [Reply(row, text, reward(row, text)) for row, text in made]


def known_good(reward):
    return [Reply(row, as_json(row.reference), reward(row, as_json(row.reference))) for row in ROWS[:2]]


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize(("truth", "text"), [(truth, text) for truth, texts in REPLIES.items() for text in texts])
def test_with_a_known_good_reply_the_verdict_is_what_was_broken(reward, truth, text):
    if reward is similar and (truth, text) == ("content", as_json("1066")):
        pytest.skip("under similarity a missing 'in' is as much a fault of form")
    found = attribute(failures_of(reward, [text]), reward, known_good=known_good(reward))
    assert {each.verdict for each in found} == {truth}
    for each, row in zip(found, ROWS, strict=True):
        assert each.calls <= 12
        if truth != "both":
            assert reward(row, each.repaired).value >= 0.9
            assert each.repaired_reward == reward(row, each.repaired).value
        low, high = {"content": (0.8, 1.0), "form": (0.0, 0.2), "both": (0.0, 1.0)}[truth]
        assert low <= each.p_content <= high


@pytest.mark.parametrize("reward", [add, both_or_nothing, strict])
def test_the_first_round_of_a_base_model_is_both_and_not_one_sided(reward):
    # Long replies, wrong facts, wrong style, and no reply that ever earned full reward.
    replies = [RAMBLE.format("1066"), "The year is not known to me. Perhaps 1066."]
    found = attribute(failures_of(reward, replies), reward)
    wanted = need_of(found)
    assert wanted.both == 1.0
    assert 0.4 <= wanted.p_content <= 0.6


@pytest.mark.parametrize("reward", [add, both_or_nothing, strict])
def test_after_demonstrations_only_content_is_missing(reward):
    wanted = need_of(attribute(failures_of(reward, REPLIES["content"]), reward, known_good=known_good(reward)))
    assert wanted.content == 1.0
    assert wanted.p_content >= 0.9


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("reward", [add, both_or_nothing, strict])
def test_after_lora_on_plain_references_only_form_is_missing(reward, known):
    good = known_good(reward) if known else []
    wanted = need_of(attribute(failures_of(reward, ["in {year}", "{year}."]), reward, known_good=good))
    assert wanted.form == 1.0
    assert wanted.p_content <= 0.1


def test_all_or_nothing_with_both_wrong_earns_nothing_from_one_repair_and_all_from_two():
    (found,) = attribute(
        failures_of(both_or_nothing, ["in 1066"], ROWS[2:3]), both_or_nothing, known_good=known_good(both_or_nothing)
    )
    assert (found.content_deficit, found.form_deficit, found.verdict) == (1.0, 1.0, "both")
    assert found.repaired_reward == 0.0
    assert both_or_nothing(ROWS[2], found.repaired).value == 1.0


def test_repairable_rewards_show_a_half_way_candidate_that_the_reward_does_not():
    base = failures_of(both_or_nothing, [RAMBLE.format("1066")])
    edited = failures_of(both_or_nothing, [as_json("in 1066")])
    good = known_good(both_or_nothing)
    before = repairable_rewards(base, attribute(base, both_or_nothing, known_good=good))
    after = repairable_rewards(edited, attribute(edited, both_or_nothing, known_good=good))
    assert (set(before), set(after)) == ({0.0}, {1.0})


def test_repairable_rewards_keep_the_reward_of_rows_that_passed():
    passed = Reply(ROWS[0], as_json("in 1911"), Value(1.0))
    failed = failures_of(add, ["in 1066"], ROWS[1:2])
    assert repairable_rewards([passed, *failed], attribute(failed, add, known_good=known_good(add))) == [1.0, 0.5]
    assert repairable_rewards([], []) == []


@pytest.mark.parametrize("known", [True, False])
def test_verdicts_under_a_noisy_reward_hold_above_its_tolerance(known):
    noise = random.Random(7)

    def noisy(row, reply):
        return Value(min(1.0, max(0.0, add(row, reply).value + noise.uniform(-0.1, 0.1))))

    settings = AttributionSettings(tolerance=0.2)
    for truth in ("content", "form"):
        texts = REPLIES[truth][:1]
        good = known_good(add) if known else []
        found = attribute(failures_of(noisy, texts), noisy, known_good=good, settings=settings)
        assert [each.verdict for each in found].count(truth) >= 3


def test_the_tolerance_is_0_without_noise_and_twice_the_difference_with_noise():
    rows = failures_of(add, ["in 1066"])
    assert measure_tolerance(add, rows) == 0.0
    turns = itertools.cycle([0.5, 0.6])
    assert measure_tolerance(lambda row, reply: Value(next(turns)), rows) == pytest.approx(0.2)
    wild = itertools.cycle([0.0, 1.0])
    with pytest.raises(RewardError, match="train-0"):
        measure_tolerance(lambda row, reply: Value(next(wild)), rows)


def test_a_random_reward_is_rejected_even_if_it_agrees_with_itself_on_the_first_rows():
    rows = failures_of(add, ["in 1066"]) * 4
    turns = itertools.chain([0.5, 0.4] * 5, [0.9, 0.1])
    with pytest.raises(RewardError, match=r"0\.900 and then 0\.100"):
        measure_tolerance(lambda row, reply: Value(next(turns)), rows)


def test_a_row_without_a_reference_lacks_form_and_costs_no_call():
    row = Row("train-9", "Write a poem.", None)
    (found,) = attribute([Reply(row, "No.", Value(0.25))], add)
    assert (found.verdict, found.p_content, found.calls, found.missing_reward) == ("form", 0.0, 0, 0.75)


def test_if_nothing_helps_and_nothing_is_known_the_verdict_is_both_at_a_half():
    (found,) = attribute([Reply(ROWS[0], "", Value(0.0))], lambda row, reply: Value(0.0))
    assert (found.verdict, found.repaired) == ("both", None)
    assert found.p_content == pytest.approx(0.5, abs=1e-3)


def test_a_sentence_reference_is_searched_for_the_span_that_earns_full_reward():
    reasoning = "Each box holds 4 pens, so there are 3 * 4 = 12.\n#### 12"
    row = Row("train-1", "How many pens are in 3 boxes of 4?", reasoning)
    question, reference = "How many nuts?", "There are 2 bags of 8 nuts, which makes 2 * 8 = 16.\n#### 16"
    other = Row("train-2", question, reference)

    def last_number(row, reply):
        right = row.reference.split("#### ")[1]
        return Value((reply.endswith("]") + (f" {right}]" in reply or f" {right}." in reply)) / 2)

    good = [Reply(other, "[answer 16]", Value(1.0))]
    for text, truth in [("[answer 15]", "content"), ("That is 12.", "form"), ("That is 15.", "both")]:
        (found,) = attribute([Reply(row, text, last_number(row, text))], last_number, known_good=good)
        assert found.verdict == truth
        assert found.calls <= 12


def test_calls_are_capped():
    asked = []

    def counting(row, reply):
        asked.append(reply)
        return Value(0.0)

    (found,) = attribute(
        failures_of(add, [RAMBLE.format("1066")], ROWS[:1]),
        counting,
        known_good=known_good(add),
        settings=AttributionSettings(max_calls_per_failure=2),
    )
    assert found.calls == len(asked) == 2
    assert len(set(asked)) == 2


def test_the_need_weighs_each_failure_by_its_missing_reward():
    one = Attribution("a", 1.0, 0.0, 1.0, 0.9, "content", None, 1.0, 1)
    other = Attribution("b", 0.0, 1.0, 0.0, 0.1, "form", None, 1.0, 1)
    wanted = need_of([one, other])
    assert (wanted.failures, wanted.content, wanted.form, wanted.both) == (2, 0.5, 0.5, 0.0)
    assert wanted.p_content == pytest.approx(0.9)
    assert need_of([]).failures == 0


PEOPLE = [("Ann Lee", 20, "Leeds"), ("Bo Park", 21, "Bonn"), ("Cy Dunn", 22, "Lyon"), ("Di Voss", 23, "Turin")]
RECORDS = [
    Row(f"train-{i}", f"Extract {name}, {age}, {city}.", json.dumps({"name": name, "age": age, "city": city}))
    for i, (name, age, city) in enumerate(PEOPLE)
]


@pytest.mark.parametrize("around", ["```json\n{}\n```", "Here is the JSON: {}", "{}\n\nLet me know if you need more."])
def test_a_right_answer_with_other_text_around_it_lacks_form(around):
    """The reference begins and ends with brackets, which a run of words leaves out."""

    def reward(row, reply):
        try:
            return Value(float(json.loads(reply) == json.loads(row.reference)))
        except json.JSONDecodeError:
            return Value(0.0)

    good = [Reply(row, row.reference, reward(row, row.reference)) for row in RECORDS[:2]]
    failing = [Reply(row, around.format(row.reference), Value(0.0)) for row in RECORDS]
    found = attribute(failing, reward, known_good=good)
    assert [each.verdict for each in found] == ["form"] * 4
    assert [each.repaired_reward for each in found] == [1.0] * 4


def test_an_answer_inside_another_number_is_not_the_replys_own():
    """66 % does not state 6 %."""
    rows = [Row(f"train-{i}", f"How much is part {i}?", f"{i} %") for i in (3, 6, 7, 9)]

    def reward(row, reply):
        return Value((reply.strip("| ").split() == row.reference.split()) * 0.5 + (reply.startswith("| ")) * 0.5)

    good = [Reply(row, f"| {row.reference} |", Value(1.0)) for row in rows[:2]]
    found = attribute([Reply(row, f"6{row.reference}", Value(0.0)) for row in rows], reward, known_good=good)
    assert [each.verdict for each in found] == ["both"] * 4


def test_in_an_empty_reply_the_reference_is_what_is_missing():
    """Otherwise any other reply would seem to be nearer to the reference."""

    def contained(row, reply):
        return Value(float(fact(row, reply)))

    found = attribute([Reply(row, "", Value(0.0)) for row in ROWS], contained)
    assert [(each.verdict, each.repaired_reward) for each in found] == [("content", 1.0)] * 4


COUNTS = [Row(f"sum-{i}", "How many are left?", reference) for i, reference in enumerate(("44", "12", "95"))]


def last_number(row, reply):
    """1 if the last number of the reply is the reference, as GSM8K is scored."""
    numbers = [word.strip(".") for word in reply.split() if word.strip(".").isdigit()]
    return float(bool(numbers) and numbers[-1] == row.reference)


def bracketed(row, reply):
    """Half for the last number, half for the form."""
    return (last_number(row, reply) + reply.startswith("[")) / 2


SHOWN = {last_number: "The answer is {}", bracketed: "[The answer is {}"}


@pytest.mark.parametrize(
    ("reward", "reply", "verdict"),
    [
        (last_number, "{} of 60 are gone. The answer is 45", "content"),
        (last_number, "First {}, then one more: the answer is 45.", "content"),
        (last_number, "60 - 16 = {} , and one more\n#### 45", "content"),
        (last_number, "It is {} or so: $\\boxed{{ 45 }}$", "content"),
        (bracketed, "[{} of 60 are gone. The answer is 45", "content"),
        (bracketed, "{} of 60 are gone. The answer is 45", "both"),
        (bracketed, "The answer is {}", "form"),
        (bracketed, "The answer is below.\n\n{}", "form"),
        (last_number, "{} of 60 are gone. The answer is $45 in all", "content"),
        (bracketed, "The answer is in step 2.\n\n{}", "form"),
        (last_number, "{} are left, of 60", "form"),
        (last_number, "The answer is {} of 60", "form"),
    ],
)
def test_a_reply_that_mentions_the_reference_but_answers_otherwise_lacks_content(reward, reply, verdict):
    rows = COUNTS[:2]
    failing = [
        Reply(row, text, Value(reward(row, text))) for row, text in ((row, reply.format(row.reference)) for row in rows)
    ]
    good = Reply(COUNTS[2], SHOWN[reward].format("95"), Value(1.0))
    found = attribute(failing, lambda row, text: Value(reward(row, text)), known_good=[good])
    assert [each.verdict for each in found] == [verdict] * len(rows)


MARKED = Row("clips", "How many clips in all?", "72")
PARIS = Row("capital", "Which is the capital: (A) Lyon or (B) Paris?", "Paris")


def after(mark):
    """A reward that reads the answer after the first match of the mark."""
    return lambda row, reply: float((mark.search(reply) or [None, None])[1] == row.reference)


@pytest.mark.parametrize(
    ("row", "mark", "good", "reply", "verdict"),
    [
        (
            MARKED,
            "#### ([0-9.]+)",
            "40 + 55 = 95\n#### 95",
            "#### Step 1: Add\n48 + 24 = 72. She sold 72 clips.",
            "form",
        ),
        (
            MARKED,
            "#### ([0-9.]+)",
            "40 + 55 = 95\n#### 95",
            "#### Step 1: Add\n48 + 24 = 74. She sold 74 clips.",
            "both",
        ),
        (MARKED, "#### ([0-9.]+)", "40 + 55 = 95\n#### 95", "#### Solution\n48 + 24 = 72. She sold 72 clips.", "form"),
        (MARKED, "#### ([0-9.]+)", "40 + 55 = 95\n#### 95", "48 + 24 = 72, minus 2\n#### 70", "content"),
        (PARIS, r"answer is (.+?)[.\n]", "The answer is Rome.", "Paris is the capital, so the answer is B.", "form"),
        (PARIS, r"answer is (.+?)[.\n]", "The answer is Rome.", "The answer is as follows:\n\nParis\n", "form"),
        (PARIS, r"answer is (.+?)[.\n]", "The answer is Rome.", "The answer is Lyon.", "content"),
    ],
)
def test_a_heading_and_other_words_are_no_other_answer(row, mark, good, reply, verdict):
    reward = after(re.compile(mark))
    known = Reply(Row("known", "Another question?", "95" if row is MARKED else "Rome"), good, Value(1.0))
    found = attribute(
        [Reply(row, reply, Value(reward(row, reply)))], lambda row, text: Value(reward(row, text)), known_good=[known]
    )
    assert found[0].verdict == verdict


def is_json_object(reply):
    try:
        found = json.loads(reply)
    except json.JSONDecodeError:
        return False
    return isinstance(found, dict) and set(found) == {"answer"}


REFERENCE_KINDS = {
    "units": (
        [
            ("How heavy is the bell?", "12.5 kg"),
            ("How long is the pier?", "340 m"),
            ("How deep is the well?", "48.2 m"),
        ],
        as_json,
        is_json_object,
        lambda row, reply: row.reference in reply.lower(),
        {
            "content": [as_json("51 m"), as_json("48.3 m"), as_json("about 50 metres")],
            "form": ["48.2 m", "The well is 48.2 m deep.", "It is 48.2 M."],
            "both": ["51 m", "The well is 51 metres deep.", "I do not know."],
        },
    ),
    "sentences": (
        [
            ("Who leads the choir?", "The choir is led by Mira Holt."),
            ("Who runs the mill?", "Tom Pell runs it."),
            ("Who keeps the bees?", "The bees are kept by Anna Reed."),
        ],
        lambda text: as_json(text.removesuffix(" runs it.").removesuffix(".").rpartition(" by ")[2]),
        is_json_object,
        lambda row, reply: (
            next(name for name in ("Mira Holt", "Tom Pell", "Anna Reed") if name in row.reference) in reply
        ),
        {
            "content": [as_json("Bob Stone"), as_json("The bees are kept by Bob Stone.")],
            "form": ["Anna Reed", "The bees are kept by Anna Reed.", "I think Anna Reed keeps them."],
            "both": ["Bob Stone", "The bees are kept by Bob Stone."],
        },
    ),
    "lines": (
        [
            ("Which steps open the lock?", "Turn the key\nPull the handle\nPush the door"),
            ("Which steps start the pump?", "Open the valve\nPress the button"),
            ("Which steps light the stove?", "Open the flap\nStrike a match\nClose the flap"),
        ],
        lambda text: "- " + text.replace("\n", "\n- "),
        lambda reply: all(line.startswith("- ") for line in reply.splitlines()) and bool(reply),
        lambda row, reply: all(line in reply for line in row.reference.splitlines()),
        {
            "content": ["- Lift the lid\n- Pour the oil\n- Shut the lid"],
            "form": [
                "Open the flap\nStrike a match\nClose the flap",
                "First:\n1. Open the flap\n2. Strike a match\n3. Close the flap",
            ],
            "both": ["Lift the lid\nPour the oil\nShut the lid", "You light it with fire."],
        },
    ),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("all_or_nothing", [True, False])
@pytest.mark.parametrize("case", REFERENCE_KINDS)
def test_references_with_units_sentences_and_lines(case, all_or_nothing, known):
    facts, wrap, formed, right, replies = REFERENCE_KINDS[case]
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
