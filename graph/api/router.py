"""What a strategy of your own is given, and what it answers: `strategy="package.module:function"`."""

from nslora.tools.classifier.attribution import Need
from nslora.tools.router.inputs import RouterDecision, RouterInput, Strategy
from nslora.tools.router.monitoring_signal import Progress, Update
from nslora.tools.router.strategies import strategy_named

__all__ = ["Need", "Progress", "RouterDecision", "RouterInput", "Strategy", "Update", "strategy_named"]
