"""What one run works with: settings, stores, budget, report."""
