"""Figures of a session, each one specification for interactive HTML, SVG and PNG: `catalogue` says which there are."""
