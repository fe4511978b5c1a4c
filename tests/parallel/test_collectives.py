"""Collectives in real process groups: what they compute, how they are timed, and what is printed."""

from __future__ import annotations

import math
import socket
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import distributed

from depthgauge import environment
from depthgauge.parallel import Group, ParallelError, collectives, launch
from depthgauge.parallel.__main__ import main, shown
from depthgauge.parallel.collectives import bus_share, links, measure, moved, sizes_between, table

ALL = (*collectives.NAMES, "broadcast")
LATE = 0.03  # seconds


def looked_at(group: Group) -> dict[str, object]:
    """What one rank sees: each collective's result, durations, and durations where rank 1 alone is late."""
    results = {}
    for name in ALL:
        prepared = collectives.prepare(group, name, 10)
        prepared.given.fill_(group.rank + 1)
        prepared.call()
        results[name] = prepared.result.tolist()
    frame = measure(group, (4, 4096, 1 << 20), rounds=2, names=ALL)
    plain = collectives.prepare

    def late(group: Group, name: str, size: int, within: collectives.Buffers) -> collectives.Prepared:
        prepared = plain(group, name, size, within)
        calls = [prepared.call, *([lambda: time.sleep(LATE)] if group.rank == 1 else [])]
        return collectives.Prepared(lambda: [call() for call in calls], prepared.given, prepared.result)

    collectives.prepare = late
    after = measure(group, iter([8]), rounds=1, names=["broadcast"])
    collectives.prepare = plain
    return {"results": results, "frame": frame, "late": after, "printed": printed()}


def printed() -> tuple[int, str]:
    """What the command line prints in this rank, which torchrun has started, and whose group is there already."""
    words = ["--least", "64", "--most", "64K", "--rounds", "6", "--collective", "all_reduce"]
    with mock.patch.multiple(distributed, init_process_group=mock.DEFAULT, destroy_process_group=mock.DEFAULT):
        result = CliRunner().invoke(main, words)
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def ranks() -> tuple[dict[str, object], ...]:
    outcome = launch(f"{__file__}:looked_at", ranks=2, limit=60)
    assert outcome.well, outcome.why
    return outcome.answers


@pytest.mark.alone
def test_collectives_compute_what_they_are_named_for(ranks: tuple[dict[str, object], ...]) -> None:
    first, second = (answer["results"] for answer in ranks)
    assert first["all_reduce"] == second["all_reduce"] == [3.0] * 3
    assert first["broadcast"] == second["broadcast"] == [1.0] * 3
    assert first["reduce_scatter"] == second["reduce_scatter"] == [3.0] * 2
    assert first["all_gather"] == second["all_gather"] == [1.0, 1.0, 2.0, 2.0]


@pytest.mark.alone
def test_ranks_agree_on_durations_and_each_case_has_every_round(ranks: tuple[dict[str, object], ...]) -> None:
    frame = ranks[0]["frame"]
    pd.testing.assert_frame_equal(frame, ranks[1]["frame"])
    assert list(frame.columns) == ["collective", "bytes", "round", "seconds", "ranks"]
    assert set(frame["ranks"]) == {2}
    counts = frame.groupby(["collective", "bytes"]).size()
    assert set(counts) == {2}
    assert [size for name, size in counts.index if name == "all_reduce"] == [4, 4096, 1 << 20]
    assert [size for name, size in counts.index if name == "all_gather"] == [8, 4096, 1 << 20]
    assert frame["seconds"].between(1e-7, 10).all()


@pytest.mark.alone
def test_the_slowest_rank_counts(ranks: tuple[dict[str, object], ...]) -> None:
    """Rank 0 sends a broadcast and goes on; rank 1 comes later."""
    assert all((answer["late"]["seconds"] >= LATE).all() for answer in ranks)


@pytest.mark.cuda
@pytest.mark.alone
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_a_single_rank_is_timed_as_well() -> None:
    outcome = launch(measure, (4, 1 << 20), 2, ranks=1, device="cuda")
    assert outcome.well, outcome.why
    assert len(outcome.answers[0]) == 3 * 2 * 2
    assert (outcome.answers[0]["seconds"] > 0).all()


