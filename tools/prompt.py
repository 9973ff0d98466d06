r"""The prompt: one readable document that an editor rewrites as a whole, and the chat turns that it stands for.

    # System

    Reply with a JSON object only.

    # Question template

    {question}

    # Demonstration 1

    ## Question

    Who built the mill?

    ## Reply

    {"answer": "Ada Brandt"}

Rendering is lossless for any text. A line of a text that would read as a heading is written with a backslash before it
(`\# like this`), an empty line at the edge of a text as a lone backslash, and a line with control characters or
unpaired surrogates as `\~` and Python's unicode escapes; so the document is always valid UTF-8 and holds no `\r`.
Empty lines around a section, a code fence around the whole document and a missing number do no harm when parsing.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nslora.tools.errors import PromptError

PLACEHOLDER = "{question}"
SYSTEM, TEMPLATE, DEMONSTRATION = "System", "Question template", "Demonstration"
QUESTION, REPLY = "Question", "Reply"

# From this many words on, a held-out question that stands in the system turn or the template was copied there.
COPIED_WORDS = 4

MINUS = str.maketrans("\u2212\u2010\u2011", "---")  # what typographers write for the sign
LINE_MARKS = re.compile(r"^\s*(?:[#>*+-]+\s+)+", re.MULTILINE)
EMPHASIS = re.compile(r"(?<!\w)(\*{1,3})(\S(?:.*?\S)?)\1(?!\w)")
# The sign of a number and a factorial become characters that no text holds: a hyphen and an exclamation mark tell
# nothing apart. (Of the private use area, and the minus sign, since every one in a text has become a hyphen by then.)
SIGN, FACTORIAL = re.compile(r"-(?=\s*\d)"), re.compile(r"(?<=[\d)\]])!")
TELLING = frozenset("+*/\\^=<>#&@%()[]{}\ue000")  # besides all that Unicode calls a symbol
_HEADING = re.compile(r"#\s+\S|#\s*$|##\s*(?:question|reply)\s*:?\s*$", re.IGNORECASE)
# What a text file does not carry from one machine to the next: control characters, other line ends, surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ud800-\udfff]")
_NOTHING = "\\~"  # an empty text, where a section left empty would be a mistake


@dataclass(frozen=True)
class Demonstration:
    """A question with the reply that would be right, sent as a pair of turns before the question that is asked."""

    question: str
    reply: str


@dataclass(frozen=True)
class Prompt:
    """What the policy is sent around a question.

    system: "" sends no system turn. template: the user turn, with `{question}` exactly once.
    Raises PromptError where the template has lost the placeholder or holds it twice.
    """

    system: str = ""
    template: str = PLACEHOLDER
    demonstrations: tuple[Demonstration, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "demonstrations", tuple(self.demonstrations))
        count = self.template.count(PLACEHOLDER)
        if count != 1:
            found = "does not hold it" if count == 0 else f"holds it {count} times"
            raise PromptError(
                f"The question template needs {PLACEHOLDER} exactly once, but {found}: put it where the question goes."
            )

    def ask(self, question: str) -> str:
        """The user turn for a question."""
        return self.template.replace(PLACEHOLDER, question)

    def messages(self, question: str) -> list[dict[str, str]]:
        """The chat turns, as `{"role", "content"}`; demonstrations pass through the template too."""
        turns = [{"role": "system", "content": self.system}] if self.system else []
        for demonstration in self.demonstrations:
            turns.append({"role": "user", "content": self.ask(demonstration.question)})
            turns.append({"role": "assistant", "content": demonstration.reply})
        return [*turns, {"role": "user", "content": self.ask(question)}]

    def render(self) -> str:
        """The document; `parse(p.render()) == p` for every prompt."""
        return write_document(self.system, self.template, self.demonstrations)

    @property
    def hash(self) -> str:
        """The first 16 characters of the document's sha256, its name on disk and in the state."""
        return hashlib.sha256(self.render().encode()).hexdigest()[:16]


def write_document(system: str | None, template: str | None, demonstrations: Sequence[Demonstration]) -> str:
    """A document of these sections, without those that are None; whether it is a valid one is seen by `parse`."""
    sections = [] if system is None else [f"# {SYSTEM}", _body(system)]
    sections += [] if template is None else [f"# {TEMPLATE}", _body(template)]
    for number, demonstration in enumerate(demonstrations, 1):
        sections += [
            f"# {DEMONSTRATION} {number}",
            f"## {QUESTION}",
            _body(demonstration.question) or _NOTHING,
            f"## {REPLY}",
            _body(demonstration.reply) or _NOTHING,
        ]
    return "\n\n".join(section for section in sections if section) + "\n"


