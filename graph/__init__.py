"""The loop as a LangGraph state graph: state, routing, wiring and runs."""
