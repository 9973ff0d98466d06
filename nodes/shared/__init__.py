"""What several nodes use."""
