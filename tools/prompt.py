r"""The prompt: a readable document that an editor rewrites as a whole, and the chat turns that it describes.

    # System

    Reply with a JSON object only.

    # Question template

    {question}

    # Demonstration 1

    ## Question

    Who built the mill?

    ## Reply

    {"answer": "Ada Brandt"}

A section with a name holds a text of its own, which is put in where the system turn or the question template says
`{section:NAME}`. An edit may neither change nor drop a section that is protected:

    # Section house-style (protected)

    Write dates as 1911-05-06.

Rendering is lossless for any text. A line that would parse as a heading gets a backslash in front (`\# like this`), an
empty line at the edge of a text becomes a lone backslash, and a line with control characters or unpaired surrogates
becomes `\~` and Python's unicode escapes. So the document is always valid UTF-8 and has no `\r`. The parser accepts
empty lines around a section, a code fence around the document, demonstrations without a number and any line ends.
Lines that begin with # inside a fenced code block are text, unless they are headings of this document.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import unicodedata
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nslora.tools.errors import PromptError
from nslora.tools.prompt_variables import check_system, check_variables
from nslora.tools.schema import Example, Message, Turns

PLACEHOLDER = "{question}"
SYSTEM, TEMPLATE, DEMONSTRATION, SECTION = "System", "Question template", "Demonstration", "Section"
QUESTION, REPLY = "Question", "Reply"

# A held-out question of at least this many words counts as copied if it appears in another text.
_COPIED_WORDS = 4

MINUS = str.maketrans("\u2212\u2010\u2011", "---")  # typographic minus sign and hyphens
_LINE_MARKS = re.compile(r"^\s*(?:[#>*+-]+\s+)+", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<!\w)(\*{1,3})(\S(?:.*?\S)?)\1(?!\w)")
# `normalise` drops hyphens and exclamation marks, but keeps the sign of a number and the factorial. It writes them as
# U+2212 and as U+E000 (private use), which no normalised text contains otherwise.
_SIGN, _FACTORIAL = re.compile(r"-(?=\s*\d)"), re.compile(r"(?<=[\d)\]])!")
_MEANINGFUL = frozenset("+*/\\^=<>#&@%()[]{}\ue000")  # besides the characters that Unicode calls symbols
_HEADING = re.compile(r"#\s+\S|#\s*$|##\s*(?:question|reply)\s*:?\s*$", re.IGNORECASE)
# Characters that a text file does not keep across machines: control characters, other line ends, surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")
_NOT_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ud800-\udfff]")
# ChatML and its like, Gemma, Mistral. A tokenizer reads them as the end or the begin of a turn, wherever they stand.
_CONTROL_TOKEN = re.compile(r"<\|[A-Za-z]\w{1,40}\|>|<(?:start|end)_of_turn>|\[/?INST\]")
_FENCE = re.compile(r"\s*(?:(`{3,})[^`]*|(~{3,}).*)")
_SECTION_NAME = re.compile(r"\w[\w-]*")
_SECTION_USE = re.compile(r"\{section:(\w[\w-]*)\}")
_SECTION_HEADING = re.compile(r"Section (\w[\w-]*)( \(protected\))?", re.IGNORECASE)
_NOTHING = "\\~"  # an empty text, because the parser rejects an empty part


@dataclass(frozen=True)
class Demonstration:
    """A question with a right reply, sent as two chat turns before the actual question."""

    question: str
    reply: str


@dataclass(frozen=True)
class Section:
    """A named text, put in for `{section:NAME}`. protected: an edit may neither change nor drop it."""

    name: str
    text: str
    protected: bool = False

    @property
    def heading(self) -> str:
        """Without the mark of a heading."""
        return f"{SECTION} {self.name}{' (protected)' if self.protected else ''}"


@dataclass(frozen=True)
class Prompt:
    """The text that the policy gets around a question.

    Attributes:
        system: The system turn; "" sends no system turn.
        template: The user turn, with `{question}` exactly once.
        demonstrations: Sent before the question, in this order.
        sections: Texts that the system turn and the template put in by name.

    Raises:
        PromptError: If the template does not contain `{question}` exactly once, or a section is unknown or comes twice.
    """

    system: str = ""
    template: str = PLACEHOLDER
    demonstrations: tuple[Demonstration, ...] = ()
    sections: tuple[Section, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "demonstrations", tuple(self.demonstrations))
        object.__setattr__(self, "sections", tuple(self.sections))
        count = self.template.count(PLACEHOLDER)
        if count != 1:
            raise PromptError(
                f"The question template must contain {PLACEHOLDER} exactly once, but contains it {count} times: "
                "put it where the question goes."
            )
        names = [section.name for section in self.sections]
        for name in names:
            if names.count(name) > 1 or not _SECTION_NAME.fullmatch(name):
                raise PromptError(
                    f"The section {name!r} comes twice, or its name is not one word: give it another name."
                )
        if unknown := [name for name in self.held_sections if name not in names]:
            raise PromptError(
                f"{{section:{unknown[0]}}} names no section (sections: {', '.join(names) or 'none'}): add "
                f'"# {SECTION} {unknown[0]}" with its text, or use a name that there is.'
            )

    @property
    def held_sections(self) -> list[str]:
        """Names of the sections that the system turn or the template puts in."""
        return _SECTION_USE.findall(f"{self.system}\n{self.template}")

    @property
    def read_sections(self) -> list[str]:
        """Names of the sections that no turn puts in: those that an agent reads by their names."""
        return [section.name for section in self.sections if section.name not in self.held_sections]

    def with_texts(self, texts: Mapping[str, str]) -> Prompt:
        """The prompt with other texts of sections. Raises PromptError if one is unknown or protected."""
        known = {section.name: section for section in self.sections}
        for name in texts:
            if name not in known or known[name].protected:
                others = ", ".join(section.name for section in self.sections if not section.protected)
                why = "is protected" if name in known else "does not exist"
                raise PromptError(f"The section {name!r} {why}: rewrite one of {others or 'none'}.")
        written = [replace(each, text=texts.get(each.name, each.text)) for each in self.sections]
        return replace(self, sections=tuple(written))

    def _filled(self, text: str) -> str:
        """Put in the sections of a text."""
        texts = {section.name: section.text for section in self.sections}
        return unix_lines(_SECTION_USE.sub(lambda use: texts[use[1]], text))

    def ask(self, question: str) -> str:
        """Fill the question into the template: the user turn. No carriage return of the template is sent."""
        before, _, after = self.template.partition(PLACEHOLDER)
        return f"{self._filled(before)}{question}{self._filled(after)}"

    def dialogue(self, example: Example) -> list[Message]:
        """Give the chat turns of a row: those of `messages`, with the turns before its question."""
        return self.messages(example.question, example.history)

    def messages(self, question: str, history: Turns = ()) -> list[Message]:
        """Give the chat turns, as `{"role", "content"}`: system, demonstrations, history, question.

        Demonstrations also go through the template. A system turn of the history follows the prompt's own in one turn,
        since templates know one alone.
        """
        systems = [self._filled(self.system), *(text for role, text in history if role == "system")]
        system = "\n\n".join(text for text in systems if text)
        turns = [{"role": "system", "content": system}] if system else []
        for demonstration in self.demonstrations:
            turns.append({"role": "user", "content": self.ask(unix_lines(demonstration.question))})
            turns.append({"role": "assistant", "content": unix_lines(demonstration.reply)})
        turns += [{"role": role, "content": text} for role, text in history if role != "system"]
        return [*turns, {"role": "user", "content": self.ask(question)}]

    def render(self) -> str:
        """Write the document; `parse(p.render()) == p` for every prompt."""
        return write_document(self.system, self.template, self.demonstrations, self.sections)

    @property
    def hash(self) -> str:
        """First 16 hex characters of the document's SHA-256; names the prompt on disk and in the state."""
        return hashlib.sha256(self.render().encode()).hexdigest()[:16]


