"""Errors. Each message says in one sentence what came, what was wanted and what to do.

A failed update (`EditorError`, `DivergedError`, `BudgetError`, `TooLongError`) is recorded as data and the loop
continues. A `PromptError` goes back to the editor or the user. All others end the run; a `StoppedError` ends it so that
it can be resumed.
"""

from collections.abc import Sequence
from typing import Any


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# A RuntimeError, because LangGraph's server passes the message of no other exception on to its clients.
class NsloraError(RuntimeError):
    """Base of all errors of this package."""


class TaskError(NsloraError):
    """A task cannot be read. The message names file, line and field."""


class RewardError(NsloraError):
    """A check does not exist, raised, or did not return a number in [0, 1]. The message names the row."""


class UnreachableRewardError(RewardError):
    """A reward function met a failure that passes (HTTP 429, 5xx, a time-out) at every try. Wait, then resume."""


class SettingsError(NsloraError):
    """A setting is unknown or out of range."""


class ModelError(NsloraError):
    """A model or an adapter cannot be found, loaded or run."""


class TooLongError(ModelError):
    """A row does not fit the model's context with this prompt and reply; a shorter prompt may help."""


class PromptError(NsloraError):
    """A prompt document is rejected. The current prompt stays."""


class EditorError(NsloraError):
    """The symbolic editor returned no usable edit. The loop records a failed edit and continues."""


class DivergedError(NsloraError):
    """The loss of a training job became non-finite or exceeded its bound; the adapter is dropped."""


class BudgetError(NsloraError):
    """An update exceeded the run's budget. It is recorded as failed, and the run ends with the current candidate."""


class RunError(NsloraError):
    """A run's folder cannot be created, opened, locked or continued."""


class StoppedError(RunError):
    """A run stopped before its end, with every finished step kept: remove the cause and resume it."""


class EditorCallError(StoppedError):
    """A call of the editor's chat model failed: key, quota, server, network.

    That is no edit and no evidence about prompts: no round is counted, and the run stops before more is spent.
    """


class UnfinishedError(StoppedError):
    """A policy stopped in the middle of some replies or losses.

    Attributes:
        indices: Places, among the dialogues, of those that came.
        generated: Those replies or losses, to be kept.
    """

    def __init__(self, message: str, indices: Sequence[int], generated: Any) -> None:
        super().__init__(message)
        self.indices, self.generated = tuple(indices), generated


class LostRoundsError(StoppedError):
    """Checkpoints that held the records of rounds were pruned or have expired. The message names the command that
    brings the records back.
    """


class ExportError(NsloraError):
    """A result cannot be exported, served or pushed. Nothing half written is left."""


class DamagedError(RunError):
    """A file of a run was changed, truncated or deleted since it was written. The message names the file."""
