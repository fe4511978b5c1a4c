"""The partition of a step's time, phase by phase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pandas as pd

from depthgauge.profiling.work import OUTSIDE, PHASES, Work, phase_at
from depthgauge.trace import Trace

COMPUTING, COMMUNICATING, COPYING = "computing", "communicating", "copying"
WAITING, LAUNCHING = "waiting for the host", "launching"
_AT_ONCE = 1000  # pieces of work; no device has as many streams
STATES = (COMPUTING, COPYING, COMMUNICATING, WAITING, LAUNCHING)  # of what runs at once, the first counts


def timeline(trace: Trace, work: Sequence[Work]) -> pd.DataFrame:
    """Seconds of a step, the mean of all steps, by phase and state; they add up to the step.

    Where several things run at once, the first of `STATES` counts: copying and communicating are what computing does
    not hide. Where nothing runs, the device waits for the host until the next
    piece of work is launched, and for the launch itself after that. On a CPU the device is the host: it waits while no
    operator computes, that is for Python, dispatch and autograd's bookkeeping.

    Returns:
        Columns phase, state, seconds, share.
    """
    spans = [span for step in range(len(trace.steps)) for span in segments(trace, work, step)]
    frame = pd.DataFrame(spans, columns=["start", "end", "phase", "state"])
    seconds = (frame["end"] - frame["start"]) / max(len(trace.steps), 1)
    table = seconds.groupby([frame["phase"], frame["state"]]).sum()
    table = table.reindex(pd.MultiIndex.from_product([(*PHASES, OUTSIDE), STATES], names=["phase", "state"])).fillna(
        0.0
    )
    whole = table.sum()
    return pd.DataFrame({"seconds": table, "share": table / whole if whole else math.nan}).reset_index()


def segments(trace: Trace, work: Sequence[Work], step: int) -> list[tuple[float, float, str, str]]:
    """One step as (start, end, phase, state), without gaps or overlap."""
    span = trace.steps[step]
    mine = [piece for piece in work if piece.step == step]
    cuts = {span.start, span.end}
    for piece in mine:
        cuts |= {min(max(time, span.start), span.end) for time in (piece.start, piece.end)}
    cuts |= {
        edge for interval in trace.ranges for edge in (interval.start, interval.end) if span.start < edge < span.end
    }
    cuts |= {piece.launched for piece in mine if piece.launched and span.start < piece.launched < span.end}
    pieces: list[tuple[float, float, str, str]] = []
    mine.sort(key=lambda piece: piece.start)
    running: list[Work] = []
    ahead = 0  # of `mine`, the first that has not started
    for start, end in pairwise(sorted(cuts)):
        while ahead < len(mine) and mine[ahead].start <= start:
            running.append(mine[ahead])
            ahead += 1
        running = [piece for piece in running if piece.end > start]
        if len(running) > _AT_ONCE:
            raise ValueError(f"the trace has more than {_AT_ONCE} pieces of work at once")
        phase, state = _state(trace, start, running, mine[ahead] if ahead < len(mine) else None)
        if pieces and pieces[-1][2:] == (phase, state) and pieces[-1][1] == start:
            pieces[-1] = (pieces[-1][0], end, phase, state)
        else:
            pieces.append((start, end, phase, state))
    return pieces


def _state(trace: Trace, now: float, running: Sequence[Work], ahead: Work | None) -> tuple[str, str]:
    if running:
        piece = min(running, key=lambda operator: STATES.index(_does(operator)))
        return piece.phase, _does(piece)
    if ahead is None or ahead.launched is None:
        return phase_at(trace, now), WAITING
    return ahead.phase, LAUNCHING if ahead.launched <= now else WAITING


def _does(piece: Work) -> str:
    if piece.kind == "communication":
        return COMMUNICATING
    return COPYING if piece.name.startswith(("Memcpy", "Memset")) else COMPUTING  # as CUPTI names them
