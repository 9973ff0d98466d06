"""The embedded editor: a chat model that is no language model.

It knows TextGrad's two prompts and nothing else. Asked for a critique, it repeats what the feedback says: the sentences
that ask for something, and the reply that would be right where the feedback shows one. Asked for a new document, it
writes those sentences into the system turn and those replies as demonstrations. It invents nothing, understands
nothing, needs no network, and gives the same answer to the same request. Demonstrations are what helps: measured on
SmolLM2-135M-Instruct, a format asked for in words is obeyed in 0-8 % of replies, after two demonstrations in 100 %.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult

from nslora.tools.editor.call_log import TOKENS_ARE_EXACT
from nslora.tools.editor.failures_view import ALTERNATIVE_PREFIX, CLIPPED, PAST_PREFIX
from nslora.tools.editor.textual_gradients import CLOSE, OPEN, neutralise, restore
from nslora.tools.errors import PromptError
from nslora.tools.prompt import PLACEHOLDER, TEMPLATE, Demonstration, Prompt, normalise, parse
from nslora.tools.rewards.reward import SUGGESTION_PREFIX

BACKWARD_MARK = "You are the gradient (feedback) engine"
FIRST_DEMONSTRATIONS, MOST_DEMONSTRATIONS = 2, 4
MOST_INSTRUCTIONS = 6
INSTRUCTION, DEMONSTRATION = "Instruction: ", "Demonstration: "
PERHAPS = "Instruction, unless it is about this row: "
NO_LANGUAGE_MODEL = "I am the embedded rule editor and no language model: I can only answer TextGrad's own prompts."

# A sentence that asks for something, as opposed to one that only says what was wrong in this row.
_ASKS = re.compile(
    r"\b(?:should|must|has to|have to|needs? to|only|always|never)\b"
    r"|^(?:reply|answer|write|use|begin|start|end|give|return|put|keep|wrap|include|avoid|respond|do not|don't)\b",
    re.IGNORECASE,
)
# Where a sentence leaves the rule and speaks of this row: what was found instead, or an example.
_THIS_ROW = re.compile(
    r", not (?=['\"“\d][^,]*$)|, but (?=.*(?:['\"“\d]|\b(?:is|are|was|has|found|got)\b))"
    r"|,? (?:such as|for example|for instance|e\.g\.),? ",
    re.IGNORECASE,
)


class RuleEditor(BaseChatModel):
    """Deterministic, stateless, offline; see the module's docstring for what it is not."""

    @property
    def _llm_type(self) -> str:
        return "rules"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        # No tokenizer is at work here, so there are no tokens to count.
        usage = UsageMetadata(input_tokens=0, output_tokens=0, total_tokens=0)
        message = AIMessage(answer(messages), usage_metadata=usage, response_metadata={TOKENS_ARE_EXACT: True})
        return ChatResult(generations=[ChatGeneration(message=message)])


def answer(messages: Sequence[BaseMessage]) -> str:
    """The reply to one of TextGrad's prompts."""
    texts = {kind: [str(m.text) for m in messages if m.type == kind] for kind in ("system", "human", "ai")}
    request = next(iter(texts["human"]), "")
    if any(BACKWARD_MARK in text for text in texts["system"]):
        return critique(_between(request, "<LM_INPUT>", "</LM_INPUT>"), _objective(request))
    if "<VARIABLE>" in request and "<CONTEXT>" in request:
        return OPEN + "\n" + improve(request, texts["human"][1:]) + CLOSE
    return NO_LANGUAGE_MODEL


def critique(question: str, feedback: str) -> str:
    """What the feedback asks for, one line each: instructions, then the pair of question and right reply.

    Pairs are written as JSON without `<`, so that they pass through TextGrad's tags unharmed.
    """
    said, _, suggestion = feedback.partition(SUGGESTION_PREFIX.strip())
    lines = [(PERHAPS if _quotes(sentence, suggestion) else INSTRUCTION) + sentence for sentence in _instructions(said)]
    if suggestion.strip() and CLIPPED not in question:
        pair = {"question": restore(question), "reply": restore(suggestion.strip())}
        lines.append(DEMONSTRATION + json.dumps(pair, ensure_ascii=False).replace("<", "\\u003c"))
    return "\n".join(lines) or "The feedback asks for nothing that could be written down as a rule."


def improve(request: str, corrections: Sequence[str]) -> str:
    """The new document (neutralised) for TextGrad's optimizer prompt and what was wrong with earlier answers to it."""
    before, _, after = request.partition("<CONTEXT>")
    value = restore(_between(before, "<VARIABLE>", "</VARIABLE>"))
    context, _, rest = after.partition("</CONTEXT>")
    context = re.sub(r"<CONVERSATION>.*?</CONVERSATION>", "", context, flags=re.DOTALL)
    found = _Found.read(re.findall(r"<FEEDBACK>(.*?)</FEEDBACK>", context, flags=re.DOTALL))
    try:
        old = parse(value)
    except PromptError:  # a variable of somebody else's TextGrad graph
        return neutralise("\n".join([value, *found.instructions]))
    if f'Change only "# {TEMPLATE}"' in rest:
        return neutralise(replace(old, template=_with_instructions(old.template, found.instructions)).render())
    dropped = len(re.findall(rf"{re.escape(PAST_PREFIX)}[^\n]*was dropped\.", rest))
    alternative = re.search(rf"{re.escape(ALTERNATIVE_PREFIX)} (\d+)", rest)
    tried = dropped + len(corrections)
    too_long = sum("too long" in text for text in corrections)
    demonstrations = _demonstrations(
        old.demonstrations, found.pairs, tried, more=int(alternative[1]) - 1 if alternative else 0
    )
    demonstrations = demonstrations[: max(0, len(demonstrations) - too_long)] if too_long else demonstrations
    system = _with_instructions(old.system, found.instructions)
    return neutralise(Prompt(system, old.template, tuple(demonstrations)).render())


