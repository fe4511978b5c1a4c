"""The part `faults` of the study `data_parallel`: what its analysis makes of rows, and what is planted."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from depthgauge.studies.data_parallel import STUDY, faults, planted
from depthgauge.study import Case, Rows
from depthgauge.verdict import Status

Tidy = Callable[..., pd.DataFrame]


def rows(**changed: dict[str, float]) -> list[Rows]:
    """What a sound run measures; by fault, what is otherwise."""
    made = []
    for name, fault in planted.FAULTS.items():
        case = Case.of({"fault": name, "ranks": 2, "part": "faults", "device": "cpu"})
        sound = fault.does is None
        values: dict[str, Any] = {
            "named": 1.0, "seconds": math.nan if sound else fault.time_out + 1, "processes": 3.0, "left": 0.0,
            "answers": 2.0 if sound else 0.0, **changed.get(name, {}),
        }  # fmt: skip
        made += [
            case.rows(metric, value, layer="said" if metric == "named" else None) for metric, value in values.items()
        ]
    return made


def statuses(tidy: Tidy, measured: list[Rows]) -> dict[str, Status]:
    own = {claim.id for claim in faults.PART.claims}
    verdicts = STUDY.analyse(tidy(measured)).verdicts
    return {verdict.id.partition("/")[2]: verdict.status for verdict in verdicts if verdict.id in own}


def test_faults_that_end_well_confirm_all_claims(tidy: Tidy) -> None:
    assert set(statuses(tidy, rows()).values()) == {Status.HOLDS}


@pytest.mark.parametrize(
    ("fault", "metric", "value", "refuted"),
    [
        ("hangs", "seconds", 2 + faults.SLACK + 0.1, "faults_end"),
        ("crashes", "named", 0.0, "faults_named"),
        ("killed", "left", 1.0, "faults_clean"),
        (faults.SOUND, "left", 1.0, "faults_clean"),
        (faults.SOUND, "answers", 1.0, "faults_next"),
    ],
)
def test_a_claim_is_refuted_by_one_group(tidy: Tidy, fault: str, metric: str, value: float, refuted: str) -> None:
    found = statuses(tidy, rows(**{fault: {metric: value}}))
    assert found.pop(refuted) in {Status.FAILS, Status.DEPENDS}
    assert set(found.values()) == {Status.HOLDS}


def test_one_fault_alone_decides_nothing(tidy: Tidy) -> None:
    found = statuses(tidy, [row for row in rows() if row.case["fault"] == "killed"])
    assert found.pop("faults_next") == Status.NOT_MEASURED
    assert set(found.values()) == {Status.INCONCLUSIVE}


def test_an_ended_process_does_not_run_even_before_its_parent_has_looked() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert planted.runs(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not planted.runs(child.pid)
    finally:
        child.communicate()
    assert not planted.runs(child.pid)


def test_taken_ports_are_taken_and_given_back() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with planted.taken((port,)):  # somebody has it: no error
            pass
    with planted.taken((port,)), socket.socket() as late, pytest.raises(OSError, match="in use"):
        late.bind(("127.0.0.1", port))
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))
