"""Shared types: base of all settings, row, chat turn, kinds of update, conversion to records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all settings: immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Turns = tuple[tuple[str, str], ...]  # (role, text) of each


@dataclass(frozen=True)
class Example:
    """One row of a task: a dialogue that ends with a question. Most rows have one turn alone.

    Attributes:
        id: Unique in the task: the row's own id, or "<split>-<number of the row in its source, from 1>".
        question: Text of the last user turn.
        reference: Text; None if the task has no references. Weights learn it.
        fields: All columns, for checks that name one.
        answers: All right answers, `reference` first, if there are several: a reply to any of them is right.
        thinking: What stands before the reference, up to `</think>`; "" without thinking.
        history: Turns before the question, as (role, text): perhaps a system turn, then user and assistant in turn.
        trajectory: What an agent did for this row (`tools/trajectory.py`), while a reply to it is scored; else None.
    """

    id: str
    question: str
    reference: str | None
    fields: Mapping[str, Any]
    answers: tuple[str, ...] = ()
    thinking: str = ""
    history: Turns = ()
    trajectory: Any = None

    @property
    def asked(self) -> str:
        """All that is asked, as one text: the question, after the turns before it."""
        return transcript(self.history, self.question)

    @property
    def target(self) -> str | None:
        """The reply that weights learn from the row itself: the reference, after its thinking."""
        return None if self.reference is None else self.thinking + self.reference


Message = dict[str, str]
Dialogue = Sequence[Message]
Kind = Literal["lora", "textgrad"]
KINDS: tuple[Kind, ...] = ("lora", "textgrad")
T = TypeVar("T")


def transcript(history: Turns, question: str) -> str:
    """Write a dialogue as one text; a question without history stays as it is."""
    turns = (*history, ("user", question)) if history else ()
    return "\n\n".join(f"{role.capitalize()}: {text}" for role, text in turns) or question


def answered(dialogue: Dialogue, reply: str) -> list[Message]:
    """Return the dialogue with its reply as the last turn."""
    return [*dialogue, {"role": "assistant", "content": reply}]


def as_record(value: Any) -> Any:
    """Convert dataclasses to dicts, recursively; keep other values.

    The class attribute `RECORD_NAMES` maps a field to its key on disk, so that old records stay readable when a field
    gets a new name.
    """
    if is_dataclass(value) and not isinstance(value, type):
        names = getattr(value, "RECORD_NAMES", {})
        return {names.get(each.name, each.name): as_record(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {key: as_record(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(as_record(each) for each in value)
    return value


def from_record(kind: type[T], record: Mapping[str, Any]) -> T:
    """Invert `as_record` for a flat dataclass. Raises TypeError if a field is missing or unknown."""
    names = {recorded: name for name, recorded in getattr(kind, "RECORD_NAMES", {}).items()}
    return kind(**{names.get(key, key): value for key, value in record.items()})
