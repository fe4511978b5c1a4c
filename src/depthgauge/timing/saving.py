"""A pytest plugin: each benchmark is stored as it finishes.

pytest-benchmark stores a run at its end, so that one which is killed leaves nothing. This one writes the run so far,
in pytest-benchmark's own format, after each benchmark: whole or not at all. At the end pytest-benchmark's own file
takes its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from depthgauge.folder import write_whole
from depthgauge.timing.expected import BESIDE, TOOK, expected


class AsTheyFinish:
    """Keeps `unfinished_<time>.json` in pytest-benchmark's storage while a run goes on.

    Args:
        config: pytest's.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._name = f"unfinished_{datetime.now(UTC):%Y%m%d_%H%M%S}_{os.getpid()}.json"
        self._stored = 0
        self._about: dict[str, Any] = {}
        self._path: Path | None = None
        self._complete = False
        self._took: dict[str, float] = {}
        self._start = time.monotonic()
        self._full = bool(config.getoption("run_every_benchmark", False))

    def pytest_report_collectionfinish(self, items: list[Any]) -> str | list[str]:
        """Say how long the benchmarks will probably take."""
        if not items:
            return []
        path = getattr(self._config.pluginmanager.get_plugin("pytest-benchmark").storage, "path", None)
        storage = path if isinstance(path, Path) else Path.cwd() / ".benchmarks"
        return f"benchmarks: {expected((item.nodeid for item in items), full=self._full, storage=storage)}"

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add up what a benchmark takes, with all that is not timed."""
        self._took[report.nodeid] = self._took.get(report.nodeid, 0.0) + report.duration

    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Store what each benchmark took, and all else beside them, by which a later run is estimated."""
        for entry in output_json["benchmarks"]:
            if entry["fullname"] in self._took:
                entry["extra_info"][TOOK[self._full]] = round(self._took[entry["fullname"]], 3)
        output_json[BESIDE] = round(time.monotonic() - self._start - sum(self._took.values()), 3)

    def pytest_report_header(self) -> str:
        """Says where finished benchmarks are while the run goes on."""
        return f"benchmarks: stored as they finish in {self._place()}"

    def pytest_runtest_logfinish(self) -> None:
        """Stores what there is, if a benchmark has joined it."""
        session = self._config.pluginmanager.get_plugin("pytest-benchmark")
        finished = [each for each in session.benchmarks if each]
        if len(finished) == self._stored:
            return
        self._stored = len(finished)
        hook = self._config.hook
        if not self._about:  # asked once: describing the CPU takes a second
            commit = hook.pytest_benchmark_generate_commit_info(config=self._config)
            hook.pytest_benchmark_update_commit_info(config=self._config, commit_info=commit)
            self._about = {"machine_info": session.get_machine_info(), "commit_info": commit}
        report = hook.pytest_benchmark_generate_json(
            config=self._config, benchmarks=finished, include_data=True, **self._about
        )
        hook.pytest_benchmark_update_json(config=self._config, benchmarks=finished, output_json=report)
        write_whole(self._place(), json.dumps(report, indent=4, default=str).encode())

    def pytest_terminal_summary(self) -> None:
        """Comes after pytest-benchmark has stored the run."""
        self._complete = True

    def pytest_unconfigure(self) -> None:
        """Takes the file away where the run is stored."""
        if self._complete and self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    def _place(self) -> Path:
        if self._path is None:
            storage = self._config.pluginmanager.get_plugin("pytest-benchmark").storage
            # Other storages than files (a server) have no place for it.
            folder = storage.get("x").parent if isinstance(getattr(storage, "path", None), Path) else None
            self._path = (folder or Path.cwd() / ".benchmarks") / self._name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self._path
