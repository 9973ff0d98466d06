"""Everything that does not know that a graph exists."""
