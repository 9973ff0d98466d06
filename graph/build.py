"""The wiring of the loop.

START -> evaluate -> monitor -+-> finish -> END
            ^                 +-> classify -+-> lora_update ----+
            |                               +-> textgrad_edit --+
            +---------------------------- (approve, if wanted) -+
"""

from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from nslora.graph.guard import alone
from nslora.graph.routing import after_classify, after_monitor, after_update
from nslora.graph.state import AdaptationContext, AdaptationState
from nslora.nodes.approve import approve
from nslora.nodes.classify import classify
from nslora.nodes.evaluate import evaluate
from nslora.nodes.finish import finish
from nslora.nodes.lora_update import lora_update
from nslora.nodes.monitor import monitor
from nslora.nodes.textgrad_edit import textgrad_edit

STEPS_PER_ROUND = 5  # evaluate, monitor, classify, update, approve

Workflow = StateGraph[AdaptationState, AdaptationContext, AdaptationState, AdaptationState]
Graph = CompiledStateGraph[AdaptationState, AdaptationContext, AdaptationState, AdaptationState]


def build_workflow() -> Workflow:
    """The loop as a StateGraph, not compiled: to be changed, compiled by hand, or given to `Run.create(graph=...)`."""
    graph = StateGraph(AdaptationState, context_schema=AdaptationContext)
    for node in (evaluate, monitor, classify, lora_update, textgrad_edit, approve, finish):
        graph.add_node(node.__name__, alone(node))
    graph.add_edge(START, "evaluate")
    graph.add_edge("evaluate", "monitor")
    graph.add_conditional_edges("monitor", after_monitor, {name: name for name in ("finish", "classify")})
    graph.add_conditional_edges(
        "classify", after_classify, {name: name for name in ("lora_update", "textgrad_edit", "finish")}
    )
    for update in ("lora_update", "textgrad_edit"):
        graph.add_conditional_edges(update, after_update, {name: name for name in ("evaluate", "approve")})
    graph.add_edge("approve", "evaluate")
    graph.add_edge("finish", END)
    return graph


def build_graph(**compile_options: Any) -> Graph:
    """The compiled graph of the loop.

    Args:
        **compile_options: Of LangGraph's `StateGraph.compile`: checkpointer (a run can be resumed, inspected, replayed
            and forked only with one), store, cache, interrupt_before, interrupt_after, name, ...
    """
    return build_workflow().compile(**{"name": "nslora", **compile_options})