def unix_lines(text: str) -> str:
    r"""Write every line end as `\n`: a model reads `\r` as another token, and may copy it."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def write_document(
    system: str | None,
    template: str | None,
    demonstrations: Sequence[Demonstration],
    sections: Sequence[Section] = (),
) -> str:
    """Write a document without the parts that are None. The result may be invalid; `parse` checks it."""
    parts = [] if system is None else [f"# {SYSTEM}", _body(system)]
    parts += [] if template is None else [f"# {TEMPLATE}", _body(template)]
    for section in sections:
        parts += [f"# {section.heading}", _body(section.text)]
    for number, demonstration in enumerate(demonstrations, 1):
        parts += [
            f"# {DEMONSTRATION} {number}",
            f"## {QUESTION}",
            _body(demonstration.question) or _NOTHING,
            f"## {REPLY}",
            _body(demonstration.reply) or _NOTHING,
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def parse(
    document: str,
    *,
    template: str | None = None,
    changed: Callable[[str], str] = str,
    sections: Callable[[list[Section]], Sequence[Section]] = list,
) -> Prompt:
    """Parse a document.

    Args:
        document: Text with the sections System, Question template, Section and Demonstration.
        template: The question template, if the document leaves this section out.
        changed: Is applied to the question template before it is checked.
        sections: Is applied to the named sections before they are checked.

    Raises:
        PromptError: If the placeholder is missing or repeated, a section is unknown or repeated, or a demonstration
            lacks its question or reply.
    """
    # Windows editors write a byte order mark and \r\n.
    lines = _without_fence(unix_lines(document.removeprefix("\ufeff")).split("\n"))
    found = _split(lines, _section, "The document", f"# {SYSTEM}", _fenced(lines, _known_section))
    if TEMPLATE not in found and (template is None or not found):
        raise PromptError(f'The section "# {TEMPLATE}" is missing: add the user turn, with {PLACEHOLDER} in it.')
    demonstrations = [_demonstration(name, lines) for name, lines in found.items() if name.startswith(DEMONSTRATION)]
    user_turn = _text(found[TEMPLATE]) if TEMPLATE in found else template or ""
    written = [
        Section(heading[1], _text(lines), bool(heading[2]))
        for name, lines in found.items()
        if (heading := _SECTION_HEADING.fullmatch(name))
    ]
    return Prompt(_text(found.get(SYSTEM, [])), changed(user_turn), tuple(demonstrations), tuple(sections(written)))


def kept_sections(old: Sequence[Section], written: Sequence[Section]) -> list[Section]:
    """Give the sections of an edited document: protected ones stay, also if they are left out, and no other becomes so.

    Raises:
        PromptError: If a protected section was changed.
    """
    protected = {section.name: section for section in old if section.protected}
    for section in written:
        if section.name in protected and section.text != protected[section.name].text:
            raise PromptError(f"The section {section.name} is protected: leave its text as it is, or leave it out.")
    kept = [protected.get(section.name) or replace(section, protected=False) for section in written]
    return [*kept, *(section for section in protected.values() if section not in kept)]


def difference(old: Prompt, new: Prompt) -> str:
    """Give a unified diff of the two documents; "" if they are equal."""
    lines = difflib.unified_diff(
        old.render().splitlines(), new.render().splitlines(), f"prompt {old.hash}", f"prompt {new.hash}", lineterm=""
    )
    return "\n".join(lines)


def check_prompt(
    prompt: Prompt,
    *,
    count_tokens: Callable[[Sequence[dict[str, str]]], int] | None = None,
    context_tokens: int | None = None,
    longest: Example | None = None,
    max_new_tokens: int = 0,
    forbidden_questions: Iterable[str] = (),
    allowed_questions: Iterable[str] = (),
    protected: Iterable[str] = (),
    columns: Iterable[str] = (),
    read_by_agent: Iterable[str] | None = None,
) -> None:
    """Check a prompt before it is proposed.

    Args:
        prompt: The prompt.
        count_tokens: Counts the tokens of chat turns. None skips the check of the length.
        context_tokens: The model's context, which must hold the prompt, the longest question and the reply.
        longest: The longest row of the task.
        max_new_tokens: Longest reply, in tokens.
        forbidden_questions: Questions of validation and test, which must not appear in the prompt.
        allowed_questions: Questions of train. A demonstration may use one even if it contains a forbidden question.
        protected: Texts that must stay in the prompt, word for word.
        columns: Columns of the rows. `{question}` alone is filled in: another name in braces is an error.
        read_by_agent: Names of sections that the task's agent reads, which must stay. None for a task of one call.

    Raises:
        PromptError: If a check fails.
    """
    refuse_no_text(prompt)
    check_variables(prompt.system, prompt.template, columns)
    check_sections(prompt, columns, read_by_agent=read_by_agent is not None)
    for name in read_by_agent or ():
        if name not in {section.name for section in prompt.sections}:
            raise PromptError(f"The section {name} is missing, which the agent reads: keep it, or write another text.")
    for number, demonstration in enumerate(prompt.demonstrations, 1):
        if not demonstration.question.strip() or not demonstration.reply.strip():
            raise PromptError(f"Demonstration {number} has an empty question or reply: write both.")
    everything = _everything(prompt)
    for text in protected:
        if text not in everything:
            raise PromptError(f"A protected text is missing: keep {text[:80]!r} in the prompt, word for word.")
    _check_copies(prompt, forbidden_questions, allowed_questions)
    if count_tokens is not None and context_tokens is not None:
        tokens = count_tokens(prompt.dialogue(longest) if longest else prompt.messages(""))
        if tokens + max_new_tokens > context_tokens:
            raise PromptError(
                f"The prompt is too long: {tokens} tokens with the longest question and {max_new_tokens} for the reply "
                f"exceed the model's context of {context_tokens}; shorten the prompt or drop demonstrations."
            )


def check_sections(prompt: Prompt, columns: Iterable[str] = (), *, read_by_agent: bool = False) -> None:
    """Raise PromptError if no turn holds a section, or a section names a column, where nothing is filled in.

    read_by_agent: an agent reads the sections by their names, so no turn has to hold them.
    """
    for section in prompt.sections:
        if section.name not in prompt.held_sections and not read_by_agent:
            raise PromptError(
                f"No turn holds the section {section.name}: write {{section:{section.name}}} into the system turn or "
                "the question template, where its text goes, or remove it (a protected one cannot be removed)."
            )
        check_system(section.text, columns)


def refuse_no_text(prompt: Prompt) -> None:
    """Raise PromptError if the prompt contains control characters, unpaired surrogates or U+FFFD."""
    if found := _NOT_TEXT.search(_everything(prompt)):
        raise PromptError(f"The prompt contains {found[0]!a}: send valid UTF-8 without control characters.")


def control_tokens(text: str) -> set[str]:
    """Find the marks of turns of known chat templates in a text, as in `<|im_end|>`."""
    return set(_CONTROL_TOKEN.findall(text))


def _everything(prompt: Prompt) -> str:
    pairs = (f"{pair.question}\n{pair.reply}" for pair in prompt.demonstrations)
    return "\n".join([prompt.system, prompt.template, *(section.text for section in prompt.sections), *pairs])


class _AsRead(dict[int, str]):
    """Maps each character for `normalise`: word characters stay, symbols become words, the rest become spaces."""

    def __missing__(self, code: int) -> str:
        character, category = chr(code), unicodedata.category(chr(code))
        if category[0] in "LNM" or character == "_":
            self[code] = character
        elif character in _MEANINGFUL or category in ("Sm", "Sc", "So"):
            self[code] = f" {character} "
        else:
            self[code] = " "
        return self[code]


_AS_READ = _AsRead()


def normalise(text: str) -> str:
    """Remove case, punctuation, spacing and Markdown marks from a text. Equal results are the same question.

    Meaningful symbols stay: C, C++ and C# differ, and so do 10 + 11 and 10 * 11.
    """
    plain = unicodedata.normalize("NFC", text.casefold()).translate(MINUS)
    plain = _EMPHASIS.sub(r"\2", _LINE_MARKS.sub("", plain))
    return " ".join(_FACTORIAL.sub("\ue000", _SIGN.sub("\u2212", plain)).translate(_AS_READ).split())


def _check_copies(prompt: Prompt, forbidden: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise PromptError if a forbidden question is a demonstration, or is quoted anywhere in the prompt."""
    known = {normalise(question) for question in allowed}
    texts = [prompt.system, prompt.template, *(section.text for section in prompt.sections)]
    around = f" {' / '.join(map(normalise, texts))} "
    demonstrations = []
    for each in prompt.demonstrations:
        asked = normalise(each.question)
        demonstrations.append((asked, f" {'' if asked in known else asked} / {normalise(each.reply)} "))
    for question in forbidden:
        words = normalise(question)
        long_enough = len(re.findall(r"\w+", words)) >= _COPIED_WORDS
        for number, (asked, text) in enumerate(demonstrations, 1):
            if words == asked or (long_enough and f" {words} " in text):
                raise PromptError(f"Demonstration {number} copies a validation or test row: use a train row instead.")
        if long_enough and f" {words} " in around:
            raise PromptError(
                "The system turn, the template or a section quotes a validation or test question: remove it."
            )


