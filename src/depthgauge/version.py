"""The versions of the package, and of what it stores."""

__version__ = "0.2.0"
SCHEMA = 1
"""The form of `run.json` and of chunks' files."""
