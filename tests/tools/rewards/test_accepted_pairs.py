"""An accepted pair stays accepted in other words, and is rejected once the words say something else."""

from __future__ import annotations

import pytest
import reward_pairs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nslora.tools.rewards.choice import LETTERS
from nslora.tools.rewards.reward import build_check
from nslora.tools.schema import Example

NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.integers(1000, 10**9).map("{:,}".format),
    st.decimals(-1000, 1000, places=2).map(str),
    st.integers(1, 999).map("{} km".format),
)
WORDS = st.sampled_from(["Paris", "Ada Brandt", "spam", "王芳", "don't", "mW", "f(x)", "[0,1)", "C#", "1914-1918"])
LABELS = ("spam", "ham", "other")
WRAPPED = ("{}", "{}.", "**{}**", " {}\n", "**{}**.")
SAID = (*WRAPPED, "The answer is {}.", "The answer is **{}**", "Answer: {}", "The final answer is: {}", "#### {}")
DENIED = ("not {}", "The answer is not {}.", "It isn't {}.", "It is not {}.", "never {}", "anything but {}")
DENIED += (
    "{} is wrong", "{} is false.", "{} can't be right", "{} cannot be the answer", "far from {}", "instead of {}",
    "rather than {}", "everything except {}", "It isn't true that it is {}", "It is false that the answer is {}.",
    "I don't think the answer is {}.", "I disagree that it is {}", "There is no way that it is {}.",
    "The answer isn't {}.",
)  # fmt: skip
COMPARED = (
    "<{}", "> {}", ">={}", "≤{}", "less than {}", "at least {}", "more than {}", "at most {}", "under {}", "up to {}",
    "The answer is at least {}.", "The answer is less than {}.", "{} or more", "no more than {}", "不到{}", "至少{}",
)  # fmt: skip