def _split(
    lines: Sequence[str], title_of: Callable[[str], str | None], owner: str, first: str, text: Container[int] = ()
) -> dict[str, list[str]]:
    """Split lines at headings: title -> lines. `title_of` gives the title of a heading, None for a line of text.

    text: places of lines that are text whatever they look like.
    """
    found: dict[str, list[str]] = {}
    body: list[str] | None = None
    for place, line in enumerate(lines):
        title = None if place in text else title_of(line)
        if title is not None:
            if title in found:
                raise PromptError(f'{owner} has "{title}" twice: merge them, or number the demonstrations.')
            body = found[title] = []
        elif body is not None:
            body.append(line)
        elif line.strip():
            raise PromptError(f'{owner} must begin with "{first}", but begins with {line[:80]!r}.')
    return found


def _demonstration(name: str, lines: Sequence[str]) -> Demonstration:
    try:
        parts = _split(lines, _part, name, f"## {QUESTION}")
    except PromptError:  # a part comes twice: perhaps one of them stands in a code block
        parts = _split(lines, _part, name, f"## {QUESTION}", _fenced(lines, lambda _: None))
    for title in (QUESTION, REPLY):
        if not any(line.strip() for line in parts.get(title, [])):
            raise PromptError(f'{name} has no {title.lower()}: write it under "## {title}", or remove {name}.')
    return Demonstration(_text(parts[QUESTION]), _text(parts[REPLY]))


