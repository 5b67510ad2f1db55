"""Figures of a session. Each is one specification for interactive HTML, SVG, and PNG; `catalog` lists them."""
