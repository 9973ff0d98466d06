"""How a row becomes an Example: which columns hold its question, its right answers and its id."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from nslora.tools.answers import accepted_texts, as_csv_text, column_value, has_column, is_missing, plain
from nslora.tools.errors import TaskError
from nslora.tools.prompt import Prompt, unix_lines
from nslora.tools.prompt_variables import QUESTION_NAME, fill, fold, variables
from nslora.tools.rewards.json_equal import JsonEqual
from nslora.tools.rewards.reward import Reward
from nslora.tools.schema import Example, transcript
from nslora.tools.tasks import choices
from nslora.tools.tasks.known_formats import converted, in_dialogue, in_known_format, own_system, with_system
from nslora.tools.tasks.readers import SourceRow
from nslora.tools.tasks.spec import Fields
from nslora.tools.thinking import split_thinking

_ANSWER_COLUMNS = ("answers", "answer")  # taken for the reference if there is no column `reference`
_PAIRS = "id", "question", "reference"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class RowReader:
    """Reads the question, the right answers and the id of a row.

    Attributes:
        fields: The columns; `reference` is the column that was found.
        question_template: What is asked of a row, with columns in braces; None: the column of the question.
        choices: How the references name the row's choices; they are asked with letters. None: they do not.
        as_json: The reward compares JSON, so that an object is one right answer.
    """

    fields: Fields
    question_template: str | None = None
    choices: choices.Kind | None = None
    as_json: bool = False

    def question(self, row: SourceRow) -> str:
        """Read the question. Raises TaskError if a column is missing, empty or no text; the message names the row."""
        if self.question_template is None:
            return _text(row, "question", self.fields.question)
        asked = fill(self.question_template, lambda name: self._put_in(row, name), row.columns)
        return _usable(row, "question", asked)

    def asked(self, row: SourceRow) -> str:
        """Read all that is asked, as `Example.asked` has it. Raises TaskError as `question` does."""
        return transcript(row.history, self.question(row))

    def can_ask(self, columns: Mapping[str, Any]) -> bool:
        """Whether the question is put together from several columns, and a row has them all."""
        if self.question_template is None:
            return False
        names = {each.name for each in variables(self.question_template, columns)}
        return all(has_column(columns, self.fields.question if name == QUESTION_NAME else name) for name in names)

    def quotable(self, example: Example) -> list[str]:
        """List the texts by which a prompt could give a question away: all that is asked, and the question alone."""
        alone = example.fields.get(self.fields.question) if self.question_template is not None else example.question
        return list(dict.fromkeys([example.asked, *([alone] if isinstance(alone, str) and alone.strip() else [])]))

    def _put_in(self, row: SourceRow, name: str) -> str:
        if name == QUESTION_NAME:
            return _text(row, "question", self.fields.question)
        found = choices.choices_in(row.columns) if self.choices else None
        if found and name in (found[0], f"{found[0]}.text"):
            return choices.lettered(found[1])
        value = _value(row, "prompt", name)
        if value is None:
            return ""
        values = value if isinstance(value, list | tuple) else [value]
        lines = [
            [*each] if isinstance(each, list | tuple) else [each] for each in values
        ]  # HotpotQA: lists of sentences
        if any(isinstance(each, Mapping | list | tuple) or is_missing(each) for line in lines for each in line):
            inside = f"{name}.{next(iter(value))}" if isinstance(value, Mapping) and value else "context.text"
            raise TaskError(
                f"{row.place}: the column {name!r} of the prompt holds {str(value)[:60]!r}, which is no text: fill it "
                f"in, or name the text by its path, as in {{{inside}}}."
            )
        return "\n".join(
            " ".join(as_csv_text(each).strip() if line[1:] else as_csv_text(each) for each in line) for line in lines
        )

    def answers(self, row: SourceRow) -> tuple[str, ...]:
        """Read all right answers; () if the task has no references. Raises TaskError as `question` does."""
        column = self.fields.reference
        if column is None or row.merged:
            return row.merged
        value = _value(row, "reference", column)
        if is_missing(value):
            raise TaskError(f"{row.place}: the reference is {value}: fill it in or remove the row.")
        if not isinstance(value, str | int | float | list | tuple | Mapping):
            raise TaskError(_no_text(row, "reference", value))
        if self.as_json:
            value = _json_text(row, value)
        try:
            texts = accepted_texts(value)
        except ValueError as error:
            raise TaskError(f"{row.place}: the reference is no text: it holds {error} (fields.reference).") from error
        if self.choices == "numbers":
            texts = [choices.letter_of(text) for text in texts]
        return tuple(_usable(row, "reference", text) for text in texts or [""])

    def example(self, row: SourceRow, split: str) -> Example:
        """Make the Example of a row. Raises TaskError as `question` does."""
        answers, columns, column = self.answers(row), row.columns, self.fields.reference
        if column is not None and (column in row.labels or row.merged):
            columns = {**columns, column: answers[0] if len(answers) == 1 else list(answers)}
        several = answers if len(answers) > 1 else ()
        thinking, reference = split_thinking(answers[0]) if answers else ("", None)
        if thinking and not reference:
            raise TaskError(f"{row.place}: the reference ends inside its thinking: add the answer after </think>.")
        several = tuple(split_thinking(each)[1] for each in several)
        question = self.question(row)
        return Example(self._id(row, split), question, reference, columns, several, thinking, row.history)

    def _id(self, row: SourceRow, split: str) -> str:
        column = self.fields.id or "id"
        value = row.columns.get(column)
        if self.fields.id is False or (value is None and self.fields.id is None):
            return f"{split}-{row.number}"
        if isinstance(value, bool) or not isinstance(value, str | Integral) or not str(value).strip():
            raise TaskError(
                f"{row.place}: the id in the column {column!r} is {value!r}: give each row a text or a number, or "
                "write `id: false` under `fields` so that rows are numbered."
            )
        return str(value)


def prepared(
    rows: Mapping[str, Sequence[SourceRow]],
    fields: Fields,
    reward: Reward,
    prompt_of: Callable[[Callable[[str], str]], Prompt],
) -> tuple[dict[str, list[SourceRow]], RowReader, Prompt, list[str]]:
    """Find out how the rows of a task are read.

    Args:
        rows: Rows of each source.
        fields: The columns that task.yaml names.
        reward: Its checks may name the column of the right answers.
        prompt_of: Gives the start prompt, after its argument has changed the question template.

    Returns:
        The rows with the columns of known formats, their reader, the start prompt with `{question}` alone, and notes.

    Raises:
        TaskError: If a row is not in the format of the others, or the prompt uses what is no column.
    """
    found = {split: list(values) for split, values in rows.items()}
    notes: list[str] = []
    columns = list(dict.fromkeys(str(name) for row in found["train"] for name in row.columns))
    templates: list[str | None] = [None]

    def folded(template: str) -> str:
        whole, question = fold(template, columns)
        templates.append(question)
        return whole

    prompt = prompt_of(folded)
    named = frozenset(each.name for each in variables(templates[-1] or "", columns))
    first = next((row.columns for values in found.values() for row in values), {})
    if "question" not in fields.model_fields_set and (kind := in_known_format(first)):
        found = {split: converted(values, kind, named) for split, values in found.items()}
        every = [row for values in found.values() for row in values]
        if (system := own_system(every)) and not prompt.system:
            prompt = replace(prompt, system=system)
        else:
            found = {split: [with_system(row) for row in values] for split, values in found.items()}
        notes.append(f"The rows are read as {kind}.")
        if any(role == "assistant" for values in found.values() for row in values for role, _ in row.history):
            notes.append("Rows hold several turns: weights learn the last assistant turn, and earlier ones are asked.")
    fields, more = _with_reference(fields, found["train"][0].columns if found["train"] else {}, reward)
    by, advice = _choices(found["train"], fields, named)
    as_json = any(isinstance(check, JsonEqual) for check in reward.checks)
    return found, RowReader(fields, templates[-1], by, as_json), prompt, notes + more + advice


def _choices(rows: Sequence[SourceRow], fields: Fields, named: Iterable[str]) -> tuple[choices.Kind | None, list[str]]:
    """Find out how references name the choices of their rows. Raises TaskError if they number what is not asked."""
    column = fields.reference
    if column is None or not rows or (found := choices.choices_in(rows[0].columns)) is None:
        return None, []
    pairs = ((row.columns, _value(row, "reference", column)) for row in rows if has_column(row.columns, column))
    kind, (name, _) = choices.kind_of(pairs), found
    asked = any(each.split(".")[0] == name for each in named)
    if kind == "numbers" and not asked:
        raise TaskError(
            f"{rows[0].place}: the reference is the number of one of the {name}, which are not asked: put {{{name}}} "
            "into the question template of the prompt."
        )
    if kind is None or not asked:
        return None, []
    letter = "the reference is the letter of its number" if kind == "numbers" else "the reference is one of them"
    return kind, [f"The {name} are asked with the letters A, B, ...; {letter}."]


def _with_reference(fields: Fields, first: Mapping[str, Any], reward: Reward) -> tuple[Fields, list[str]]:
    """Take the column of the right answers for the reference, if task.yaml names none and there is no `reference`."""
    named = [getattr(check, "field", "reference") for check in reward.checks]
    checked = [name for name in named if name != "reference"]
    named_first = (*dict.fromkeys(checked), *_ANSWER_COLUMNS)
    candidates = [name for name in named_first if has_column(first, name) and column_value(first, name) is not None]
    if fields.reference is None:
        return fields, [
            f"No row has a reference (reference: null): weights learn verified replies alone; `reference: {name}` "
            "would teach them the right answers."
            for name in candidates[:1]
        ]
    if "reference" in fields.model_fields_set or "reference" in first or not candidates:
        return fields, []
    if len(set(checked)) > 1:
        return fields, []
    note = f"The column {candidates[0]!r} is the reference; of several right answers weights learn the first."
    return fields.model_copy(update={"reference": candidates[0]}), [note]


def examples_of(split: str, rows: Sequence[SourceRow], reader: RowReader, reward: Reward) -> tuple[Example, ...]:
    """Make the Examples of a split. Raises TaskError if it has no rows, or a row cannot be read or scored."""
    if not rows:
        raise TaskError(f"The split {split!r} has no rows: add rows, or raise its share under `split`.")
    examples = []
    for row in rows:
        example = reader.example(row, split)
        if problem := reward.problem(example):
            raise TaskError(f"{row.place}: {problem}.")
        examples.append(example)
    return tuple(examples)


def refuse_one_question(rows: Mapping[str, Sequence[SourceRow]], reader: RowReader) -> None:
    """Raise TaskError if every row asks the same question, while another column differs."""
    every = [row for values in rows.values() for row in values]
    if len(every) < 2 or len({reader.asked(row) for row in every}) > 1:
        return
    roles = {reader.fields.question, reader.fields.reference, "id", "output", *_PAIRS}
    others = [name for name in every[0].columns if name not in roles and _differs(every, name)]
    if others:
        raise TaskError(
            f"All {len(every)} rows ask the same question ({reader.question(every[0])[:60]!r}), and the column "
            f"{others[0]!r} is not asked: put it into the question template of the prompt, as in "
            f"{{question}} and {{{others[0]}}}."
        )


def _differs(rows: Iterable[SourceRow], name: str) -> bool:
    return len({str(row.columns.get(name)) for row in rows}) > 1


def _value(row: SourceRow, role: str, path: str) -> Any:
    """Read a column; numbers of labels become their names. Raises TaskError if there is no such column."""
    try:
        value = plain(column_value(row.columns, path))
    except KeyError:
        hint = ", or write `reference: null` if the task has no references" if role == "reference" else ""
        where = "name another column in the prompt" if role == "prompt" else f"name the column under fields.{role}"
        if role == "reference" and in_dialogue(row.columns):
            where = f"the dialogue ends with a user turn: end it with the assistant's answer, or {where}"
        raise TaskError(
            f"{row.place}: no field {path!r} (found: {', '.join(map(str, row.columns))}): {where} in task.yaml{hint}."
        ) from None
    if names := row.labels.get(path):
        return [_label(each, names) for each in value] if isinstance(value, list) else _label(value, names)
    return value


def _label(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return names[value] if 0 <= value < len(names) else None  # -1: no label
    return value


def _text(row: SourceRow, role: str, column: str) -> str:
    """Read a column that must hold text."""
    value = _value(row, role, column)
    if not isinstance(value, str):
        raise TaskError(_no_text(row, role, value))
    return _usable(row, role, value)


def _json_text(row: SourceRow, value: Any) -> Any:
    """Write an object as JSON. A list may be one value or several right answers, unless it holds texts of JSON."""
    if isinstance(value, list | tuple) and not all(isinstance(each, str) for each in value):
        raise TaskError(
            f"{row.place}: the reference is a list, which may be one JSON value or several right answers: write the "
            "value as text, as in '[1, 2]', or each right answer as a text of JSON (fields.reference)."
        )
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else value


def _no_text(row: SourceRow, role: str, value: Any) -> str:
    return (
        f"{row.place}: the {role} {str(value)[:80]!r} has the type {type(value).__name__}, but text is needed: "
        "quote the value, or convert the column to text."
    )


def _usable(row: SourceRow, role: str, text: str) -> str:
    if not text.strip():
        raise TaskError(f"{row.place}: the {role} is empty: fill it in or remove the row.")
    if _SURROGATE.search(text):
        raise TaskError(f"{row.place}: the {role} holds an unpaired surrogate, which tokenizers reject: remove it.")
    return unix_lines(text)
