"""A report that grows while a run goes on: each study is examined once, as soon as all its rows are there.

    with Growing(directory, say=print) as growing:
        running.run(..., observe=lambda progress: growing.add(...) if progress.ended else None)
        sections = growing.sections()
    render(stored, studies, kept=sections)

Examining goes on in a process of its own, so that it stops no worker, and what an analysis sets reaches no chunk.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