@dataclass(frozen=True)
class _Found:
    """What the critiques hold: instructions by how often they are given, pairs with the newest first."""

    instructions: tuple[str, ...]
    pairs: tuple[Demonstration, ...]

    @classmethod
    def read(cls, critiques: Sequence[str]) -> _Found:
        count: Counter[str] = Counter()
        quoting: Counter[str] = Counter()
        pairs: list[Demonstration] = []
        for text in critiques:
            lines = [line.strip() for line in text.strip().split("\n")]
            marked = any(line.startswith((INSTRUCTION, PERHAPS, DEMONSTRATION)) for line in lines)
            count.update(_marked(lines, INSTRUCTION) if marked else _instructions(text))
            quoting.update(_marked(lines, PERHAPS))
            pairs += [pair for line in _marked(lines, DEMONSTRATION) for pair in _pair(line)]
        # What only one row of several was told is likely to hold for that row only.
        shared = [sentence for sentence, times in count.items() if times > 1 or len(critiques) < 3] or list(count)
        if len({pair.reply for pair in pairs}) > 1:
            shared += [sentence for sentence, times in quoting.items() if times == len(critiques)]
        return cls(tuple(shared)[:MOST_INSTRUCTIONS], tuple(dict.fromkeys(reversed(pairs))))


def _demonstrations(
    old: Sequence[Demonstration], pairs: Sequence[Demonstration], tried: int, more: int
) -> list[Demonstration]:
    """The demonstrations of the new document; other ones, or in another order, each time that something was tried.

    None yet: two with different replies. Some: one more while there is room and adding was not what was just dropped,
    otherwise the oldest gives way.
    """
    known = {normalise(demonstration.question) for demonstration in old}
    fresh = _varied([pair for pair in pairs if normalise(pair.question) not in known])
    if not fresh:
        turn = (1 + tried + more) % len(old) if old else 0
        return [*old[turn:], *old[:turn]]
    fresh = [*fresh[tried % len(fresh) :], *fresh[: tried % len(fresh)]]
    if not old:
        return fresh[: min(MOST_DEMONSTRATIONS, FIRST_DEMONSTRATIONS + more + tried // 2)]
    adds = len(old) < MOST_DEMONSTRATIONS and tried % 2 == 0
    new = fresh[: 1 + more]
    kept = list(old) if adds else list(old[len(new) :])
    return [*kept, *new][-MOST_DEMONSTRATIONS:]


def _varied(pairs: Sequence[Demonstration]) -> list[Demonstration]:
    """One pair per question; those whose replies differ in their words come first."""
    by_question = list({normalise(pair.question): pair for pair in reversed(pairs)}.values())[::-1]
    chosen: list[Demonstration] = []
    later: list[Demonstration] = []
    for pair in by_question:
        same = any(normalise(pair.reply) == normalise(known.reply) for known in chosen)
        (later if same else chosen).append(pair)
    return [*chosen, *later]


def _instructions(feedback: str) -> list[str]:
    """The sentences that ask for something, without what they say of this row only."""
    found = []
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n+", feedback.strip()):
        rule = _THIS_ROW.split(sentence.strip(), maxsplit=1)[0].rstrip(" .:;,")
        if rule and _ASKS.search(rule):
            found.append(restore(re.sub(r"^the reply\b", "Your reply", rule, flags=re.IGNORECASE)) + ".")
    return list(dict.fromkeys(found))


def _quotes(rule: str, suggestion: str) -> bool:
    """Whether the sentence quotes a text of this row's right reply, which may be the answer itself."""
    quoted = re.findall(r"'([^']+)'|\"([^\"]+)\"|“([^”]+)”", rule)
    texts = [normalise(text) for group in quoted for text in group if text]
    return any(text and f" {text} " in f" {normalise(suggestion)} " for text in texts)


def _marked(lines: Sequence[str], mark: str) -> list[str]:
    return [line.removeprefix(mark) for line in lines if line.startswith(mark)]


def _with_instructions(text: str, instructions: Sequence[str]) -> str:
    known = normalise(text)
    new = [sentence for sentence in instructions if normalise(sentence) not in known]
    if not new:
        return text
    apart = "\n\n" if PLACEHOLDER in text else "\n"
    return apart.join(part for part in (text, " ".join(new)) if part)


def _pair(line: str) -> list[Demonstration]:
    try:
        row = json.loads(line)
        return [Demonstration(str(row["question"]), str(row["reply"]))]
    except (ValueError, KeyError, TypeError):
        return []  # a line of somebody else's critique that only looks like one of ours


def _objective(request: str) -> str:
    objective = _between(request, "<OBJECTIVE_FUNCTION>", "</OBJECTIVE_FUNCTION>")
    return objective.partition("following feedback on the LM_OUTPUT: ")[2] or objective


def _between(text: str, start: str, end: str) -> str:
    """The text between two tags, without the blanks that TextGrad sets around it."""
    return text.partition(start)[2].partition(end)[0].strip()
