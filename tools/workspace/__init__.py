"""What the nodes of one run work with: settings, stores, budget, report."""