def _part(line: str) -> str | None:
    heading = re.match(r"##\s*(question|reply)\s*:?\s*$", line, re.IGNORECASE)
    return heading[1].capitalize() if heading else None


def _section(line: str) -> str | None:
    if re.match(r"#\s*$", line):
        raise PromptError("A heading has no name: name it, or write a line of text that begins with # as \\#.")
    if not (_HEADING.match(line) and line.startswith("# ")):
        return None
    if (known := _known_section(line)) is not None:
        return known
    title = line.lstrip("#").strip().rstrip(":").strip()
    raise PromptError(
        f'The section "# {title[:80]}" is unknown (known: {SYSTEM}, {TEMPLATE}, {SECTION} NAME, {DEMONSTRATION} 1, 2, '
        "...): write a line of text that begins with # as \\#."
    )


def _known_section(line: str) -> str | None:
    if not line.startswith("# "):
        return None
    title = line.lstrip("#").strip().rstrip(":").strip()
    for known in (SYSTEM, TEMPLATE):
        if title.casefold() == known.casefold():
            return known
    if _SECTION_HEADING.fullmatch(title):
        return title
    numbered = re.fullmatch(r"demonstration\s*(\d*)", title, re.IGNORECASE)
    return f"{DEMONSTRATION} {numbered[1]}".strip() if numbered else None


