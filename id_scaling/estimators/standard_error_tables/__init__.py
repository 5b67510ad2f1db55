"""Simulated spreads over asymptotic standard errors, a module a method so that one can change alone."""
