"""Locks, logs, workers, and atomic files. Nothing here changes a number, so no fingerprint includes it."""
