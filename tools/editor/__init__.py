"""The symbolic editor: TextGrad through any LangChain chat model, recorded and capped."""
