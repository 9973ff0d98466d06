"""Errors, named for the boundary that was crossed.

Each message is one sentence for the person at the keyboard: what came, what was wanted, what to do.
An update that failed (`EditorError`, `DivergedError`, `BudgetError`, `TooLongError`) is recorded as data and the loop
goes on, and a `PromptError` goes back to the editor or the person; the others end a run.
"""


def first_line(error: BaseException) -> str:
    """What an error says, shortened to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class NsloraError(Exception):
    """Base of every error that this package raises on purpose."""


class TaskError(NsloraError):
    """A task cannot be read: names the file, the line and the field."""


class RewardError(NsloraError):
    """A reward or one of its checks raised, returned no number in [0, 1], or does not exist: names the row."""


class SettingsError(NsloraError):
    """A setting is unknown or out of range."""


class ModelError(NsloraError):
    """A model or an adapter cannot be found, loaded or run."""


class TooLongError(ModelError):
    """A row, with its prompt and reply, does not fit the model's context; under another prompt it may."""


class PromptError(NsloraError):
    """A prompt document is refused, with the reason; the prompt in force stays as it was."""


class EditorError(NsloraError):
    """The symbolic editor gave nothing usable: one failed edit, which the loop records and survives."""


class DivergedError(NsloraError):
    """A training job left the finite numbers or rose above its bound; its adapter is not kept."""


class BudgetError(NsloraError):
    """An update ran out of what the run may spend; it is recorded as failed, and the run ends with what it has."""


class RunError(NsloraError):
    """A run's folder cannot be created, opened, locked or continued."""


class StoppedError(RunError):
    """A run stopped before its end, with every finished step kept: remove the cause and resume it."""


class DamagedError(RunError):
    """A file of a run was changed, cut off or lost since it was written: names the file."""