def _fenced(lines: Sequence[str], heading: Callable[[str], str | None]) -> set[int]:
    """Places of the lines inside fenced code blocks. A block that has no end before the next `heading` is none."""
    inside: set[int] = set()
    start, fence = 0, ""
    for place, line in enumerate(lines):
        if heading(line) is not None:
            fence = ""
        elif not fence and (opened := _FENCE.fullmatch(line)):
            start, fence = place, opened[1] or opened[2]
        elif fence and (closing := line.strip()).startswith(fence) and not closing.strip(fence[0]):
            inside.update(range(start + 1, place))
            fence = ""
    return inside


def _without_fence(lines: list[str]) -> list[str]:
    """Remove a code fence around the whole document."""
    filled = [index for index, line in enumerate(lines) if line.strip()]
    opened = re.fullmatch(r"(`{3,}|~{3,})\w*\s*", lines[filled[0]]) if len(filled) > 1 else None
    if opened and lines[filled[-1]].strip() == opened[1]:
        return lines[filled[0] + 1 : filled[-1]]
    return lines


def _body(text: str) -> str:
    """Write a text as the body of a section."""
    lines = text.split("\n")
    edges = {0, len(lines) - 1}
    return text and "\n".join(_escape(line, index in edges) for index, line in enumerate(lines))


def _text(lines: Sequence[str]) -> str:
    """Read the text of a section, without empty lines around it."""
    filled = [index for index, line in enumerate(lines) if line.strip()]
    return "\n".join(_unescape(line) for line in lines[filled[0] : filled[-1] + 1]) if filled else ""


def _escape(line: str, at_edge: bool) -> str:
    if _UNSAFE.search(line):
        return "\\~" + line.encode("unicode_escape").decode("ascii")
    bare = line.lstrip("\\")
    meant = bare == line  # has no backslash: only a line that would be misread needs one
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
                f"A line that begins with \\~ must hold Python escapes ({error.reason}), but is {line[:80]!r}."
            ) from error
    if _HEADING.match(bare) or not bare.strip() or bare.startswith("~"):
        return line[1:]
    return line
