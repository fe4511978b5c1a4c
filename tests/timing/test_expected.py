"""How long a run of the suite will take, from what earlier ones took."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from depthgauge.timing.expected import BESIDE, TOOK, expected


def store(folder: Path, name: str, beside: float, *, full: bool = False, when: int = 1, **took: float) -> None:
    entries = [
        {"fullname": each, "extra_info": {TOOK[full]: seconds}, "stats": {"data": [1.0]}}
        for each, seconds in took.items()
    ]
    path = folder / "machine" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"benchmarks": entries, BESIDE: beside}))
    os.utime(path, (when, when))


def test_each_takes_what_it_took_last_and_the_others_the_median(tmp_path: Path) -> None:
    store(tmp_path, "1", 9.0, one=1.0, two=5.0, when=1)
    store(tmp_path, "2", 7.0, two=2.0, three=9.0, when=2)
    store(tmp_path, "3", 1.0, one=100.0, full=True, when=0)  # a full run times each for longer
    (tmp_path / "machine" / "broken.json").write_text("{")
    found = expected(["one", "two", "three", "new"], storage=tmp_path)
    assert found.seconds == pytest.approx(7 + 1 + 2 + 9 + 2)
    assert str(found) == "about 21 s for 4 benchmarks (3 of them by earlier runs here)"
    assert expected(["one"], full=True, storage=tmp_path).seconds == pytest.approx(107)


def test_without_a_run_it_is_a_rough_guess(tmp_path: Path) -> None:
    few, many = (expected(map(str, range(n)), storage=tmp_path) for n in (10, 100))
    assert few.seconds < many.seconds < expected(map(str, range(100)), full=True, storage=tmp_path).seconds
    assert str(many).endswith("for 100 benchmarks (no earlier run here: a rough guess)")
