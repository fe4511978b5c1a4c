"""Ends of ranks, from what they have left: every kind, without a process."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from depthgauge.parallel import End, ending, stacks

RANK = Path(ending.__file__).with_name("rank.py")
MAIN, OTHER = "0x00007f0000000001", "0x00007f0000000002"
OWN = Path(__file__).parent / "steps.py"  # no file: a place in somebody's code
C10D = "/any/site-packages/torch/distributed/distributed_c10d.py"
STACKS = {  # of the main thread, the innermost call first, as faulthandler writes them
    "in a collective": [
        (C10D, 4000, "all_reduce"), ("/any/site-packages/torch/distributed/c10d_logger.py", 83, "wrapper"),
        (OWN, 12, "work"), (RANK, 80, "_called"),
    ],
    "elsewhere": [
        ("/any/site-packages/numpy/linalg.py", 5, "solve"), (OWN, 20, "load"), (OWN, 12, "work"),
        (RANK, 80, "_called"),
    ],
    "in backward": [
        ("/any/site-packages/torch/autograd/graph.py", 800, "_engine_run_backward"),
        ("/any/site-packages/torch/_tensor.py", 600, "backward"), (OWN, 15, "work"),
    ],
    "at the end": [
        (RANK, 99, "_meet"), (RANK, 88, "_called")
    ],
}  # fmt: skip


def dump(stack: str, current: str = "") -> str:
    """What faulthandler writes of a process whose other thread watches."""
    calls = " [python] (most recent call first):\n" + "".join(
        f'  File "{file}", line {line} in {name}\n' for file, line, name in STACKS[stack]
    )
    watcher = '  File "/any/site-packages/depthgauge/parallel/agent.py", line 25 in watch\n'
    first = "Current thread" if current == "other" else "Thread"
    last = "Current thread" if current == "main" else "Thread"
    return f"{first} {OTHER} (most recent call first):\n{watcher}\n{last} {MAIN}{calls}"


def trace(*lines: str) -> str:
    return f"pid 17 thread {MAIN}\n" + "".join(lines)


IN_BARRIER = "waited in vain in barrier, called by work (steps.py:9) for 2 s"  # as WAITED
IN_ALL_REDUCE = "waited in vain in all_reduce, called by work (steps.py:12)"
STOPPED = {name: trace("called\n", dump(name, "main")) for name in STACKS}
HUNG = {name: trace("called\n", "Timeout (0:00:05)!\n", dump(name)) for name in STACKS}
WAITED = {"status": "waited", "message": "for 2 s", "where": "in barrier, called by work (steps.py:9)", "waits": True}
RETURNED = trace("called\n", "returned\n", dump("at the end", "main"))
LATE = trace("called\n", "returned\n", "Timeout (0:00:05)!\n", dump("at the end"))

ENDS = {
    "killed": ([WAITED, trace("called\n")], {1: -9}, "rank 1 died: SIGKILL"),
    "killed by a signal without a name": ([WAITED, trace("called\n")], {1: -40}, "rank 1 died: signal 40"),
    "crashed": (
        [WAITED, trace("called\n", "Fatal Python error: Segmentation fault\n\n", dump("elsewhere", "main"))],
        {1: -11},
        "rank 1 died in load (steps.py:20): Segmentation fault",
    ),
    "exited": ([WAITED, trace("called\n")], {1: 3}, "rank 1 died: exit code 3"),
    "exited as if all were well": ([WAITED, trace("called\n")], {}, "rank 1 ended without an answer"),
    "raised": (
        [WAITED, {"status": "raised", "message": "ValueError: no", "where": "in work (steps.py:12)"}],
        {0: 1, 1: 1},
        "rank 1 raised in work (steps.py:12): ValueError: no",
    ),
    "raised, and the other was stopped": (
        [STOPPED["in a collective"], {"status": "raised", "message": "ValueError: no", "where": ""}],
        {1: 1},
        "rank 1 raised: ValueError: no",
    ),
    "hung while another waited": (
        [WAITED, STOPPED["elsewhere"]],
        {0: 1},
        f"rank 1 hung in load (steps.py:20); rank 0 {IN_BARRIER}",
    ),
    "hung, one of three": (
        [STOPPED["in a collective"], STOPPED["elsewhere"], WAITED],
        {2: 1},
        f"rank 1 hung in load (steps.py:20); rank 0 {IN_ALL_REDUCE}; rank 2 {IN_BARRIER}",
    ),
    "hung until the limit": (
        [HUNG["in a collective"], HUNG["elsewhere"]],
        {0: 1, 1: 1},
        f"rank 1 hung in load (steps.py:20) for more than 5 s; rank 0 {IN_ALL_REDUCE} for more than 5 s",
    ),
    "hung while the other had returned": (
        [HUNG["elsewhere"], LATE],
        {0: 1, 1: 1},
        "rank 0 hung in load (steps.py:20) for more than 5 s",
    ),
    "returned early": (
        [RETURNED, WAITED],
        {1: 1},
        f"rank 0 returned while others waited for it; rank 1 {IN_BARRIER}",
    ),
    "nobody to blame": (
        [STOPPED["in backward"], WAITED],
        {1: 1},
        f"rank 0 waited in vain in backward, called by work (steps.py:15); rank 1 {IN_BARRIER}",
    ),
    "never started": ([{"status": "waited", "message": "for the others"}, None], {0: 1}, "rank 1 never started"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_who_ended_a_group_is_told_from_what_the_ranks_left(name: str, tmp_path: Path) -> None:
    left, codes, said = ENDS[name]
    for rank, each in enumerate(left):
        if isinstance(each, dict):
            (tmp_path / f"end-{rank}.json").write_text(json.dumps(each))
        if each is not None:
            (tmp_path / f"trace-{rank}.txt").write_text(each if isinstance(each, str) else trace("called\n"))
    (tmp_path / "failures-99.json").write_text(json.dumps(codes))
    ends = ending.read(tmp_path, len(left), 5)
    assert ending.why(ends).startswith(said)
    assert [end.rank for end in ends] == list(range(len(left)))
    assert {end.pid for end in ends} <= {17, None}
    assert not re.search("agent|watch", ending.why(ends)), "the watching thread is nobody's place"


@pytest.mark.parametrize(
    ("device", "seconds", "said"),
    [
        ("cuda", 3.0, f"rank 1 hung in load (steps.py:20); rank 0 {IN_ALL_REDUCE} for 2 s"),
        ("cuda", 1.0, "rank 0 died in all_reduce, called by work (steps.py:12): Aborted"),
        ("cpu", 3.0, "rank 0 died in all_reduce, called by work (steps.py:12): Aborted"),
    ],
)
def test_a_rank_that_nccl_aborts_has_waited(device: str, seconds: float, said: str, tmp_path: Path) -> None:
    """Its watchdog does so to one whose collective has waited for all of its time."""
    (tmp_path / "asked.json").write_text(json.dumps({"device": device, "patience": 2.0}))
    (tmp_path / "trace-0.txt").write_text(trace("called\n", "Fatal Python error: Aborted\n\n", dump("in a collective")))
    (tmp_path / "trace-1.txt").write_text(STOPPED["elsewhere"])
    (tmp_path / "failures-99.json").write_text(json.dumps({0: -6, 1: -15}))
    (tmp_path / "called-0").touch()
    os.utime(tmp_path / "called-0", (1000.0, 1000.0))
    os.utime(tmp_path / "trace-0.txt", (1000.0 + seconds, 1000.0 + seconds))
    assert ending.why(ending.read(tmp_path, 2, 5)) == said


def test_ranks_that_had_to_be_stopped_have_hung_where_they_were(tmp_path: Path) -> None:
    (tmp_path / "trace-0.txt").write_text(trace(dump("elsewhere", "other")))
    assert str(ending.read(tmp_path, 1, 5)[0]) == "rank 0 was stopped in load (steps.py:20), as another had ended"
    assert str(ending.read(tmp_path, 1, 5, late=True)[0]) == "rank 0 hung in load (steps.py:20)"


def test_of_groups_that_ended_well_nobody_is_to_blame() -> None:
    ends = (End(0, "ok"), End(1, "ok"))
    assert ending.culprit(ends) is None
    assert ending.why(ends) == ""


def test_a_wait_in_the_users_own_line_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("going = reduce()\ngoing.wait()\nload()\n")
    assert [stacks.waits([stacks.Call(str(file), line, "work")]) for line in (1, 2, 3)] == [False, True, False]


def test_an_error_is_placed_in_the_users_own_code() -> None:
    def work() -> None:
        json.loads("no json")

    with pytest.raises(ValueError, match="Expecting value") as caught:
        work()
    assert re.fullmatch(r"in work \(test_ending.py:\d+\)", stacks.where(stacks.raised(caught.value)))
