"""The symbolic editor: TextGrad through any LangChain chat model, with a record of its calls and caps on its cost."""
