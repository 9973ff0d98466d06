"""The graph for LangGraph's own server: `langgraph dev` reads langgraph.json, which names `make_graph`.

The server brings its own checkpoints, so the graph has none; it calls the factory at every request, so nothing is
loaded here. Make the run's folder first (`Run.create`), then start a thread with `{}` as its input and
`{"folder": ...}` as its context.
"""

from nslora.graph.build import Graph, build_graph


def make_graph() -> Graph:
    """The graph without a checkpointer."""
    return build_graph()
