"""What everything here agrees on: the base of all settings, a row, a chat turn, the two kinds of update."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
