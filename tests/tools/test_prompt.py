"""The prompt document: lossless, readable, and refused with a reason."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nslora.tools.errors import PromptError
from nslora.tools.prompt import Demonstration, Prompt, Section, check_prompt, difference, normalise, parse
from nslora.tools.schema import Example

HEADINGS = ("# System", "\\# System", "#\xa0x", "## Question", "##reply:", "# ", "#")
MARKS = ("\\", "\\\\", "\\#", "\\~", "~", "", "  ", "\t", "\u2003", "\x85", "\r", "```", "{question")
TEXTS = st.one_of(
    st.text(st.characters(codec=None)),
    st.lists(st.one_of(st.sampled_from([*HEADINGS, *MARKS]), st.text())).map("\n".join),
)
TEMPLATES = st.tuples(TEXTS, TEXTS).map("{question}".join).filter(lambda text: text.count("{question}") == 1)
DEMONSTRATIONS = st.lists(st.builds(Demonstration, TEXTS, TEXTS), max_size=3)
NAMES = st.from_regex(r"\w[\w-]{0,8}", fullmatch=True)
SECTIONS = st.lists(st.builds(Section, NAMES, TEXTS, st.booleans()), max_size=2, unique_by=lambda each: each.name)
PROMPTS = st.builds(Prompt, TEXTS, TEMPLATES, DEMONSTRATIONS.map(tuple), SECTIONS.map(tuple))
STYLED = Prompt("Be brief.", "Q: {question}", (Demonstration("Who?", "ADA"), Demonstration("When?", "1911")))


@settings(max_examples=200, deadline=None)
@given(PROMPTS)
def test_a_document_gives_back_the_prompt_that_it_was_made_from(prompt: Prompt) -> None:
    document = prompt.render()
    assert parse(document) == prompt
    assert document.encode().decode() == document
    assert "\r" not in document


@settings(max_examples=100, deadline=None)
@given(PROMPTS, st.text())
def test_no_carriage_return_of_a_prompt_reaches_the_model(prompt: Prompt, question: str) -> None:
    sent = [turn["content"] for turn in prompt.messages(question.replace("\r", ""))]
    assert not any("\r" in text for text in sent)


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_any_line_ends_make_the_same_prompt(end: str) -> None:
    several = Prompt("One.\n\nTwo.", "Q: {question}\nA:", (Demonstration("Who\nwas it?", "ADA\nB"),))
    for prompt in (STYLED, several):
        assert parse(prompt.render().replace("\n", end)) == prompt
    assert parse(f"\ufeff```{end}{STYLED.render()}{end}```{end}") == STYLED
    assert Prompt(f"a{end}b", f"Q:{end}{{question}}").messages("x") == Prompt("a\nb", "Q:\n{question}").messages("x")


FENCED = (
    "```python\n# load the rows\nrows = []\n## twice\n#\n```",
    "~~~\n# load\n~~~",
    "````markdown\n# Title\n```\n# inner\n```\n````",
    "Run this:\n\n   ```bash\n# install\nmake\n   ```\n\nThen:\n\n```\n#!/bin/sh\n# again\n```\ndone",
)


@pytest.mark.parametrize("code", FENCED)
def test_lines_in_a_code_block_are_no_headings(code: str) -> None:
    document = (
        f"# System\n\n{code}\n\n# Question template\n\n{code}\n{{question}}\n\n"
        f"# Demonstration 1\n\n## Question\n\n{code}\n\n## Reply\n\n{code}\n"
    )
    prompt = parse(document)
    assert prompt == Prompt(code, f"{code}\n{{question}}", (Demonstration(code, code),))
    assert parse(prompt.render()) == prompt
    assert parse(document.replace("\n", "\r\n")) == prompt
    assert parse(f"`````\n{document}\n`````") == prompt


def test_parts_of_a_demonstration_may_be_quoted_in_a_code_block() -> None:
    code = "```\n## Question\nWho?\n## Reply\nADA\n```"
    document = f"# Question template\n{{question}}\n# Demonstration 1\n## Question\nShow one.\n## Reply\n{code}\n"
    prompt = parse(document)
    assert prompt.demonstrations == (Demonstration("Show one.", code),)
    assert parse(prompt.render()) == prompt


def test_a_code_block_without_an_end_hides_no_section() -> None:
    ends = Prompt("```", "{question}\n```", (Demonstration("```", "x\n```"), Demonstration("a", "```")))
    assert parse(ends.render()) == ends
    with pytest.raises(PromptError, match='"# load" is unknown'):
        parse("# System\n```\n# load\n\n# Question template\n{question}\n```")


@settings(max_examples=50, deadline=None)
@given(PROMPTS)
def test_a_prompt_keeps_its_hash_through_the_document(prompt: Prompt) -> None:
    assert parse(prompt.render()).hash == prompt.hash
    assert len(prompt.hash) == 16


def test_two_lone_surrogates_do_not_become_one_character() -> None:
    prompt = Prompt("\ud83d\ude00")
    assert parse(prompt.render()) == prompt


def test_the_document_reads_as_markdown() -> None:
    assert STYLED.render() == (
        "# System\n\nBe brief.\n\n# Question template\n\nQ: {question}\n\n"
        "# Demonstration 1\n\n## Question\n\nWho?\n\n## Reply\n\nADA\n\n"
        "# Demonstration 2\n\n## Question\n\nWhen?\n\n## Reply\n\n1911\n"
    )


def test_demonstrations_are_sent_as_turns_through_the_template() -> None:
    assert STYLED.messages("Where?") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: Who?"},
        {"role": "assistant", "content": "ADA"},
        {"role": "user", "content": "Q: When?"},
        {"role": "assistant", "content": "1911"},
        {"role": "user", "content": "Q: Where?"},
    ]


def test_an_empty_system_turn_is_not_sent() -> None:
    assert Prompt().messages("Where?") == [{"role": "user", "content": "Where?"}]


def test_a_question_that_holds_the_placeholder_is_not_filled_in_twice() -> None:
    assert Prompt(template="Q: {question}").ask("what is {question}?") == "Q: what is {question}?"


def test_blank_lines_and_a_fence_that_an_editor_adds_do_no_harm() -> None:
    document = STYLED.render().replace("\n\n", "\n\n\n").replace("# System\n\n\n", "# system:  \n")
    assert parse(f"\n```markdown\n{document}\n```\n\n") == STYLED


def test_headings_of_a_lower_rank_are_text() -> None:
    assert parse("# System\n\n## Rules\n- one\n\n# Question template\n{question}").system == "## Rules\n- one"


def test_latex_at_the_start_of_a_line_keeps_its_backslash() -> None:
    assert parse("# Question template\n\\frac{1}{2}\n{question}").template == "\\frac{1}{2}\n{question}"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("", "missing"),
        ("Be brief: {question}", "must begin with"),
        ("# System\nBe brief.", '"# Question template" is missing'),
        ("# Question template\nQ:", "exactly once, but contains it 0 times"),
        ("# Question template\n{question} {question}", "contains it 2 times"),
        ("# System\na\n# System\nb\n# Question template\n{question}", '"System" twice'),
        ("# Rules\na\n# Question template\n{question}", '"# Rules" is unknown'),
        ("#\n# Question template\n{question}", "no name"),
        ("# Question template\n{question}\n# Demonstration 1\n## Question\nWho?", "Demonstration 1 has no reply"),
        ("# Question template\n{question}\n# Demonstration 1\n## Question\nWho?\n## Reply\n\n", "has no reply"),
        ("# Question template\n{question}\n# Demonstration 1\n## Reply\nADA", "Demonstration 1 has no question"),
        ("# Question template\n{question}\n# Demonstration 1\nWho?", "must begin with"),
        (
            "# Question template\n{question}\n# Demonstration 1\n## Reply\nA\n## Reply\nB",
            'Demonstration 1 has "Reply" twice',
        ),
        ("# System\n\\~\\xq\n# Question template\n{question}", "must hold Python escapes"),
    ],
)
def test_a_document_that_does_not_parse_is_refused_with_the_reason(document: str, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        parse(document)


def test_a_prompt_cannot_be_made_without_its_placeholder() -> None:
    with pytest.raises(PromptError, match="exactly once"):
        Prompt(template="Answer!")


def test_the_difference_shows_people_what_changed() -> None:
    shown = difference(Prompt("Be brief."), Prompt("Be kind."))
    assert "-Be brief." in shown
    assert "+Be kind." in shown
    assert difference(STYLED, STYLED) == ""


def words(turns: Sequence[dict[str, str]]) -> int:
    return sum(len(turn["content"].split()) for turn in turns)


def test_a_prompt_that_leaves_no_room_for_question_and_reply_is_refused() -> None:
    # 2 + 2 + 1 + 2 + 1 words of the prompt and 1 + 3 of the question: 12, and 5 for the reply.
    options = {"count_tokens": words, "longest": Example("1", "a b c", None, {}), "max_new_tokens": 5}
    check_prompt(STYLED, context_tokens=17, **options)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="12 tokens with the longest question and 5 for the reply"):
        check_prompt(STYLED, context_tokens=16, **options)  # type: ignore[arg-type]


def test_a_demonstration_that_copies_a_held_out_question_is_refused_however_it_is_spelt() -> None:
    with pytest.raises(PromptError, match="Demonstration 2 copies"):
        check_prompt(STYLED, forbidden_questions=["  WHEN"])
    check_prompt(STYLED, forbidden_questions=["When did it open?"])


@pytest.mark.parametrize(
    "demonstration",
    [Demonstration("Q: When did it open? Answer briefly.", "1911"), Demonstration("Hm?", "When did it open? In 1911.")],
)
def test_a_held_out_question_inside_a_demonstration_is_refused(demonstration: Demonstration) -> None:
    prompt = Prompt(demonstrations=(STYLED.demonstrations[0], demonstration))
    with pytest.raises(PromptError, match="Demonstration 2 copies"):
        check_prompt(prompt, forbidden_questions=["when did it open"])


def test_a_train_question_that_holds_a_held_out_one_may_be_a_demonstration() -> None:
    prompt = Prompt(demonstrations=(Demonstration("What is 3 + 4 + 5?", "12"),))
    with pytest.raises(PromptError, match="copies"):
        check_prompt(prompt, forbidden_questions=["What is 3 + 4"])
    check_prompt(prompt, forbidden_questions=["What is 3 + 4"], allowed_questions=["what is 3 + 4 + 5"])


def test_a_held_out_question_quoted_in_the_system_turn_is_refused() -> None:
    with pytest.raises(PromptError, match="quotes"):
        check_prompt(Prompt('If asked "When did it open?", say 1911.'), forbidden_questions=["when did it open"])


def test_a_protected_text_must_stay() -> None:
    check_prompt(STYLED, protected=["Be brief."])
    with pytest.raises(PromptError, match="protected text"):
        check_prompt(STYLED, protected=["Never give advice."])


def test_a_demonstration_with_an_empty_side_is_refused() -> None:
    with pytest.raises(PromptError, match="Demonstration 1 has an empty question or reply"):
        check_prompt(Prompt(demonstrations=(Demonstration("Who?", " "),)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Who made C?", "Who made C++?"),
        ("Who made C++?", "Who made C#?"),
        ("What is 10 + 11?", "What is 10 * 11?"),
        ("5 - 3?", "5 + 3?"),
        ("Is -3 odd?", "Is 3 odd?"),
        ("Is 3 \u2264 5?", "Is 3 \u2265 5?"),
        ("A \u2227 B", "A \u2228 B"),
        ("5! ways", "5 ways"),
        ("[ [ ( a", "{ [ a"),
        ("\u0915\u093f", "\u0915\u0940"),
    ],
)
def test_questions_that_differ_in_a_symbol_are_two(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)
    assert normalise(one) == normalise(f"  {one.upper()}! ")


@pytest.mark.parametrize(
    "said",
    [
        "**Who** keeps the mill?",
        "***Who keeps the mill***",
        "# Who keeps the mill",
        "> - Who keeps the mill?",
        "Who *keeps* the mill",
    ],
)
def test_markdown_does_not_hide_a_question(said: str) -> None:
    assert normalise(said) == "who keeps the mill"


def test_an_inverted_exclamation_mark_is_punctuation() -> None:
    assert normalise("\u00a1Hola!") == normalise("hola")


def test_a_sum_is_no_copied_row_for_its_symbols_sake() -> None:
    check_prompt(Prompt(system="Say 2+2=4 for 2+2."), forbidden_questions=["2+2=?"])
    assert normalise("5 \u2212 3") == normalise("5 - 3")
