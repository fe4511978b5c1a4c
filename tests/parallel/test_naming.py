"""Functions by the name that another process finds them by."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from depthgauge.parallel.naming import ParallelError, found, named


def test_a_module_that_no_path_leads_to_is_named_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest loads a test's module so; another process has the file alone."""
    path = tmp_path / "lost_trainings.py"
    path.write_text("def setup():\n    return 7\n")
    spec = importlib.util.spec_from_file_location("lost_trainings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lost_trainings", module)
    spec.loader.exec_module(module)
    name = named(module.setup)
    assert name == f"{path}:setup"
    assert found(name)() == 7


def test_a_module_on_the_path_is_named_by_its_name() -> None:
    assert named(named) == "depthgauge.parallel.naming:named"


def test_what_no_other_process_finds_is_one_sentence() -> None:
    with pytest.raises(ParallelError, match="cannot be found by name in another process: define it with def"):
        named(lambda: None)
