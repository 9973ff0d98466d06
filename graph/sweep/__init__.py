"""Sweeps: many runs in processes of their own, resumable, with one record and one table."""