def made(ranks: int, alpha: float = 1e-4, beta: float = 1e-9) -> pd.DataFrame:
    """Durations that follow the formula of a ring."""
    steps = max(1, ranks - 1)  # one rank alone takes some time as well
    return pd.DataFrame([
        {"collective": name, "bytes": size, "round": place, "ranks": ranks,
         "seconds": steps * (alpha + beta * size / ranks) * (2 if name == "all_reduce" else 1)}
        for name in ALL for size in sizes_between(16, 1 << 20) for place in range(6)
    ])  # fmt: skip


def test_bandwidths_are_those_of_nccl_tests() -> None:
    """Both together: https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md."""
    found = table(made(4, alpha=0.0)).set_index(["collective", "bytes"])
    for name, share in {"all_reduce": 1.5, "reduce_scatter": 0.75, "all_gather": 0.75, "broadcast": 1.0}.items():
        row = found.loc[(name, 1024)]
        assert bus_share(name, 4) == share
        assert row["algorithm_bandwidth"] == pytest.approx(1024 / row["seconds"])
        assert row["bus_bandwidth"] == pytest.approx(share * row["algorithm_bandwidth"])
        if name != "broadcast":  # without alpha a ring's bus bandwidth is 1 / beta at every size
            assert row["bus_bandwidth"] == pytest.approx(1e9)
            assert row["fitted"] == pytest.approx(row["seconds"])
        else:
            assert math.isnan(row["fitted"])


def test_one_line_goes_through_all_numbers_of_ranks() -> None:
    found = links(pd.concat([made(1), made(2), made(4)]))
    assert set(found) == set(collectives.NAMES)
    for name, link in found.items():
        assert link.name == name
        assert link.alpha.value == pytest.approx(1e-4, rel=1e-6)
        assert link.beta.value == pytest.approx(1e-9, rel=1e-6)
        assert link.alpha.n == 2 * len(sizes_between(16, 1 << 20))
    assert links(made(1)) == {}
    assert np.isnan(table(made(1))["fitted"]).all()


def test_sizes_are_whole_numbers_on_each_rank() -> None:
    assert sizes_between(4, 1000, 4) == (4, 16, 64, 256)
    assert sizes_between(4, 4) == (4,)
    assert sizes_between(8, 24, 1.5) == (8, 12, 20)
    assert [moved("all_reduce", size, 3) for size in (4, 10, 12)] == [4, 12, 12]
    assert [moved("all_gather", size, 3) for size in (4, 12, 13)] == [12, 12, 24]
    for wrong in (lambda: sizes_between(2, 8), lambda: sizes_between(8, 4), lambda: sizes_between(4, 8, 1.0)):
        with pytest.raises(ValueError, match="was expected"):
            wrong()
    with pytest.raises(ParallelError, match="'reduce' is no collective that is timed: name all_reduce, "):
        collectives.prepare(Group(0, 1, torch.device("cpu")), "reduce", 8)


@pytest.mark.alone
def test_rank_0_alone_prints(ranks: tuple[dict[str, object], ...]) -> None:
    code, first = ranks[0]["printed"]
    assert code == 0
    assert ranks[1]["printed"] == (0, "")
    lines = first.splitlines()
    assert lines[0].startswith("2 ranks, torch ")
    assert [line.split()[:2] for line in lines[2:8]] == [["all_reduce", str(64 * 4**power)] for power in range(6)]
    assert lines[8].startswith("all_reduce: ")
    assert "us a message" in lines[8]
    assert lines[9].endswith("if neighbours depart alike from the line they are too narrow.")
    assert lines[10].startswith("algorithm: bytes over seconds")


