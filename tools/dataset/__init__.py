"""Training data: the rows that each update learns from, and the remade data of a new prompt."""
