"""How an editor writes an edit: the instructions that it gets, the fields of structured output, and their reader.

With structured output the editor fills in the sections of the prompt document as fields, so it cannot get a heading
wrong. Without it, the editor writes the document itself, between TextGrad's tags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from langchain_core.messages import AIMessage
from pydantic import BaseModel, Field, ValidationError

from nslora.tools import prompt as documents
from nslora.tools.editor.local_chat import tokens_used
from nslora.tools.editor.textual_gradients import CLOSE, OPEN, answers, restore
from nslora.tools.errors import PromptError
from nslora.tools.prompt import PLACEHOLDER, Demonstration, Prompt, Section, kept_sections

Part = Literal["document", "system", "question", "demonstrations"]
# Whether structured output is used: if the model's profile says that it has it, always, or never.
Structured = Literal["auto", "always", "never"]

# A document longer than this, and than several times the old one, is a runaway reply.
DOCUMENT_CHARACTERS, GROWTH = 20_000, 4

_OBJECT = re.compile(r'\s*\{\s*["}]')  # the beginning of a JSON object; "{question}" is the question

# For each part that may change alone: its heading in the document, and its attribute of a Prompt.
_HEADINGS: Mapping[Part, str] = {
    "system": documents.SYSTEM,
    "question": documents.TEMPLATE,
    "demonstrations": documents.DEMONSTRATION,
}
_ATTRIBUTES: Mapping[Part, str] = {"system": "system", "question": "template", "demonstrations": "demonstrations"}
_NO_OTHERS = "There are no other sections."
_LAYOUT = (
    f'The variable is a Markdown document with the sections "# {documents.SYSTEM}" (may be empty), '
    f'"# {documents.TEMPLATE}" (holds {PLACEHOLDER} exactly once) and any number of "# {documents.DEMONSTRATION} 1", '
    f'"# {documents.DEMONSTRATION} 2", ..., each with "## {documents.QUESTION}" and "## {documents.REPLY}". '
    f"{_NO_OTHERS}"
)
_DEMONSTRATIONS = (
    "Demonstrations are sent to the language model as earlier turns of the chat; small models follow demonstrations "
    "far better than instructions. A demonstration's reply must be one that would earn the full reward; take its "
    "question and reply from the feedback, do not invent facts."
)
_ESCAPE = "Inside a section, a line of text that begins with # is written with a backslash before it."


# Names, docstrings and descriptions of these classes are part of the JSON schema that a chat model is sent.
class PairForm(BaseModel):
    """A question with a reply that would earn the full reward."""

    question: str
    reply: str


class SystemForm(BaseModel):
    """The improved system turn."""

    system: str = Field(description="What the language model is told before the chat begins; may be empty.")


class TemplateForm(BaseModel):
    """The improved question template."""

    question_template: str = Field(description=f"The user turn, with {PLACEHOLDER} once, where the question goes.")


class DemonstrationsForm(BaseModel):
    """The improved demonstrations."""

    demonstrations: list[PairForm] = Field(description="Earlier turns of the chat, in their order.")


class DocumentForm(DemonstrationsForm, TemplateForm, SystemForm):
    """The improved variable, section by section."""


class SectionForm(BaseModel):
    """A section with its new text."""

    name: str
    text: str


class SectionedForm(DocumentForm):
    """The improved variable, section by section."""

    sections: list[SectionForm] | None = Field(None, description="New texts of sections that an agent reads by name.")


FORMS: Mapping[Part, type[BaseModel]] = {
    "document": DocumentForm,
    "system": SystemForm,
    "question": TemplateForm,
    "demonstrations": DemonstrationsForm,
}


def form_for(part: Part, old: Prompt) -> type[BaseModel]:
    """The fields of structured output for an edit of this prompt; those of an agent may have other sections."""
    return SectionedForm if part == "document" and old.read_sections else FORMS[part]


def agent_rule(read: Sequence[str]) -> str:
    """What an editor is told of the sections that an agent reads."""
    return (
        f"The model is called by an agent, several times for one question. Its nodes and tools read the sections "
        f"{', '.join(read)} by name: as the system turn of a node, or the description of a tool. Rewrite those that "
        "took part in what went wrong, and keep all of them."
    )


def format_rules(part: Part, sections: Sequence[Section] = (), read: Sequence[str] = ()) -> list[str]:
    """List the sentences that tell an editor the document's format and the part that may change.

    sections: of the document. read: names of those that an agent reads.
    """
    layout = _LAYOUT
    if sections:
        layout = layout.replace(_NO_OTHERS, "")
        layout += 'The text of a "# Section NAME" is put in for {section:NAME} in the other sections: keep that mark. '
        if any(section.protected for section in sections):
            layout += "Leave out sections that are protected; they stay as they are. "
        layout += _NO_OTHERS
    if read:
        layout += f" {agent_rule(read)}"
    if part == "document":
        return [f"{layout} Send the whole document.", _DEMONSTRATIONS, _ESCAPE]
    heading = _HEADINGS[part] + (" ..." if part == "demonstrations" else "")
    only = f'Change only "# {heading}" and send it alone, with its heading: all other sections stay as they are.'
    return [layout, *([_DEMONSTRATIONS] if part == "demonstrations" else []), _ESCAPE, only]


def layout_rules(
    part: Part, columns: Sequence[str], sections: Sequence[Section], read: Sequence[str] = ()
) -> list[str]:
    """List the sentences that tell an editor what the document is, without how to send it.

    columns: of the rows; the editor is told that none of them but the question is filled in. sections: of the document.
    read: names of those that an agent reads.
    """
    rules = [
        f"The variable has a system turn (may be empty), a question template ({PLACEHOLDER} exactly once) and "
        "demonstrations, which are sent to the language model as earlier turns of the chat."
    ]
    if read:
        rules.append(agent_rule(read))
    if held := [section.name for section in sections if section.name not in read]:
        marks = ", ".join(f"{{section:{name}}}" for name in held)
        rules.append(
            f"{marks}: the text of the section is put in there; keep that mark, and leave the section as it is."
        )
    if part != "document":
        rules.append(f'Only "# {_HEADINGS[part]}" may change: all other sections stay as they are.')
    elsewhere = f" (the rows' columns: {', '.join(columns[:12])})" if len(columns) > 2 else ""
    rules.append(f"Nothing but {PLACEHOLDER} is filled in, and only in the question template{elsewhere}.")
    return rules


def read_prompt(reply: str, old: Prompt, part: Part) -> Prompt:
    """Read the prompt that an editor's reply proposes.

    Args:
        reply: A JSON object with the fields of `FORMS[part]`, or a text with the document between TextGrad's tags.
        old: The prompt that is edited; parts that may not change are taken from it, whatever was sent.
        part: The part that may change. In a text it may be sent alone, with its heading.

    Raises:
        PromptError: The reply holds no usable document; the message says why, in words for the editor.
    """
    try:
        fields = form_for(part, old).model_validate_json(reply)
    except ValidationError as error:
        if answers(reply) or not is_object(reply):
            return _from_tags(reply, old, part)
        raise PromptError(_wrong_fields(error, form_for(part, old))) from error
    refuse_runaway(reply, old)
    changes: dict[str, Any] = {}
    for name, value in fields:
        if name == "sections":
            if value:
                old = old.with_texts({each.name: plain_text(each.text) for each in value})
        elif name == "demonstrations":
            changes[name] = tuple(Demonstration(plain_text(pair.question), plain_text(pair.reply)) for pair in value)
        else:
            text = plain_text(value)
            changes.update({"template": single_braces(text)} if name == "question_template" else {name: text})
    return replace(old, **changes)


def is_object(reply: str) -> bool:
    """Whether an editor filled in fields, rightly or not, in the place of a text."""
    return _OBJECT.match(reply) is not None


def _wrong_fields(error: ValidationError, form: type[BaseModel]) -> str:
    first = error.errors(include_url=False)[0]
    place = "".join(f" of {part}" for part in reversed(first["loc"]))
    wanted = ", ".join(f'"{name}"' for name in form.model_fields)
    return f"The JSON object does not fit ({first['msg']}{place}): fill in the fields {wanted}."


def _from_tags(reply: str, old: Prompt, part: Part) -> Prompt:
    blocks = answers(reply)
    if not blocks:
        raise PromptError(f"It has no complete {OPEN} ... {CLOSE} block; it may have been cut off, or refused.")
    # A block without a heading is prose that mentions the tags, unless there is nothing else.
    return prompt_of_block(next((block for block in reversed(blocks) if "# " in block), blocks[-1]), old, part)


def prompt_of_block(block: str, old: Prompt, part: Part) -> Prompt:
    """Read one document that was written between tags. Raises PromptError."""
    refuse_runaway(block, old)
    document = restore(block).strip()
    if part == "document":
        return documents.parse(
            document, changed=single_braces, sections=lambda written: kept_sections(old.sections, written)
        )
    if not re.search(rf"^#\s+{_HEADINGS[part]}\b", document, re.IGNORECASE | re.MULTILINE):
        raise PromptError(f'The section "# {_HEADINGS[part]}" is missing: it is the one that may change.')
    new = documents.parse(document, template=old.template, changed=single_braces, sections=lambda _: old.sections)
    return replace(old, **{_ATTRIBUTES[part]: getattr(new, _ATTRIBUTES[part])})


def single_braces(template: str) -> str:
    """Write the place of the question as it must be: some editors double the braces."""
    return re.sub(r"\{\{\s*question\s*\}\}", PLACEHOLDER, template)


def refuse_runaway(written: str, old: Prompt) -> None:
    """Raise PromptError if a document is far longer than the old one."""
    if len(written) > max(DOCUMENT_CHARACTERS, GROWTH * len(old.render())):
        raise PromptError(f"The document is far too long ({len(written)} characters): keep it about as it was.")


def plain_text(field: str) -> str:
    """Read a field's text, without answer tags around it (some editors write them there too) and with tags restored."""
    return documents.unix_lines(restore((answers(field) or [field])[-1].strip()))


