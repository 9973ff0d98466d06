"""Runs: create, resume, inspect, fork, replay, compare."""