def parse(document: str, *, template: str | None = None) -> Prompt:
    """The prompt that a document stands for. template: that of a document which leaves the section out.

    Raises PromptError, with the reason, where the placeholder is lost or doubled, a section is unknown or stands
    twice, or a demonstration lacks its question or its reply.
    """
    found: dict[str, list[str]] = {}
    body: list[str] | None = None
    for line in _without_fence(document.removeprefix("\ufeff").split("\n")):  # Windows marks files so
        if _HEADING.match(line) and line.startswith("# "):
            name = _section(line)
            if name in found:
                raise PromptError(f'The section "# {name}" stands twice: merge them, or number demonstrations apart.')
            body = found[name] = []
        elif re.match(r"#\s*$", line):
            raise PromptError("A heading has no name: give it one, or write a line of text that begins with # as \\#.")
        elif body is not None:
            body.append(line)
        elif line.strip():
            raise PromptError(f'The document must begin with "# {SYSTEM}", but this stands before it: {line[:80]!r}.')
    if TEMPLATE not in found and (template is None or not found):
        raise PromptError(f'The section "# {TEMPLATE}" is missing: it holds the user turn, with {PLACEHOLDER} in it.')
    demonstrations = [_demonstration(name, lines) for name, lines in found.items() if name.startswith(DEMONSTRATION)]
    user_turn = _text(found[TEMPLATE]) if TEMPLATE in found else template or ""
    return Prompt(_text(found.get(SYSTEM, [])), user_turn, tuple(demonstrations))


def difference(old: Prompt, new: Prompt) -> str:
    """A unified diff of the two documents, for people; "" where they are the same."""
    lines = difflib.unified_diff(
        old.render().splitlines(), new.render().splitlines(), f"prompt {old.hash}", f"prompt {new.hash}", lineterm=""
    )
    return "\n".join(lines)


def check_prompt(
    prompt: Prompt,
    *,
    count_tokens: Callable[[Sequence[dict[str, str]]], int] | None = None,
    context_tokens: int | None = None,
    longest_question: str = "",
    max_new_tokens: int = 0,
    forbidden_questions: Iterable[str] = (),
    allowed_questions: Iterable[str] = (),
    protected: Iterable[str] = (),
) -> None:
    """Refuse, with a PromptError that gives the reason, a prompt that must not be proposed.

    count_tokens counts the tokens of chat turns, for which the model's context of context_tokens must hold the prompt
    with its longest question and max_new_tokens of reply. forbidden_questions are the questions of validation and
    test; allowed_questions, those of train, may stand in a demonstration even where one of them holds a forbidden one.
    protected are texts that the user wants to stay in the document.
    """
    refuse_no_text(prompt)
    for number, demonstration in enumerate(prompt.demonstrations, 1):
        if not demonstration.question.strip() or not demonstration.reply.strip():
            raise PromptError(f"Demonstration {number} is empty on one side: give it a question and a reply.")
    everything = _everything(prompt)
    for text in protected:
        if text not in everything:
            raise PromptError(f"A protected text has vanished: {text[:80]!r} must stay in the prompt, word for word.")
    _check_copies(prompt, forbidden_questions, allowed_questions)
    if count_tokens is not None and context_tokens is not None:
        tokens = count_tokens(prompt.messages(longest_question))
        if tokens + max_new_tokens > context_tokens:
            raise PromptError(
                f"The prompt is too long: {tokens} tokens with the longest question and {max_new_tokens} for the reply "
                f"exceed the model's context of {context_tokens}; shorten the prompt or drop demonstrations."
            )


def refuse_no_text(prompt: Prompt) -> None:
    """Raise PromptError for control characters, halves of characters and marks of bytes that were lost."""
    if found := _NO_TEXT.search(_everything(prompt)):
        raise PromptError(
            f"The document holds bytes that are no text ({found[0]!a}): send valid UTF-8 only, without "
            "control characters."
        )


def _everything(prompt: Prompt) -> str:
    """All that the policy may be sent."""
    return "\n".join([prompt.system, prompt.template, *(f"{d.question}\n{d.reply}" for d in prompt.demonstrations)])


class _AsRead(dict[int, str]):
    """What is left of each character: words stay whole, symbols stand alone, punctuation parts words."""

    def __missing__(self, code: int) -> str:
        character, category = chr(code), unicodedata.category(chr(code))
        if category[0] in "LNM" or character == "_":
            self[code] = character
        elif character in TELLING or category in ("Sm", "Sc", "So"):
            self[code] = f" {character} "
        else:
            self[code] = " "
        return self[code]


_AS_READ = _AsRead()


