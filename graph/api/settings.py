"""Settings of a run and of its parts."""

from nslora.tools.editor.settings import EditorSettings, Price
from nslora.tools.evaluation.acceptance import KeepSettings
from nslora.tools.policies.settings import DeviceSettings, EngineSettings
from nslora.tools.router.expected_gain import StrategySettings
from nslora.tools.router.monitoring_signal import SignalSettings
from nslora.tools.training.settings import LoraSettings
from nslora.tools.workspace.settings import RunSettings, TrackingSettings

__all__ = [
    "DeviceSettings",
    "EditorSettings",
    "EngineSettings",
    "KeepSettings",
    "LoraSettings",
    "Price",
    "RunSettings",
    "SignalSettings",
    "StrategySettings",
    "TrackingSettings",
]
