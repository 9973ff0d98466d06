"""Agents: the policy as a LangChain chat model with tools, trajectories in shared batches, what is learnt of them."""
