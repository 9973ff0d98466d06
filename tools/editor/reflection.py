"""The reply to a request of the protocol `reflect`: an analysis and one or several documents, rows by number.

A chat model with structured output fills in the fields of `reflection_form`. Any other is asked for the same object in
words; it may as well write whole documents between TextGrad's tags. Near-misses are repaired: a code fence, line ends
inside a JSON text, one document outside the list, `{{question}}`, a closing tag or both that a reply lacks although
the model ended it by itself, and what was cut off behind whole documents and fields.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import GenericAlias
from typing import Any

from langchain_core.utils.json import parse_partial_json
from pydantic import BaseModel, Field, create_model

from nslora.tools.editor.answer_format import (
    Part,
    SectionForm,
    layout_rules,
    plain_text,
    prompt_of_block,
    refuse_runaway,
    single_braces,
)
from nslora.tools.editor.briefing import Row
from nslora.tools.editor.reply_causes import written
from nslora.tools.editor.textual_gradients import CLOSE, OPEN, answers
from nslora.tools.errors import PromptError
from nslora.tools.prompt import PLACEHOLDER, SYSTEM, TEMPLATE, Demonstration, Prompt, normalise

SYSTEM_CHARACTERS, MOST_DEMONSTRATIONS = 700, 8
ROWS_IN_FORM = 4  # a small model that fills in a form fills every place of a list
ANALYSIS_CHARACTERS, SHORT_ANALYSIS = 2000, 300  # that are kept, that a small model may write
REPEATED = re.compile(r"(\S.{14,}?)(?:\s*\1){2,}", re.DOTALL)  # three times in a row
LOOKED_AT = 4000  # characters in which a repetition is looked for: the search is quadratic
ANALYSIS = "One sentence: how do the right replies look, and how do the wrong replies differ from them?"
SYSTEM_TURN = (
    "Instructions to the language model, in two or three sentences, for it to read: the form of every right reply. "
    "They are the same for all questions."
)
ROWS_FIELD = (
    "The numbers of 2 to 4 rows from above with different right replies. The language model sees these questions and "
    "right replies as examples; small models follow examples far better than rules."
)
LIST_ANSWERS = "true if the list of all right answers is to stand below these instructions, else false."
SECTIONS_FIELD = (
    "Only for sections that must change: objects with name and text. An agent's nodes and tools read each by its name."
)
COPIED_WORDS = 7
ENDED_BY_ITSELF = {"stop", "end_turn", "eos", "stop_sequence"}  # finish reasons


# Names, docstrings and descriptions of these classes are part of the JSON schema that a chat model is sent. A field
# with the default None may be left out, or be null where a server wants every field.
class ReplyForm(BaseModel):
    """Another right reply to a row than the one that would be filled in."""

    row: int
    reply: str


class SystemPart(BaseModel):
    """A new system turn."""

    system: str = Field(description=SYSTEM_TURN)


class TemplatePart(BaseModel):
    """A new question template."""

    question_template: str = Field(description=f"The user turn, with {PLACEHOLDER} once, where the question goes.")


class DemonstrationsPart(BaseModel):
    """New demonstrations."""

    rows: list[int] = Field(description=ROWS_FIELD, max_length=ROWS_IN_FORM)


class DocumentPart(SystemPart, DemonstrationsPart):
    """A new document."""

    question_template: str | None = Field(None, description=f"Only if it must change; holds {PLACEHOLDER} once.")


class WrittenDemonstrationsPart(DemonstrationsPart):
    """New demonstrations."""

    replies: list[ReplyForm] | None = Field(None, max_length=ROWS_IN_FORM)


class WrittenDocumentPart(DocumentPart, WrittenDemonstrationsPart):
    """A new document."""


class SectionsPart(BaseModel):
    """New texts of sections."""

    sections: list[SectionForm] | None = Field(None, description=SECTIONS_FIELD, max_length=ROWS_IN_FORM)


_PARTS: Mapping[Part, type[BaseModel]] = {
    "document": WrittenDocumentPart,
    "system": SystemPart,
    "question": TemplatePart,
    "demonstrations": WrittenDemonstrationsPart,
}
# Without a field for replies: Qwen2.5-Coder-1.5B filled it in although each row had a right reply, copied a failing
# reply, and repeated itself up to the length limit.
_BY_NUMBER: Mapping[Part, type[BaseModel]] = {"document": DocumentPart, "demonstrations": DemonstrationsPart}


class ShortSystemPart(BaseModel):
    """A new system turn."""

    system: str = Field(description=SYSTEM_TURN, max_length=SYSTEM_CHARACTERS)


class ShortDocumentPart(ShortSystemPart, DemonstrationsPart):
    """A new document."""


class ListingSystemPart(ShortSystemPart):
    """A new system turn, and whether the closed list of answers stands in it."""

    list_answers: bool = Field(description=LIST_ANSWERS)


class ListingDocumentPart(ListingSystemPart, DemonstrationsPart):
    """A new document."""


# What a small model is given where its server holds it to the schema (llama.cpp does; OpenAI refuses a length limit).
# The question template is no field of a document: Qwen2.5-Coder-1.5B filled it in each time, with what it is now.
_SHORT: Mapping[Part, type[BaseModel]] = {
    "document": ShortDocumentPart,
    "system": ShortSystemPart,
    "question": TemplatePart,
    "demonstrations": DemonstrationsPart,
}


class _Analysed(BaseModel):
    """The analysis of the failures, and what mends them."""

    analysis: str = Field(description=ANALYSIS)


class _ShortlyAnalysed(BaseModel):
    """The analysis of the failures, and what mends them."""

    analysis: str = Field(description=ANALYSIS, max_length=SHORT_ANALYSIS)


# With a closed list of answers, a small model says whether the list is to be shown; it rarely copies one whole.
_LISTING: Mapping[Part, type[BaseModel]] = {**_SHORT, "document": ListingDocumentPart, "system": ListingSystemPart}


@dataclass(frozen=True)
class AnswerShape:
    """Which fields an editor's answer has.

    Attributes:
        part: What may change.
        documents: Most that the reply may hold.
        may_write: Whether demonstrations' replies may be written; else rows are named by their numbers.
        short: Whether a small model fills it in, which writes one document of few short fields.
        listing: Whether there is a closed list of answers, which a small model may have shown.
        sections: Whether texts of sections that an agent reads may change.
    """

    part: Part
    documents: int
    may_write: bool
    short: bool = False
    listing: bool = False
    sections: bool = False


@functools.cache
def reflection_form(shape: AnswerShape) -> type[BaseModel]:
    """Give the schema of a reply of this shape."""
    part, more = shape.part, (SectionsPart,) if shape.sections else ()
    if shape.short:
        one = (_LISTING if shape.listing else _SHORT)[part]
        return create_model("Reflection", __base__=(*more, one, _ShortlyAnalysed))
    one = _PARTS[part] if shape.may_write else _BY_NUMBER.get(part, _PARTS[part])
    if shape.documents == 1:
        return create_model("Reflection", __base__=(*more, one, _Analysed))
    whole = create_model("AgentDocument", __base__=(*more, one)) if more else one
    several: Any = GenericAlias(list, (whole,))
    return create_model(
        "Reflection",
        __base__=_Analysed,
        documents=(
            several,
            Field(description="One or several different documents.", min_length=1, max_length=shape.documents),
        ),
    )


@dataclass(frozen=True)
class Reflected:
    """What a reply holds: the analysis, the prompts, and what is wrong with other documents in it."""

    analysis: str
    prompts: tuple[Prompt, ...]
    faults: tuple[str, ...]


def answer_format(shape: AnswerShape) -> str:
    """Tell an editor in words how to answer. There is no example in it, since small models copy examples."""
    fields = []
    if shape.part in ("document", "demonstrations"):
        fields.append(f"- rows: {ROWS_FIELD}")
        if shape.may_write:
            fields.append(
                "- replies: only to write a demonstration's reply yourself; objects with row (its number) and reply, "
                "which must earn the full reward."
            )
    if shape.part in ("document", "system"):
        fields.append(f"- system: {SYSTEM_TURN}")
        if shape.short and shape.listing:
            fields.append(f"- list_answers: {LIST_ANSWERS}")
    if shape.part == "question" or (shape.part == "document" and not shape.short):
        only = "only if it must change; " if shape.part == "document" else ""
        fields.append(f"- question_template: {only}the user turn, with {PLACEHOLDER} once, where the question goes.")
    if shape.sections:
        fields.append(f"- sections: {SECTIONS_FIELD}")
    if shape.documents > 1:
        several = "an object each, that take different ways; the best is found by a trial"
        new = f"- documents: a list of up to {shape.documents} new documents, {several}. The fields of each:"
        fields = [new, *(f"  {field}" for field in fields)]
    return "\n".join(["Answer with one JSON object and nothing else. Its fields:", f"- analysis: {ANALYSIS}", *fields])


def read_reflection(
    reply: str,
    old: Prompt,
    part: Part,
    rows: Sequence[Row],
    finish_reason: str = "",
    answers: Sequence[str] = (),
) -> Reflected:
    """Read the documents that a reply proposes; what the editor may not change is taken from the old one.

    Args:
        reply: A JSON object with the fields of `reflection_form`, or text with documents between TextGrad's tags.
        old: The prompt in force.
        part: The part that may change.
        rows: The rows that may be named by number, from 1.
        finish_reason: Why the model stopped, in the provider's word; "" if it does not say.
        answers: The closed list of answers that a document may have shown.

    Raises:
        PromptError: If the reply holds no document at all; the message says why, in words for the editor.
    """
    text = written(reply)
    record = _json_of(text)
    if record is None:
        blocks = _blocks(reply, finish_reason)
        found = [functools.partial(_prompt_of_block, block, old, part) for block in blocks]
        analysis = text.partition(OPEN)[0]
    else:
        documents = record.get("documents", [record])
        documents = documents if isinstance(documents, list) else [documents]
        found = [functools.partial(_prompt_of, each, old, part, rows, answers) for each in documents]
        analysis = str(record.get("analysis") or "")
    prompts, faults = list[Prompt](), list[str]()
    for each in found:
        try:
            prompts.append(each(faults=faults))
        except PromptError as error:
            faults.append(str(error))
    if not prompts and not faults:
        raise PromptError("It holds no document: write at least one.")
    return Reflected(analysis.strip()[:ANALYSIS_CHARACTERS], tuple(prompts), tuple(faults))


def _json_of(text: str) -> dict[str, Any] | None:
    """The JSON object of a reply, also within a code fence or prose; None if there is none.

    Of one that was cut off, or broken, the documents and fields before that place remain: small models name rows well,
    and may then repeat themselves in the system turn without end.
    """
    begins = re.search(r'\{\s*"', text)
    if begins is None or OPEN in text[: begins.start()]:
        return None
    found: dict[str, Any]
    try:
        found = json.JSONDecoder(strict=False).raw_decode(text, begins.start())[0]
    except (ValueError, RecursionError):
        try:
            found = parse_partial_json(text[begins.start() :])
            cut = found["documents"][-1] if "documents" in found else found
            name, value = cut.popitem()
            if isinstance(value, list) and value[:-1]:
                cut[name] = value[:-1]  # small models count rows up without end
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return None
        if "documents" in found and not cut:
            found["documents"].pop()
        return found if found.get("documents", found.keys() - {"analysis"}) else None
    return found


def _prompt_of_block(block: str, old: Prompt, part: Part, faults: list[str]) -> Prompt:
    return prompt_of_block(block, old, part)


def _blocks(reply: str, finish_reason: str) -> list[str]:
    """The documents between tags. If the model ended the reply by itself, a lacking tag is no sign of a cut."""
    if found := answers(reply):  # one without a heading is prose that mentions the tags, unless there is nothing else
        return [each for each in found if "# " in each] or found
    if finish_reason.lower() in ENDED_BY_ITSELF:
        text = written(reply).rpartition(OPEN)[2].partition(CLOSE)[0].strip()
        if re.match(rf"(?:`{{3,}}\w*\s*)?#\s+(?:{SYSTEM}|{TEMPLATE})\b", text, re.IGNORECASE):
            return [text]
    raise PromptError(
        "It is neither a whole JSON object with analysis and documents, nor a document between "
        f"{OPEN} and {CLOSE}: it may have been cut off, or be a refusal."
    )


def _prompt_of(
    document: Any, old: Prompt, part: Part, rows: Sequence[Row], answers: Sequence[str], faults: list[str]
) -> Prompt:
    """The prompt of one document in a JSON object. faults: gets what is wrong with a part that was left out."""
    names = {*_PARTS[part].model_fields, *(["sections"] if part == "document" and old.read_sections else [])}
    given = {name for name in names if document.get(name) is not None} if isinstance(document, dict) else set()
    if not given:
        raise PromptError(f"A document has none of the fields {', '.join(sorted(names))}: fill them in.")
    refuse_runaway(json.dumps(document), old)
    changes: dict[str, Any] = {}
    if "question_template" in given:
        changes["template"] = single_braces(plain_text(str(document["question_template"])))
    if "sections" in given:
        old = old.with_texts(_texts(document["sections"]))
    if given & {"rows", "replies"}:
        changes["demonstrations"] = _demonstrations(document, rows, faults)
    if "system" in given:
        listed = (
            f"The answer is one of: {'; '.join(answers)}" if document.get("list_answers") is True and answers else ""
        )
        try:
            changes["system"] = _system_turn(str(document["system"]))
        except PromptError as error:
            if not changes and not listed:
                raise
            faults.append(str(error))
        if listed and listed not in changes.get("system", old.system):
            changes["system"] = f"{changes.get('system', old.system)}\n\n{listed}".strip()
    return replace(old, **changes)


def _texts(said: Any) -> dict[str, str]:
    """New texts of sections by name. Raises PromptError if they cannot be read."""
    found = [each for each in said if isinstance(each, Mapping) and {"name", "text"} <= each.keys()]
    if not isinstance(said, list) or len(found) < len(said):
        raise PromptError('The field sections must be a list of objects with "name" and "text".')
    return {str(each["name"]): plain_text(str(each["text"])) for each in found}


def _system_turn(said: str) -> str:
    """A system turn as it was meant. Raises PromptError if it holds no rules; its other parts may stand without it."""
    system = re.sub(rf"^#\s+{SYSTEM}\s*\n+", "", plain_text(said))
    if _of_the_request(system):
        raise PromptError("The system turn repeats how it is to be written: write the rules themselves.")
    if PLACEHOLDER in system:
        raise PromptError(f"The system turn holds {PLACEHOLDER}, which is filled in nowhere but in the template.")
    if REPEATED.search(system[:LOOKED_AT]):
        raise PromptError("The system turn says the same three times in a row: write short rules.")
    return system


def _of_the_request(system: str) -> bool:
    """Whether a system turn holds words of the request about the document or the answer, seven or more in a row."""
    words = normalise(system).split()
    told = f" {normalise(' '.join([SYSTEM_TURN, ROWS_FIELD, ANALYSIS, *layout_rules('document', (), ())]))} "
    some = min(len(words), COPIED_WORDS)
    return len(words) > 3 and any(f" {' '.join(words[i : i + some])} " in told for i in range(len(words) - some + 1))


def _demonstrations(document: Mapping[str, Any], rows: Sequence[Row], faults: list[str]) -> tuple[Demonstration, ...]:
    """The rows that a document names, each once, with the replies that it writes for them.

    Of more than a prompt may hold, the first few are taken. faults: gets what is wrong with a number beside two good
    ones.
    """
    own: dict[int, str] = {}
    for each in document.get("replies") or ():
        if isinstance(each, Mapping) and str(each.get("reply") or "").strip():
            own[_number(each.get("row"), rows)] = plain_text(str(each["reply"]))
    named = document.get("rows") or []
    numbers, wrong = list[int](), ""
    for each in named if isinstance(named, list) else [named]:
        try:
            numbers.append(_number(each, rows))
        except PromptError as error:
            wrong = wrong or str(error)
    chosen = list(dict.fromkeys([*numbers, *own]))
    if wrong and len(chosen) < 2:
        raise PromptError(wrong)
    faults += [wrong] if wrong else []
    found = []
    for number in chosen if len(chosen) <= MOST_DEMONSTRATIONS else chosen[:ROWS_IN_FORM]:
        row = rows[number - 1]
        if (reply := own.get(number, row.right)) is None:
            raise PromptError(f'No right reply to row {number} is known: write it under "replies", or name other rows.')
        found.append(Demonstration(row.question, reply))
    return tuple(found)


def _number(said: Any, rows: Sequence[Row]) -> int:
    """The number of a row, also of "[5]" or "row 5"."""
    digits = re.fullmatch(r"\D*(\d{1,6})\D*", str(said))
    number = int(digits[1]) if digits else 0
    if not 1 <= number <= len(rows):
        raise PromptError(f"There is no row {str(said)[:40]}: rows have the numbers 1 to {len(rows)}.")
    return number
