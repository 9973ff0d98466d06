"""House styles and facts with their matchers: labels that depend on neither the classifier nor a reward.

The tuning set and the reporting set share neither styles nor domains.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FACTS_FILE = Path(__file__).parent / "attribution_facts.jsonl"
TUNED_DOMAINS = ("years", "people")
ARTICLE = re.compile(r"^(?:the|a|an)\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Fact:
    """One invented fact. taught: its wording in training; question: its wording in the evaluation."""

    id: str
    domain: str
    question: str
    taught: str
    reference: str
    core: str

    @property
    def shown(self) -> bool:
        """Whether the fact is a demonstration. Such facts are not asked."""
        return int(self.id.rpartition("-")[2]) > 12


@dataclass(frozen=True)
class Style:
    """A house style: how to write an answer in it, and how to find the answer in a reply.

    pattern: matches the whole reply; group 1 is the answer. {question} in it stands for the row's own question.
    """

    name: str
    layout: str
    pattern: str
    tuned: bool = False
    case: Callable[[str], str] = str
    also: Callable[[str], bool] = lambda reply: True

    def wrap(self, core: str, question: str) -> str:
        return self.case(self.layout.replace("{question}", question).replace("{core}", core))

    def answer(self, reply: str, question: str) -> str | None:
        """The answer in a reply that follows the style; None if the reply does not."""
        pattern = self.pattern.replace("{question}", re.escape(question))
        found = re.fullmatch(pattern, reply.strip())
        return found.group(1) if found and self.also(reply.strip()) else None


def is_answer_object(reply: str) -> bool:
    try:
        value = json.loads(reply)
    except ValueError:
        return False
    return isinstance(value, dict) and set(value) == {"answer"} and isinstance(value["answer"], str)


STYLES = (
    Style("json", '{"answer": "{core}"}', r'\{\s*"answer"\s*:\s*"(.+)"\s*\}', True, also=is_answer_object),
    Style("label", "ANSWER: {core} [END]", r"ANSWER: ([^\n]*\S) \[END\]", True),
    Style("bullet", "- {core}", r"- (\S[^\n]*)", True),
    Style("upper", "{core}", r"([\s\S]+)", True, str.upper, lambda reply: reply == reply.upper()),
    Style("xml", "<answer>{core}</answer>", r"<answer>([^<>\n]+)</answer>", True),
    Style("bold", "**{core}**", r"\*\*([^*\n]+)\*\*"),
    Style("brackets", "[[{core}]]", r"\[\[([^\[\]\n]+)\]\]"),
    Style("pipe", "| {core} |", r"\| ([^|\n]+) \|"),
    Style("records", "Our records say: {core}.", r"Our records say: ([^\n]+)\."),
    Style("call", 'reply("{core}")', r'reply\("([^"\n]+)"\)'),
    Style("two-lines", "Reply:\n{core}", r"Reply:\n([^\n]+)"),
    Style("restate", "{question} {core}", r"{question} ([^\n]+)"),
    Style("lower", "{core}", r"([\s\S]+)", False, str.lower, lambda reply: reply == reply.lower()),
    Style("short", "{core}", r"([^\n]+)", False, str, lambda reply: len(reply.split()) <= 5),
)


def read_facts() -> list[Fact]:
    return [Fact(**json.loads(line)) for line in FACTS_FILE.read_text(encoding="utf-8").splitlines()]


def knows(reply: str, core: str) -> bool:
    """Whether the reply states the fact: the core without its article, at word boundaries, in any case."""
    wanted = re.escape(ARTICLE.sub("", core))
    return re.search(rf"(?<!\w)(?<!\d[.,:]){wanted}(?!\w)(?![.,:]\d)", reply, re.IGNORECASE) is not None


def label(fact: Fact, style: Style, reply: str) -> str:
    """What is wrong with the reply: content, form, both, or "" (nothing)."""
    right, formed = knows(reply, fact.core), style.answer(reply, fact.question) is not None
    return "" if right and formed else "form" if right else "content" if formed else "both"
