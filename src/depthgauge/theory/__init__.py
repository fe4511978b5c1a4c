"""Expectations, fixed points and exact laws that predict what a study measures."""
