"""Training data: which rows an update learns from, and rows remade under a refined prompt."""
