"""One file a study. A file here with a module-level `STUDY` is found by being here."""
