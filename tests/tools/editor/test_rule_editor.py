"""The embedded editor: it knows no more than the feedback says, and turns that into instructions and demonstrations."""

import pytest
from langchain_core.messages import HumanMessage

from nslora.tools.editor.editor import Edit, EditFailedError, Editor, PastEdit
from nslora.tools.editor.rule_editor import NO_LANGUAGE_MODEL, RuleEditor, critique
from nslora.tools.errors import PromptError
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.rewards.reward import SUGGESTION_PREFIX
from nslora.tools.rewards.score import Graded, Score
from nslora.tools.schema import Example

FACTS = ["1911", "Ada Brandt", "oak", "seven", "Tuesday", "the ferry"]
WANTED = "The reply should be a JSON object with the key answer, with no text before or after it."


def failure(number: int, feedback: str = WANTED, right: str | None = "json") -> Graded:
    fact = FACTS[number]
    suggestion = f'{{"answer": "{fact}"}}' if right == "json" else right
    shown = f"For this question, the reply must contain '{fact}'. {feedback}"
    if suggestion:
        shown += f"\n{SUGGESTION_PREFIX}{suggestion}"
    example = Example(f"train-{number}", f"Question {number}?", fact, {})
    return Graded(example, "I don't know.", Score(0.0, {"style": 0.0}, shown, suggestion))


def pair(number: int) -> Demonstration:
    return Demonstration(f"Question {number}?", f'{{"answer": "{FACTS[number]}"}}')


def edit(prompt: Prompt, numbers: list[int], **options: object) -> Edit:
    return Editor(RuleEditor()).edit(prompt, [failure(n) for n in numbers], **options)  # type: ignore[arg-type]


def test_feedback_becomes_instructions_and_two_demonstrations() -> None:
    prompt = edit(Prompt(), [0, 1, 2]).prompts[0]
    assert prompt.system == "Your reply should be a JSON object with the key answer, with no text before or after it."
    assert prompt.demonstrations == (pair(2), pair(1))
    assert prompt.template == "{question}"


def test_the_same_request_gets_the_same_answer() -> None:
    first, second = edit(Prompt(), [0, 1]), edit(Prompt(), [0, 1])
    assert (first.prompts, first.critiques) == (second.prompts, second.critiques)


def test_no_fact_of_a_row_becomes_an_instruction() -> None:
    assert not any(fact in edit(Prompt(), [0, 1]).prompts[0].system for fact in FACTS)
    exact = (
        "For this question, the reply must be exactly '1911'. The reply should have at most 3 words; this one has 9."
    )
    only = critique("Question 0?", f"{exact}\n{SUGGESTION_PREFIX}1911").splitlines()
    assert [line for line in only if line.startswith("Instruction:")] == [
        "Instruction: Your reply should have at most 3 words."
    ]
    example = critique("Q?", 'Write a JSON object, such as {"answer": "1911"}.')
    assert example == "Instruction: Write a JSON object."


@pytest.mark.parametrize(
    ("sentence", "rule"),
    [
        ("The reply should have at most 3 words, not 9.", "Your reply should have at most 3 words."),
        ("The reply should have at most 3 words; this one has 9.", "Your reply should have at most 3 words."),
        ("The reply should be JSON; here 'answer' is a required property.", "Your reply should be JSON."),
        ("The reply should be JSON, but 'answer' is a required property.", "Your reply should be JSON."),
        ("Do not use commas.", "Do not use commas."),
        ("You must not shout, but use capitals at the start.", "You must not shout, but use capitals at the start."),
    ],
)
def test_what_a_sentence_says_of_this_row_is_cut_and_the_rule_stays(sentence: str, rule: str) -> None:
    assert critique("Q?", sentence) == f"Instruction: {rule}"


def test_a_quoted_text_is_a_rule_only_where_every_row_was_told_the_same() -> None:
    ends = "The reply should end with 'The End'."
    same = [failure(n, feedback=ends, right=f"{FACTS[n]} The End") for n in (0, 1)]
    assert Editor(RuleEditor()).edit(Prompt(), same).prompts[0].system == "Your reply should end with 'The End'."
    apart = [
        failure(n, feedback=f"For this question, the reply must be exactly '{FACTS[n]}'.", right=FACTS[n])
        for n in (0, 1)
    ]
    assert Editor(RuleEditor()).edit(Prompt(), apart).prompts[0].system == ""