def in_words(number: int) -> str:
    """English words of a number below a million, and of a million."""
    small = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    small += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
    tens = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    if number < 20:
        return small[number]
    if number < 100:
        return tens[number // 10] + (f"-{small[number % 10]}" if number % 10 else "")
    unit, name = next(each for each in ((10**6, "million"), (1000, "thousand"), (100, "hundred")) if number >= each[0])
    rest = f" and {in_words(number % unit)}" if number % unit else ""
    return f"{in_words(number // unit)} {name}{rest}"


def value(check: object, reference: str, reply: str) -> float:
    return build_check(check).grade(Example("1", "q", reference, {}), reply).value


@given(NUMBERS, st.sampled_from(SAID))
def test_a_number_is_accepted_however_it_is_said(number: str, words: str) -> None:
    assert value("numeric", number, words.format(number)) == 1


@given(st.integers(0, 10**6), st.sampled_from((*WRAPPED[:-1], "The answer is {}.", "There are {} apples!")))
def test_a_number_in_english_words_is_that_number(number: int, words: str) -> None:
    assert value("numeric", str(number), words.format(in_words(number))) == 1
    assert value("numeric", str(number + 1), words.format(in_words(number))) == 0
    assert value("numeric", str(number), f"not {in_words(number)}") == 0


def test_one_is_a_number_where_it_counts_a_noun() -> None:
    for reply in ("There is one apple.", "There are one apples!", "There's only one left."):
        assert value("numeric", "1", reply) == 1
    for reply in ("There is no one.", "There is one of them", "There is one more.", "There is one-half.", "one day"):
        assert value("numeric", "1", reply) == 0


@given(NUMBERS, st.sampled_from((*DENIED, *COMPARED)))
def test_a_number_that_is_denied_or_compared_earns_nothing(number: str, words: str) -> None:
    assert value("numeric", number, words.format(number)) == 0


@given(
    st.integers(1, 10**6),
    st.integers(1, 10**6),
    st.sampled_from(("{}-{}", "{} to {}", "{} or {}", "{}–{}", "between {} and {}", "{} and {}", "{}, {}", "({}, {})")),
    st.booleans(),
)
def test_a_range_or_a_choice_of_numbers_earns_nothing(first: int, second: int, words: str, swapped: bool) -> None:
    assume(first != second)
    both = (second, first) if swapped else (first, second)
    assert value("numeric", str(first), words.format(*both)) == 0
    assert value("numeric", str(first), f"The answer is {words.format(*both)}.") == 0


@given(st.integers(1, 999), st.sampled_from(("m", "cm", "miles", "kg", "°C", "%", "million", "k", "万")))
def test_a_number_in_another_unit_earns_nothing(number: int, unit: str) -> None:
    assume(unit != "%" or number > 0)
    wrong = value("numeric", f"{number} km", f"{number} {unit}" if len(unit) > 1 or unit == "m" else f"{number}{unit}")
    assert wrong == 0 or unit == "%"


@given(st.integers(10, 10**9), st.randoms())
def test_another_number_of_the_same_digits_earns_nothing(number: int, random) -> None:
    digits = list(str(number))
    random.shuffle(digits)
    other = "".join(digits)
    assume(int(other) != number)
    for words in SAID:
        assert value("numeric", str(number), words.format(other)) == 0
    for words in ("{}0", "1{}", "0.{}", "{}.5", "-{}", "{}%5", "1.{}", "x{}", "{}x", "{}!", "2^{}", "log {}", "1/{}"):
        assert value("numeric", str(number), words.format(number)) == 0, words


@given(WORDS, st.sampled_from(WRAPPED))
def test_an_exact_text_is_accepted_with_marks_around_it(text: str, words: str) -> None:
    assert value("exact_match", text, words.format(text)) == 1


@given(WORDS, st.sampled_from((*DENIED, *COMPARED, "{} or not", "{}-x", "{} {}", "x{}", "{}x", "-{}", "!{}")))
def test_an_exact_text_with_more_in_it_is_another(text: str, words: str) -> None:
    assert value("exact_match", text, words.replace("{}", text)) == 0


@given(st.text("ab1X .,'()[]-", min_size=1, max_size=8), st.text("ab1X .,'()[]-", min_size=1, max_size=8))
def test_texts_of_other_letters_are_other_texts(one: str, other: str) -> None:
    assume(one.strip() and other.strip())
    letters = ["".join(c for c in text.casefold() if c.isalnum()) for text in (one, other)]
    assume(letters[0] != letters[1])
    assert value("exact_match", one, other) == 0


@pytest.mark.parametrize("labels", [LETTERS, LABELS])
@given(st.data())
def test_a_label_is_accepted_however_it_is_said(labels: tuple[str, ...], data: st.DataObject) -> None:
    label = data.draw(st.sampled_from(labels))
    words = data.draw(st.sampled_from((*SAID, "({})", "\\boxed{{{}}}", "I think it is {}", "It is {}, I think.")))
    check = {"check": "choice", "labels": list(labels)}
    assert value(check, label, words.format(label)) == 1
    assert all(value(check, other, words.format(label)) == 0 for other in labels if other != label)


@pytest.mark.parametrize("labels", [LETTERS, LABELS])
@given(st.data())
@settings(max_examples=200)
def test_a_label_that_is_denied_or_one_of_two_is_no_choice(labels: tuple[str, ...], data: st.DataObject) -> None:
    label, other = data.draw(st.permutations(labels))[:2]
    words = data.draw(st.sampled_from((*DENIED, "{} or {o}", "{o} and {}", "Answer: {} or {o}", "neither {} nor {o}")))
    check = {"check": "choice", "labels": list(labels)}
    assert value(check, label, words.format(label, o=other)) == 0
    assert value(check, other, words.format(label, o=other)) == 0


@pytest.mark.parametrize(
    ("check", "reference", "reply", "right"),
    [
        (check, *pair)
        for check, pairs in (
            ("numeric", reward_pairs.NUMERIC),
            ("exact_match", reward_pairs.EXACT_MATCH),
            ("choice", reward_pairs.LETTERS),
            ({"check": "choice", "labels": reward_pairs.SENTIMENT_LABELS}, reward_pairs.SENTIMENT),
            ({"check": "choice", "labels": reward_pairs.SPAM_LABELS}, reward_pairs.SPAM),
            ("json_equal", reward_pairs.JSON_EQUAL),
        )
        for pair in pairs
    ],
)
def test_a_pair_earns_what_a_person_would_give(check: object, reference: str, reply: str, right: int) -> None:
    assert (value(check, reference, reply) == 1) == bool(right)


def test_pairs_of_public_data_sets_earn_what_a_person_would_give() -> None:
    wrong = [
        (check, reference, reply, right)
        for check, pairs in reward_pairs.BREAKERS
        for reference, replies in pairs.items()
        for right, those in zip((True, False), replies, strict=True)
        for reply in those
        if (value(check, reference, reply) == 1) != right
    ]
    assert wrong == []
