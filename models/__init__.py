"""Shared model definitions: every study and benchmark draws on these."""
