"""What everything here agrees on: the base of all settings, a row, a chat turn, the two kinds of update, records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Example:
    """One row. id is unique in its task: the row's own, or "<split>-<number of the row in its source, from 1>".

    reference is None where the task has none; fields holds every column, for checks that name one.
    """

    id: str
    question: str
    reference: str | None
    fields: Mapping[str, Any]


Message = dict[str, str]
Dialogue = Sequence[Message]
Kind = Literal["lora", "textgrad"]
KINDS: tuple[Kind, ...] = ("lora", "textgrad")
T = TypeVar("T")


def as_record(value: Any) -> Any:
    """A dataclass as a dict, and so whatever stands inside; other values as they are.

    A field stands under its name, or under the one that the class's `RECORD_NAMES` gives it: records are a format, and
    outlive names in Python.
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
    """The inverse of `as_record` for a flat dataclass. Raises TypeError where a field is missing or unknown."""
    names = {recorded: name for name, recorded in getattr(kind, "RECORD_NAMES", {}).items()}
    return kind(**{names.get(key, key): value for key, value in record.items()})
