"""Policies: the model that is adapted, in this process or from the record of an earlier run."""
