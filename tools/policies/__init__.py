"""Policies: the model that is adapted, in this process or recorded by an earlier run."""
