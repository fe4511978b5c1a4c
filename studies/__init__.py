"""One folder a study, one file a part. What has a module-level `STUDY` is found by being here."""
