"""The forms of an edit: the part of the document that may change, how it is to be written, and as which fields.

Where a chat model has structured output, the editor fills in the sections of the document as fields and cannot get a
heading wrong; elsewhere it writes the sections itself, between TextGrad's tags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Literal

from langchain_core.messages import AIMessage, UsageMetadata
from pydantic import BaseModel, Field, ValidationError

from nslora.tools import prompt as documents
from nslora.tools.editor.textual_gradients import answers, as_answer
from nslora.tools.errors import PromptError
from nslora.tools.prompt import PLACEHOLDER, Demonstration, Prompt, write_document

Part = Literal["document", "system", "question", "demonstrations"]
# Whether an editor fills in forms: where its profile says that it can, always, or never.
Structured = Literal["auto", "always", "never"]

SECTIONS: Mapping[Part, str] = {
    "system": documents.SYSTEM,
    "question": documents.TEMPLATE,
    "demonstrations": f"{documents.DEMONSTRATION} ...",
}
_LAYOUT = (
    f'The variable is a Markdown document with the sections "# {documents.SYSTEM}" (may be empty), '
    f'"# {documents.TEMPLATE}" (holds {PLACEHOLDER} exactly once) and any number of "# {documents.DEMONSTRATION} 1", '
    f'"# {documents.DEMONSTRATION} 2", ..., each with "## {documents.QUESTION}" and "## {documents.REPLY}". '
    "There are no other sections."
)
_DEMONSTRATIONS = (
    "Demonstrations are sent to the language model as earlier turns of the chat; small models follow demonstrations "
    "far better than instructions. A demonstration's reply must be one that would earn the full reward; take its "
    "question and reply from the feedback, do not invent facts."
)
_ESCAPE = "Inside a section, a line of text that begins with # is written with a backslash before it."


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


class DocumentForm(BaseModel):
    """The improved variable, section by section."""

    system: str = Field(description="What the language model is told before the chat begins; may be empty.")
    question_template: str = Field(description=f"The user turn, with {PLACEHOLDER} once, where the question goes.")
    demonstrations: list[PairForm] = Field(description="Earlier turns of the chat, in their order.")


class _Filled(BaseModel):
    """What any of the forms may hold."""

    system: str | None = None
    question_template: str | None = None
    demonstrations: list[PairForm] = []


FORMS: Mapping[Part, type[BaseModel]] = {
    "document": DocumentForm,
    "system": SystemForm,
    "question": TemplateForm,
    "demonstrations": DemonstrationsForm,
}


def format_rules(part: Part) -> list[str]:
    """What an editor is told of the document's format, and of the part that may change."""
    if part == "document":
        return [f"{_LAYOUT} Send the whole document.", _DEMONSTRATIONS, _ESCAPE]
    only = f'Change only "# {SECTIONS[part]}" and send it alone, with its heading: all other sections stay as they are.'
    return [_LAYOUT, *([_DEMONSTRATIONS] if part == "demonstrations" else []), _ESCAPE, only]


def reply_of(filled: object) -> str | None:
    """Filled-in fields as the reply that an editor without structured output would have written; None where they are
    not the form's."""
    try:
        fields = _Filled.model_validate(filled)
    except ValidationError:
        return None
    pairs = [Demonstration(_bare(pair.question), _bare(pair.reply)) for pair in fields.demonstrations]
    system, template = fields.system, fields.question_template
    return as_answer(
        write_document(
            None if system is None else _bare(system), None if template is None else _bare(template), tuple(pairs)
        )
    )


def read_document(document: str, old: Prompt, part: Part) -> Prompt:
    """The prompt that an edit of this part makes of the old one; other parts are the old one's, whatever was sent.

    Where one part alone may change, it may be sent alone. Raises PromptError.
    """
    if part == "document":
        return documents.parse(document)
    name = SECTIONS[part].removesuffix(" ...")
    if not re.search(rf"^#\s+{name}\b", document, re.IGNORECASE | re.MULTILINE):
        raise PromptError(f'The section "# {name}" is missing: it is the one that may change.')
    new = documents.parse(document, template=old.template)
    if part == "system":
        return Prompt(new.system, old.template, old.demonstrations)
    if part == "question":
        return Prompt(old.system, new.template, old.demonstrations)
    return Prompt(old.system, old.template, new.demonstrations)


def salvaged(error: Exception) -> AIMessage | None:
    """The reply inside an error of OpenAI's client about a form that came half or not at all; None where there is none.

    Such a reply was paid for: it is read like any other, and what is wrong with it is told to the editor.
    """
    completion = getattr(error, "completion", None)
    if completion is not None and getattr(completion, "choices", None):  # the reply's length ran out
        usage, text = completion.usage, completion.choices[0].message.content or ""
        if usage is None:
            return AIMessage(text)
        counted = UsageMetadata(
            input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens, total_tokens=usage.total_tokens
        )
        return AIMessage(text, usage_metadata=counted)
    if isinstance(error, ValidationError):  # a server that passes over the form: tags, or another object
        first = error.errors(include_url=False)[0]
        if len(first["loc"]) <= 1:
            said = first["input"]
            return AIMessage(said if isinstance(said, str) else json.dumps(said))
    return None


def _bare(text: str) -> str:
    """A field's text, out of the tags that the prompt asks for, where the editor set them inside the field too."""
    return (answers(text) or [text])[-1].strip()