@pytest.mark.parametrize("rounds", [3, 5, 6])
def test_few_rounds_have_medians_without_intervals(rounds: int) -> None:
    """Five values bear no interval of a median at 95 %: six do."""
    frame = pd.DataFrame(
        {"collective": "broadcast", "bytes": 64, "round": place, "seconds": 1e-4 + 1e-6 * place, "ranks": 2}
        for place in range(rounds)
    )
    lines = list(shown(frame))
    assert not any("inf" in line for line in lines)
    assert ("medians with 95 % intervals" in lines[0]) == ("[" in lines[2]) == (rounds == 6)


@pytest.mark.alone
def test_a_rank_of_torchrun_joins_its_group(tmp_path: Path) -> None:
    """A group of one, in this process: what is timed is written, and no line is fitted."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "one",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    words = ["--least", "64", "--most", "64", "--rounds", "6", "--collective", "broadcast", "--csv"]
    result = CliRunner().invoke(main, [*words, str(tmp_path / "all.csv")], env=torchrun)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("1 rank, torch ")
    assert "a message" not in result.output
    assert len(pd.read_csv(tmp_path / "all.csv")) == 6
    assert not distributed.is_initialized()
    nowhere = CliRunner().invoke(main, [*words, str(tmp_path / "none" / "all.csv")], env=torchrun)
    assert "none/all.csv cannot be written: " in nowhere.output


@pytest.mark.parametrize(("local", "flat"), [("8", True), ("1", False), ("16", False)])
def test_ranks_of_several_machines_are_joined_by_two_kinds_of_links(local: str, *, flat: bool) -> None:
    frame = pd.DataFrame({
        "collective": "all_reduce", "bytes": [4, 4096, 1 << 20], "round": 0, "seconds": [1e-4, 2e-4, 1e-2], "ranks": 16
    })  # fmt: skip
    with mock.patch("depthgauge.parallel.__main__._launched", return_value=frame):
        result = CliRunner().invoke(main, [], env={"LOCAL_WORLD_SIZE": local})
    assert "neighbours depart alike" not in result.output  # three sizes: no interval to warn of
    assert ("16 ranks lie on several machines, 8 on this one: alpha and beta are those of one" in result.output) == flat


def test_memory_of_all_ranks_here_is_asked_for_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks that hold a whole buffer and half of one more, whatever the number of sizes and collectives."""
    monkeypatch.setattr(environment, "available_memory", lambda: 2 * 1.5 * 2**20)
    with mock.patch("depthgauge.parallel.__main__._launched", return_value=None):
        told = [CliRunner().invoke(main, ["--most", most, "--device", "cpu"]) for most in ("1M", "1048580")]
    assert [each.exit_code for each in told] == [0, 1]
    assert "lower --most" in told[1].output


def test_collectives_share_the_buffers_that_are_told() -> None:
    alone = Group(0, 1, torch.device("cpu"))
    for names in (ALL, ["broadcast"]):
        shared = collectives.buffers(alone, names, 4096)
        assert sum(each.nbytes for each in shared) == collectives.held(names, 4096, 1)
        for name in names:
            made = collectives.prepare(alone, name, 64, shared)
            places = {each.untyped_storage().data_ptr() for each in (made.given, made.result)}
            assert places <= {each.untyped_storage().data_ptr() for each in shared}
            assert made.given.numel() == made.result.numel() == 16
    assert collectives.held(["all_gather"], 16, 3) == 24 + 8  # 16 bytes are 6 numbers of 3 ranks


def test_what_cannot_be_asked_is_told_in_one_sentence() -> None:
    """Nothing is started for it."""
    for words, said in {
        ("--most", "2"): "'2' is no size from 4 bytes, such as 4, 64K or 16M",
        ("--least", "1M", "--most", "4K"): "most is 4096, where a whole number >= 1048576 was expected",
        ("--ranks", "3", "--device", "cuda"): "3 ranks on cuda take a device each",
        ("--collective", "tree"): "'tree' is not one of",
        ("--most", "600G", "--ranks", "3"): "take 800 GiB in each of 3 ranks here",
    }.items():
        result = CliRunner().invoke(main, words)
        assert result.exit_code in {1, 2}
        assert said in result.output
        assert "Traceback" not in result.output
