"""The process and the machine: locks, logs, workers, atomic files. Cannot change a number, so no fingerprint has it."""
