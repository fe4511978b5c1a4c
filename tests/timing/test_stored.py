"""Two stored runs held against each other."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

from depthgauge.stats import Pace
from depthgauge.timing.stored import StoredRunError, compare, history, read, readable


@pytest.fixture
def write(tmp_path):
    """A run of pytest-benchmark: name -> rounds, or None where they were not kept; references end in `!`."""

    def run(name, **benchmarks):
        told = [
            {
                "fullname": full.rstrip("_"),
                "extra_info": {"reference": True} if full.endswith("_") else {},
                "stats": {"median": 1.0, **({} if rounds is None else {"data": list(rounds)})},
            }
            for full, rounds in benchmarks.items()
        ]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"benchmarks": told, "machine_info": {}, "datetime": "x", "version": "5"}))
        return path

    return run


def rounds(median, *, spread=0.01, n=100, seed=0):
    return median * np.exp(spread * np.random.default_rng(seed).standard_normal(n))


def test_slower_faster_same(write):
    before = write("a", still_=rounds(1.0), up=rounds(1.0, seed=1), down=rounds(2.0, seed=2), even=rounds(3.0, seed=3))
    after = write("b", still_=rounds(1.0), up=rounds(1.2, seed=4), down=rounds(1.6, seed=5), even=rounds(3.0, seed=6))
    found = compare(read(before), read(after))
    assert {row.name: row.pace for row in found.rows} == {"up": Pace.SLOWER, "down": Pace.FASTER, "even": Pace.SAME}
    assert [row.name for row in found.references] == ["still"]
    up = found.rows[0]
    assert up.low < 1.2 < up.high
    assert up.ratio == pytest.approx(1.2, rel=0.01)


def test_what_the_reference_does_as_well_is_no_finding(write):
    """The whole machine is 20 % slower: a benchmark that is 20 % slower tells nothing of the code."""
    before = write("a", still_=rounds(1.0), work=rounds(1.0, seed=1), gone=rounds(1.0))
    after = write("b", still_=rounds(1.2, seed=2), work=rounds(1.2, seed=3), new=rounds(1.0))
    found = compare(read(before), read(after))
    assert found.resolution > 1.19
    assert (found.rows[0].pace, found.rows[0].why) == (
        Pace.INCONCLUSIVE,
        "within the references' difference, or too wide",
    )
    assert found.only == ("gone", "new")


def test_rounds_that_drift_within_a_session_widen_the_resolution(write):
    restless = rounds(1.0, spread=0.5)
    found = compare(
        read(write("a", still_=restless, work=rounds(1.0))), read(write("b", still_=restless, work=restless))
    )
    assert found.resolution > 1.1
    assert found.rows[0].pace is Pace.INCONCLUSIVE


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (None, rounds(1.0), "no rounds are stored; save them: --benchmark-save-data"),
        (rounds(1.0, n=8), rounds(1.0), "too few rounds for an interval"),
    ],
)
def test_what_cannot_be_compared_says_why(write, before, after, why):
    still = rounds(1.0)
    found = compare(read(write("a", still_=still, work=before)), read(write("b", still_=still, work=after)))
    assert (found.rows[0].pace, found.rows[0].why) == (Pace.INCONCLUSIVE, why)


def test_without_a_reference_nothing_is_concluded(write):
    found = compare(read(write("a", work=rounds(1.0))), read(write("b", work=rounds(9.0))))
    assert math.isnan(found.resolution)
    assert (found.rows[0].pace, found.rows[0].why) == (Pace.INCONCLUSIVE, "no reference in both runs")
    assert found.rows[0].ratio == pytest.approx(9, rel=0.01)  # it is shown all the same


def test_the_interval_covers_the_ratio_of_the_medians(write):
    """Conservative at 99 %: of 200 pairs of samples, none or the odd one misses."""
    missed = 0
    for seed in range(200):
        before, after = rounds(1.0, spread=0.1, n=40, seed=seed), rounds(1.3, spread=0.1, n=40, seed=1000 + seed)
        found = compare(read(write("a", work=before)), read(write("b", work=after))).rows[0]
        missed += not found.low <= 1.3 <= found.high
    assert missed <= 7  # binomial(200, 0.01) exceeds 7 with probability 1e-3


def test_a_run_is_found_by_its_path_or_by_the_beginning_of_its_name(write, tmp_path):
    path = write("a", work=rounds(1.0))
    storage = tmp_path / "storage"
    (storage / "machine").mkdir(parents=True)
    for name in ("0001_quick", "0002_quick", "0002_full"):
        (storage / "machine" / f"{name}.json").write_bytes(path.read_bytes())
    assert read(path).path == path
    assert read("0001", storage).path.stem == "0001_quick"
    with pytest.raises(StoredRunError, match="several runs begin with '0002': 0002_full, 0002_quick"):
        read("0002", storage)
    with pytest.raises(StoredRunError, match="there is no run '0003', neither as a file nor in "):
        read("0003", storage)
    for content in ("[]", "{", '{"benchmarks": [1]}'):
        path.write_text(content)
        with pytest.raises(StoredRunError, match="is not a run of pytest-benchmark"):
            read(path)


def test_a_history_takes_off_the_pace_of_the_references(write):
    """The second machine takes twice as long for everything, and the code became 10 % slower."""
    first = write("a", still_=rounds(1.0, spread=0), other_=rounds(4.0, spread=0), work=rounds(3.0, spread=0))
    second = write("b", still_=rounds(2.0, spread=0), other_=rounds(8.0, spread=0), work=rounds(6.6, spread=0))
    alone = write("c", work=rounds(5.0, spread=0))
    past = history([read(path) for path in (first, second, alone)])
    assert [run.pace for run in past] == pytest.approx([1, 2, 1])
    assert [run.seconds["work"] for run in past] == pytest.approx([3.0, 3.3, 5.0])
    assert history([]) == ()


def test_what_cannot_be_read_is_no_stored_run_and_the_latest_come_last(write, tmp_path):
    files = [write(name, x=rounds(1.0)) for name in "abc"]
    for age, file in enumerate(reversed(files)):
        os.utime(file, (1000 - age, 1000 - age))
    (tmp_path / "dead.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "other.json").write_text("{}")
    os.utime(tmp_path / "other.json", (1, 1))
    assert [run.path for run in readable(tmp_path.glob("*.json"), 2)] == files[1:]
    assert len(readable(tmp_path.glob("*.json"), 9)) == 3
