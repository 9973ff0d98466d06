"""Weights, chat templates, generation and likelihood, with what they cost in FLOPs and memory."""
