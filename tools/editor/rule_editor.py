"""The embedded editor "rules": deterministic rules behind the interface of a chat model; it is no language model.

It recognises TextGrad's two requests and nothing else. Asked for a critique, it repeats what the feedback asks for,
and the suggested reply, if the feedback has one. Asked for a new document, it writes those sentences into the system
turn and those replies as demonstrations. It adds nothing of its own, needs no network and gives the same answer to the
same request. Most of the effect comes from demonstrations: SmolLM2-135M-Instruct followed a format that was asked for
in words in 0-8 % of replies, and after two demonstrations in 100 %.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from langchain_core.messages import AIMessage, BaseMessage

from nslora.tools.editor.failures_view import ALTERNATIVE_PREFIX, CLIPPED, PAST_PREFIX
from nslora.tools.editor.local_chat import TOKENS_ARE_EXACT, LocalChat, tokens_used
from nslora.tools.editor.textual_gradients import CLOSE, OPEN, REWARD_SAYS, neutralise, restore
from nslora.tools.errors import PromptError
from nslora.tools.prompt import PLACEHOLDER, TEMPLATE, Demonstration, normalise, parse
from nslora.tools.rewards.checks import ROW_PREFIX
from nslora.tools.rewards.reward import SUGGESTION_PREFIX

BACKWARD_MARK = "You are the gradient (feedback) engine"
FIRST_DEMONSTRATIONS, MOST_DEMONSTRATIONS = 2, 4
MOST_INSTRUCTIONS = 6
# How the lines of a critique begin.
INSTRUCTION, DEMONSTRATION = "Instruction: ", "Demonstration: "
PERHAPS = "Instruction, unless it is about this row: "
NO_LANGUAGE_MODEL = "I am the embedded rule editor and no language model: I can only answer TextGrad's own prompts."

# A sentence that asks for something; other sentences only say what was wrong in this row.
_ASKS = re.compile(
    r"\b(?:should|must|has to|have to|needs? to|only|always|never)\b"
    r"|^(?:reply|answer|write|use|begin|start|end|give|return|put|keep|wrap|include|avoid|respond|do not|don't)\b",
    re.IGNORECASE,
)
# After this, a sentence is about this row only: what was found instead, or an example.
_THIS_ROW = re.compile(
    r"; (?:this one|here) |, not (?=['\"“\d][^,]*$)|, but (?=.*(?:['\"“\d]|\b(?:is|are|was|has|found|got)\b))"
    r"|,? (?:such as|for example|for instance|e\.g\.),? ",
    re.IGNORECASE,
)


class RuleEditor(LocalChat):
    """A deterministic, stateless chat model that needs no network; the module's docstring says what it cannot do."""

    @property
    def _llm_type(self) -> str:
        return "rules"

    def reply_to(self, messages: list[BaseMessage], stop: Sequence[str]) -> AIMessage:
        """Answer one of TextGrad's requests; without a tokenizer, there are no tokens to count."""
        return AIMessage(answer(messages), usage_metadata=tokens_used(0, 0), response_metadata={TOKENS_ARE_EXACT: True})


def answer(messages: Sequence[BaseMessage]) -> str:
    """Answer one of TextGrad's two requests, with or without earlier corrections."""
    system = "\n".join(str(message.text) for message in messages if message.type == "system")
    request, *corrections = [str(message.text) for message in messages if message.type == "human"] or [""]
    if BACKWARD_MARK in system:
        objective = _between(request, "<OBJECTIVE_FUNCTION>", "</OBJECTIVE_FUNCTION>")
        feedback = objective.partition("following feedback on the LM_OUTPUT: ")[2] or objective
        return critique(_between(request, "<LM_INPUT>", "</LM_INPUT>"), feedback)
    if "<VARIABLE>" in request and "<CONTEXT>" in request:
        return OPEN + "\n" + neutralise(improve(request, corrections)) + CLOSE
    return NO_LANGUAGE_MODEL


def critique(question: str, feedback: str) -> str:
    """List what the feedback asks for, one line each: instructions, then the question with the suggested reply.

    The pair is JSON without `<`, so that `neutralise` leaves it unchanged.

    Args:
        question: The question that was answered wrongly, neutralised.
        feedback: The reward's feedback, with a suggested reply after SUGGESTION_PREFIX if there is one.
    """
    said, _, suggestion = feedback.partition(SUGGESTION_PREFIX.strip())
    lines = [(PERHAPS if _quotes(sentence, suggestion) else INSTRUCTION) + sentence for sentence in _instructions(said)]
    if suggestion.strip() and CLIPPED not in question:
        pair = {"question": restore(question), "reply": restore(suggestion.strip())}
        lines.append(DEMONSTRATION + json.dumps(pair, ensure_ascii=False).replace("<", "\\u003c"))
    return "\n".join(lines) or "The feedback asks for nothing that could be written down as a rule."


