"""Evaluation of a candidate: rollouts, their records, paired tests, and keep-or-drop."""
