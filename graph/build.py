"""The wiring of the loop.

START -> evaluate -> monitor -+-> finish -> END
            ^                 +-> classify -+-> lora_update ----+
            |                               +-> textgrad_edit --+
            +---------------------------- (approve, if wanted) -+
"""

from collections.abc import Mapping
from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from nslora.graph.guard import alone
from nslora.graph.routing import after_classify, after_monitor, after_update
from nslora.graph.soundness import of_sound_states
from nslora.graph.state import AdaptationContext, AdaptationState
from nslora.nodes.approve import approve
from nslora.nodes.classify import classify
from nslora.nodes.evaluate import evaluate
from nslora.nodes.finish import finish
from nslora.nodes.lora_update import lora_update
from nslora.nodes.monitor import monitor
from nslora.nodes.textgrad_edit import textgrad_edit
from nslora.tools.errors import SettingsError

STEPS_PER_ROUND = 5  # evaluate, monitor, classify, update, approve
WITH_EFFECTS = ("evaluate", "monitor", "classify", "lora_update", "textgrad_edit", "approve", "finish")

Workflow = StateGraph[AdaptationState, AdaptationContext, AdaptationState, AdaptationState]
Graph = CompiledStateGraph[AdaptationState, AdaptationContext, AdaptationState, AdaptationState]


class _Loop(StateGraph[AdaptationState, AdaptationContext, AdaptationState, AdaptationState]):
    """The loop, which cannot be compiled with nodes that a cache would leave out."""

    def compile(self, *given: Any, **options: Any) -> Graph:
        refuse_cached(self)
        return super().compile(*given, **options)


def refuse_cached(graph: StateGraph[Any, Any, Any, Any] | Graph) -> None:
    """Raise SettingsError if a node of this package has a cache policy, its own or the graph's."""
    of_all = graph.cache_policy if isinstance(graph, CompiledStateGraph) else graph._node_defaults.cache_policy
    nodes: Mapping[str, Any] = graph.nodes
    if cached := [name for name in WITH_EFFECTS if name in nodes and (nodes[name].cache_policy or of_all)]:
        raise SettingsError(
            f"A CachePolicy is set for {', '.join(cached)}: these nodes write files into the run's folder, which a "
            "cached result would leave out. Set it for nodes of your own only; replies are cached already."
        )


def build_workflow(**nodes: Any) -> Workflow:
    """The loop as a StateGraph, not compiled: to be changed, compiled by hand, or given to `Run.create(graph=...)`.

    Args:
        **nodes: Nodes of your own in the place of those of these names, as `StateGraph.add_node` takes them.

    Raises:
        SettingsError: If the loop has no node of that name.
    """
    graph = _Loop(AdaptationState, context_schema=AdaptationContext)
    for node in (evaluate, monitor, classify, lora_update, textgrad_edit, approve, finish):
        graph.add_node(node.__name__, nodes.pop(node.__name__, None) or alone(node))
    if nodes:
        raise SettingsError(f"The loop has no node {', '.join(nodes)}: it has {', '.join(WITH_EFFECTS)}.")
    graph.add_edge(START, "evaluate")
    graph.add_edge("evaluate", "monitor")
    for name, edge, ends in (
        ("monitor", after_monitor, ("finish", "classify")),
        ("classify", after_classify, ("lora_update", "textgrad_edit", "finish")),
        ("lora_update", after_update, ("evaluate", "approve")),
        ("textgrad_edit", after_update, ("evaluate", "approve")),
    ):
        graph.add_conditional_edges(name, of_sound_states(edge), {end: end for end in ends})
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
