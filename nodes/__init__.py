"""The nodes of the graph, one file each, named as the node."""

from nslora.nodes.approve import approve
from nslora.nodes.classify import classify
from nslora.nodes.evaluate import evaluate
from nslora.nodes.finish import finish
from nslora.nodes.lora_update import lora_update
from nslora.nodes.monitor import monitor
from nslora.nodes.textgrad_edit import textgrad_edit

__all__ = ["approve", "classify", "evaluate", "finish", "lora_update", "monitor", "textgrad_edit"]