def improve(request: str, corrections: Sequence[str]) -> str:
    """Write the new document.

    Args:
        request: TextGrad's optimizer request.
        corrections: What was wrong with earlier answers to it.
    """
    before, _, after = request.partition("<CONTEXT>")
    value = restore(_between(before, "<VARIABLE>", "</VARIABLE>"))
    context, _, rest = after.partition("</CONTEXT>")
    context = re.sub(r"<CONVERSATION>.*?</CONVERSATION>", "", context, flags=re.DOTALL)
    instructions, pairs = _read_critiques(re.findall(r"<FEEDBACK>(.*?)</FEEDBACK>", context, flags=re.DOTALL))
    try:
        old = parse(value)
    except PromptError:  # a variable of another program's TextGrad graph
        return "\n".join([value, *instructions])
    if f'Change only "# {TEMPLATE}"' in rest:
        return replace(old, template=_with_instructions(old.template, instructions)).render()
    tried = len(re.findall(rf"{re.escape(PAST_PREFIX)}[^\n]*was dropped\.", rest)) + len(corrections)
    alternative = re.search(rf"{re.escape(ALTERNATIVE_PREFIX)} (\d+)", rest)
    more = int(alternative[1]) - 1 if alternative else 0
    demonstrations = _demonstrations(old.demonstrations, pairs, tried, more)
    too_long = sum("too long" in text for text in corrections)
    kept = demonstrations[: max(0, len(demonstrations) - too_long)]
    return replace(old, system=_with_instructions(old.system, instructions), demonstrations=tuple(kept)).render()


def _read_critiques(critiques: Sequence[str]) -> tuple[list[str], list[Demonstration]]:
    """The instructions in the critiques, in order, and the pairs, the newest first."""
    count: Counter[str] = Counter()
    quoting: Counter[str] = Counter()
    pairs: list[Demonstration] = []
    for text in critiques:
        text = text.partition(REWARD_SAYS)[0]  # the critique has it already
        lines = [line.strip() for line in text.strip().split("\n")]
        marked = any(line.startswith((INSTRUCTION, PERHAPS, DEMONSTRATION)) for line in lines)
        count.update(_marked(lines, INSTRUCTION) if marked else _instructions(text))
        quoting.update(_marked(lines, PERHAPS))
        pairs += [pair for line in _marked(lines, DEMONSTRATION) for pair in _pair(line)]
    # An instruction that only one of several rows got probably holds for that row only.
    shared = [sentence for sentence, times in count.items() if times > 1 or len(critiques) < 3] or list(count)
    if len({pair.reply for pair in pairs}) > 1:
        shared += [sentence for sentence, times in quoting.items() if times == len(critiques)]
    return shared[:MOST_INSTRUCTIONS], list(dict.fromkeys(reversed(pairs)))


def _demonstrations(
    old: Sequence[Demonstration], pairs: Sequence[Demonstration], tried: int, more: int
) -> list[Demonstration]:
    """The demonstrations of the new document; others, or in another order, for each earlier attempt (`tried`).

    If there are none yet: two with different replies. Otherwise one more while there is room and adding was not what
    was just dropped; else the oldest is replaced. `more`: how many more than that an alternative has.
    """
    known = {normalise(demonstration.question) for demonstration in old}
    fresh = _varied([pair for pair in pairs if normalise(pair.question) not in known])
    if not fresh:
        turn = (1 + tried + more) % len(old) if old else 0
        return [*old[turn:], *old[:turn]]
    turn = tried % len(fresh)
    fresh = [*fresh[turn:], *fresh[:turn]]
    if not old:
        return fresh[: min(MOST_DEMONSTRATIONS, FIRST_DEMONSTRATIONS + more + tried // 2)]
    adds = len(old) < MOST_DEMONSTRATIONS and tried % 2 == 0
    new = fresh[: 1 + more]
    return [*(old if adds else old[len(new) :]), *new][-MOST_DEMONSTRATIONS:]


def _varied(pairs: Sequence[Demonstration]) -> list[Demonstration]:
    """One pair per question; the first pair of each different reply comes in front of the others."""
    by_question = list({normalise(pair.question): pair for pair in reversed(pairs)}.values())[::-1]
    first_of = {normalise(pair.reply): pair for pair in reversed(by_question)}
    return sorted(by_question, key=lambda pair: first_of[normalise(pair.reply)] is not pair)


def _instructions(feedback: str) -> list[str]:
    """The sentences that ask for something, without the part that is about this row only."""
    found = []
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n+", feedback.strip()):
        rule = _THIS_ROW.split(sentence.strip(), maxsplit=1)[0].rstrip(" .:;,")
        if rule and _ASKS.search(rule) and not rule.startswith(ROW_PREFIX):
            found.append(restore(re.sub(r"^the reply\b", "Your reply", rule, flags=re.IGNORECASE)) + ".")
    return list(dict.fromkeys(found))


def _quotes(rule: str, suggestion: str) -> bool:
    """Whether the sentence quotes part of this row's suggested reply; it may then give the answer away."""
    quoted = re.findall(r"'([^']+)'|\"([^\"]+)\"|“([^”]+)”", rule)
    texts = [normalise(text) for group in quoted for text in group if text]
    return any(text and f" {text} " in f" {normalise(suggestion)} " for text in texts)


def _marked(lines: Sequence[str], mark: str) -> list[str]:
    return [line.removeprefix(mark) for line in lines if line.startswith(mark)]


def _with_instructions(text: str, instructions: Sequence[str]) -> str:
    known = normalise(text)
    new = " ".join(sentence for sentence in instructions if normalise(sentence) not in known)
    apart = "\n\n" if PLACEHOLDER in text else "\n"
    return apart.join(part for part in (text, new) if part)


def _pair(line: str) -> list[Demonstration]:
    try:
        row = json.loads(line)
        return [Demonstration(str(row["question"]), str(row["reply"]))]
    except (ValueError, KeyError, TypeError):
        return []  # a line of another critic that only looks like ours


def _between(text: str, start: str, end: str) -> str:
    """The text between two tags, without the blanks that TextGrad puts around it."""
    return text.partition(start)[2].partition(end)[0].strip()
