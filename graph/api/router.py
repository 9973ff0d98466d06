"""What a strategy of your own is given, and what it answers: `strategy="package.module:function"`.

`evaluate` scores a strategy on recorded decision trees, without a model.
"""

from nslora.tools.classifier.attribution import Need
from nslora.tools.router.inputs import RouterDecision, RouterInput, Strategy
from nslora.tools.router.monitoring_signal import Progress, Update
from nslora.tools.router.strategies import strategy_named
from nslora.tools.router.trees import Evaluation, Node, Tree, evaluate, held_out, held_out_fit, lead, read_trees

__all__ = [
    "Evaluation",
    "Need",
    "Node",
    "Progress",
    "RouterDecision",
    "RouterInput",
    "Strategy",
    "Tree",
    "Update",
    "evaluate",
    "held_out",
    "held_out_fit",
    "lead",
    "read_trees",
    "strategy_named",
]
