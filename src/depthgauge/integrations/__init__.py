"""`probe.watch` as a callback: `WatchCallback` of `integrations.huggingface` and of `integrations.lightning`."""
