"""Rewards: checks, scores, and the functions that users bring."""
