"""The page of a run: one HTML file that needs no network, written from the run's folder."""
