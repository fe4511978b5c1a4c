"""`probe.watch` in the loops of other packages: `integrations.huggingface` and `integrations.lightning`."""
