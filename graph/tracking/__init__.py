"""Trackers: MLflow, W&B, trackio, TensorBoard and those of users follow a run by its stream."""
