"""What a tracker of one's own is made of: `track="package.module:Class"`."""

from nslora.graph.tracking.tracker import Artifact, Entry, Started, Status, TrackedRun, Tracker

__all__ = ["Artifact", "Entry", "Started", "Status", "TrackedRun", "Tracker"]