def with_arguments(message: AIMessage) -> AIMessage:
    """A message with the arguments of its tool call as its text, if it has a tool call and no text."""
    calls = [*message.tool_calls, *message.invalid_tool_calls]
    if message.text.strip() or not calls:
        return message
    arguments = calls[0]["args"]
    return message.model_copy(update={"content": arguments if isinstance(arguments, str) else json.dumps(arguments)})


def reply_in_error(error: Exception) -> AIMessage | None:
    """Take the reply out of an error that OpenAI's client raises for incomplete or missing structured output.

    Such a reply has been paid for, so it is read like any other, and the editor is told what is wrong with it.

    Returns:
        The reply, with its token counts if the error has them; None if the error holds no reply.
    """
    completion = getattr(error, "completion", None)
    if completion is not None and getattr(completion, "choices", None):  # the reply reached its length limit
        usage, text = completion.usage, completion.choices[0].message.content or ""
        reasoning = getattr(getattr(usage, "completion_tokens_details", None), "reasoning_tokens", None) or 0
        counted = usage and tokens_used(usage.prompt_tokens, usage.completion_tokens, reasoning)
        return AIMessage(text, usage_metadata=counted, response_metadata={"finish_reason": "length"})
    if type(error).__name__ == "ContentFilterFinishReasonError":
        return AIMessage("", response_metadata={"finish_reason": "content_filter"})
    if isinstance(error, ValidationError):  # the server ignored the schema: the reply has tags, or another object
        first = error.errors(include_url=False)[0]
        if len(first["loc"]) <= 1:
            content = first["input"]
            return AIMessage(content if isinstance(content, str) else json.dumps(content))
    return None