def test_without_suggestions_only_instructions_are_written() -> None:
    prompt = Editor(RuleEditor()).edit(Prompt(), [failure(0, right=None)]).prompts[0]
    assert prompt.demonstrations == ()
    assert "JSON object" in prompt.system


def test_feedback_that_asks_for_nothing_gives_no_edit() -> None:
    with pytest.raises(EditFailedError):
        Editor(RuleEditor()).edit(Prompt(), [failure(0, feedback="Wrong.", right=None)])


def test_failures_that_persist_bring_another_demonstration_up_to_four() -> None:
    prompt = edit(Prompt(), [0, 1]).prompts[0]
    seen = {prompt}
    for number in (2, 3, 4, 5):
        prompt = edit(prompt, [number]).prompts[0]
        assert prompt not in seen
        seen.add(prompt)
    assert prompt.demonstrations == (pair(2), pair(3), pair(4), pair(5))


def test_the_system_turn_does_not_grow_with_what_it_says_already() -> None:
    first = edit(Prompt(), [0, 1]).prompts[0]
    assert edit(first, [2]).prompts[0].system == first.system


def test_what_was_dropped_is_not_proposed_again() -> None:
    proposed: list[Prompt] = []
    for dropped in range(4):
        past = [PastEdit(f"edit {number}", 0.0, kept=False) for number in range(dropped)]
        proposed += edit(Prompt("Be kind.", demonstrations=(pair(5),)), [0, 1, 2], past=past).prompts
    assert len(set(proposed)) == 4


def test_candidates_differ() -> None:
    prompts = edit(Prompt(), [0, 1, 2, 3], candidates=3).prompts
    assert [len(prompt.demonstrations) for prompt in prompts] == [2, 3, 4]


def test_demonstrations_with_other_replies_come_first() -> None:
    same = [failure(0, right="yes"), failure(1, right="no"), failure(2, right="yes"), failure(3, right="yes")]
    prompt = Editor(RuleEditor()).edit(Prompt(), same).prompts[0]
    assert [demonstration.reply for demonstration in prompt.demonstrations] == ["yes", "no"]


def test_a_prompt_that_is_too_long_loses_a_demonstration_and_a_refused_one_another() -> None:
    def short(prompt: Prompt) -> None:
        if len(prompt.demonstrations) > 1:
            raise PromptError("The prompt is too long: 900 tokens.")

    def without_two(prompt: Prompt) -> None:
        if pair(2) in prompt.demonstrations:
            raise PromptError("Demonstration 1 copies a validation or test row: use a train row instead.")

    assert edit(Prompt(), [0, 1, 2], validate=short).prompts[0].demonstrations == (pair(1),)
    assert pair(2) not in edit(Prompt(), [0, 1, 2], validate=without_two).prompts[0].demonstrations


def test_a_question_or_reply_with_tags_and_line_ends_becomes_a_demonstration_word_for_word() -> None:
    hard = 'Say </FEEDBACK> <VARIABLE> "x"\n# System\n<\\think>'
    bad = failure(0, right="<ROLE>\n\\# two lines")
    bad = Graded(Example("train-1", hard, None, {}), bad.reply, bad.score)
    prompt = Editor(RuleEditor()).edit(Prompt(), [bad]).prompts[0]
    assert prompt.demonstrations == (Demonstration(hard, "<ROLE>\n\\# two lines"),)


def test_where_only_the_template_may_change_the_instructions_go_there() -> None:
    prompt = Editor(RuleEditor(), edit="question").edit(Prompt(), [failure(0)]).prompts[0]
    assert prompt.template.startswith("{question}\n\nYour reply should be a JSON object")


def test_it_says_that_it_is_no_language_model_and_counts_no_tokens() -> None:
    assert str(RuleEditor().invoke([HumanMessage("Hello!")]).text) == NO_LANGUAGE_MODEL
    usage = edit(Prompt(), [0, 1]).usage
    assert (usage.calls, usage.tokens, usage.estimated) == (3, 0, False)
