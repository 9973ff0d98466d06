"""Tasks: rows in three splits, their reward and their prompt, read from files or Python."""
