"""Judges entries in a process of its own: names in, one line of JSON out for each; a crash is an outcome."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

import torch

from zoo.catalog import ENTRIES
from zoo.contract import judge


def main() -> None:
    """Answer until standard input ends."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print goes to the other stream
    entries = {entry.key: entry for entry in ENTRIES}
    for line in sys.stdin:
        outcome = judge(entries[line.strip()])
        answers.write(json.dumps(asdict(outcome)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