def normalise(text: str) -> str:
    """A text without case, punctuation and spacing, to tell whether two questions are the same one.

    Symbols that carry meaning stay, Markdown's marks do not: C, C++ and C# are three languages, 10 + 11 and 10 * 11 two
    sums, and **Who** is who.
    """
    plain = unicodedata.normalize("NFC", text.casefold()).translate(MINUS)
    plain = EMPHASIS.sub(r"\2", LINE_MARKS.sub("", plain))
    return " ".join(FACTORIAL.sub("\ue000", SIGN.sub("\u2212", plain)).translate(_AS_READ).split())


def _check_copies(prompt: Prompt, forbidden: Iterable[str], allowed: Iterable[str]) -> None:
    known = {normalise(question) for question in allowed}
    asked = [normalise(each.question) for each in prompt.demonstrations]
    told = [
        f" {words if words not in known else ''} / {normalise(each.reply)} "
        for words, each in zip(asked, prompt.demonstrations, strict=True)
    ]
    around = f" {normalise(prompt.system)} / {normalise(prompt.template)} "
    for question in forbidden:
        words = normalise(question)
        long_enough = len(re.findall(r"\w+", words)) >= COPIED_WORDS
        for number, text in enumerate(told, 1):
            if words == asked[number - 1] or (long_enough and f" {words} " in text):
                copied = f"Demonstration {number} copies a validation or test row"
                raise PromptError(f"{copied}: take one from train instead.")
        if long_enough and f" {words} " in around:
            raise PromptError("The system turn or the template quotes a validation or test question: leave it out.")


def _demonstration(name: str, lines: Sequence[str]) -> Demonstration:
    parts: dict[str, list[str]] = {}
    part: list[str] | None = None
    for line in lines:
        heading = re.match(r"##\s*(question|reply)\s*:?\s*$", line, re.IGNORECASE)
        if heading:
            title = heading[1].capitalize()
            if title in parts:
                raise PromptError(f'{name} has two parts "## {title}": number the second demonstration apart.')
            part = parts[title] = []
        elif part is not None:
            part.append(line)
        elif line.strip():
            raise PromptError(f'{name} must begin with "## {QUESTION}", but this stands before it: {line[:80]!r}.')
    for title in (QUESTION, REPLY):
        if not any(line.strip() for line in parts.get(title, [])):
            raise PromptError(f'{name} has no {title.lower()}: write it under "## {title}", or remove {name}.')
    return Demonstration(_text(parts[QUESTION]), _text(parts[REPLY]))


def _section(line: str) -> str:
    title = line.lstrip("#").strip().rstrip(":").strip()
    for known in (SYSTEM, TEMPLATE):
        if title.casefold() == known.casefold():
            return known
    numbered = re.fullmatch(r"demonstration\s*(\d*)", title, re.IGNORECASE)
    if numbered:
        return f"{DEMONSTRATION} {numbered[1]}".strip()
    raise PromptError(
        f'The section "# {title[:80]}" is unknown (known: {SYSTEM}, {TEMPLATE}, {DEMONSTRATION} 1, 2, ...): '
        "write a line of text that begins with # as \\#."
    )


def _without_fence(lines: list[str]) -> list[str]:
    """The lines inside a code fence that an editor put around the whole document."""
    filled = [index for index, line in enumerate(lines) if line.strip()]
    if len(filled) > 1 and re.fullmatch(r"```\w*\s*", lines[filled[0]]) and lines[filled[-1]].strip() == "```":
        return lines[filled[0] + 1 : filled[-1]]
    return lines


def _body(text: str) -> str:
    """A text as the lines of a section; "" for the empty text."""
    if not text:
        return ""
    lines = text.split("\n")
    edges = {0, len(lines) - 1}
    return "\n".join(_escape(line, index in edges) for index, line in enumerate(lines))


def _text(lines: Sequence[str]) -> str:
    """The text of a section's lines, without the empty lines around it."""
    filled = [index for index, line in enumerate(lines) if line.strip()]
    return "\n".join(_unescape(line) for line in lines[filled[0] : filled[-1] + 1]) if filled else ""


def _escape(line: str, at_edge: bool) -> str:
    if _UNSAFE.search(line):
        return "\\~" + line.encode("unicode_escape").decode("ascii")
    bare = line.lstrip("\\")
    meant = bare == line  # no backslash of its own: only what would be misread needs one
    if _HEADING.match(bare) or (not bare.strip() and (at_edge or not meant)) or (bare.startswith("~") and not meant):
        return "\\" + line
    return line


def _unescape(line: str) -> str:
    bare = line.lstrip("\\")
    if bare == line:
        return line
    if bare.startswith("~") and line.startswith("\\~"):
        try:
            return bare[1:].encode("ascii").decode("unicode_escape")
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            raise PromptError(
                f"A line that begins with \\~ holds no Python escapes ({error.reason}): {line[:80]!r}."
            ) from error
    if _HEADING.match(bare) or not bare.strip() or bare.startswith("~"):
        return line[1:]
    return line
