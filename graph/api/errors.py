"""The errors that this package raises on purpose, all of them NsloraError."""

from nslora.tools.errors import (
    BudgetError,
    DamagedError,
    DivergedError,
    EditorCallError,
    EditorError,
    LostRoundsError,
    ModelError,
    NsloraError,
    PromptError,
    RewardError,
    RunError,
    SettingsError,
    StoppedError,
    TaskError,
    TooLongError,
    UnreachableRewardError,
)

__all__ = [
    "BudgetError",
    "DamagedError",
    "DivergedError",
    "EditorCallError",
    "EditorError",
    "LostRoundsError",
    "ModelError",
    "NsloraError",
    "PromptError",
    "RewardError",
    "RunError",
    "SettingsError",
    "StoppedError",
    "TaskError",
    "TooLongError",
    "UnreachableRewardError",
]
