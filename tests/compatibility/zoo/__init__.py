"""Modules, training loops and wrappers that are tried, and what a pass means."""
