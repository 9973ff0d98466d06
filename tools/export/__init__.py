"""A run's pair of adapter and prompt in the formats in which models are deployed."""
