"""Losses of two ranks against the ideal: side by side, by DDP, by waiting, by bucket size; and their parts by trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from depthgauge import stats
from depthgauge.conditions import undecided
from depthgauge.parts import Answer
from depthgauge.questions import Question, above, agrees, judged
from depthgauge.verdict import Claim, Sentence

MARGIN = 1.05  # up to 5 % is the same
HALF = 0.5  # of the time in which gradients are exchanged
ALONE, PLAIN = {"ranks": 1, "reduction": "none"}, {"ranks": 2, "reduction": "none"}
DDP, WAITED = {"ranks": 2, "reduction": "overlapped"}, {"ranks": 2, "reduction": "waited"}
NO_PAIR = "no step of two ranks was measured that have a core or a device each"
IN_TURNS = f"medians of paired log-ratios of rounds, all in turns in one launch, order statistics, margin {MARGIN:g}"

Key = tuple[str, int, int, str, float]
"""A layout: net, ranks, batch a rank, reduction, bucket in MiB (0: the default)."""

Taken = Mapping[Key, NDArray[np.float64]]
"""Layout -> seconds by round, or a part of a step by turn."""


def compared(taken: Taken, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[tuple[str, int], stats.Comparison]:
    """(net, batch) -> seconds of layouts like `a` over those of layouts like `b`, round by round."""
    found = {}
    for net, batch in dict.fromkeys((key[0], key[2]) for key in taken):
        first, second = (
            taken.get((net, each["ranks"], batch, each["reduction"], each.get("bucket", 0.0))) for each in (a, b)
        )
        if first is not None and second is not None:
            found[net, batch] = stats.paired(first, second, log=True, margin=MARGIN, test="median")
    return found


def lost(claim: Claim, taken: Taken) -> Iterator[Answer]:
    """Compare two ranks with one alone, and DDP, its exchange and own work, with two ranks that exchange nothing."""
    asked = {("side by side", *key): c for key, c in compared(taken, PLAIN, ALONE).items()}
    asked |= {("DDP", *key): c for key, c in compared(taken, DDP, PLAIN).items()}
    question = Question.of(
        "time_lost", ("loss", "net", "batch"), asked, label="{net} at {batch}", reference="nothing lost",
        counted="rounds", family=lambda loss, **_: loss,
    )  # fmt: skip
    yield question.table()
    if not question:
        yield judged(claim, (), why=NO_PAIR)
    if beside := question.where(loss="side by side"):
        words = {True: "as long as alone within 5 % takes", False: "another time takes", None: "undecided:"}
        yield beside.verdict(
            claim, agrees, unit="times as long as alone", why=beside.listed(agrees, words, 6),
            method=f"plain training on two ranks at once over plain training on one, {IN_TURNS}",
        )  # fmt: skip
    told = {
        loss: [c.effect.value for (name, *_), c in question.members.items() if name == loss]
        for loss in ("side by side", "DDP")
    }
    if all(told.values()):
        near, far = (f"{min(values):.2f} to {max(values):.2f}" for values in told.values())
        yield Sentence(
            f"Two trainings side by side take {near} times as long as one alone; exchanging gradients makes a step "
            f"{far} times as long as that{undecided(map(agrees, question.members.values()))}.",
            claims=(claim.id,),
        )


def overlapped(claim: Claim, taken: Taken) -> Iterator[Answer]:
    """Compare a step whose backward pass waits for each bucket with DDP as it is."""
    asked = compared(taken, WAITED, DDP)
    question = Question.of(
        "overlap", ("net", "batch"), asked, label="{net} at {batch}", reference="no gain", counted="rounds"
    )
    yield question.table()
    if not question:
        yield judged(claim, (), why=NO_PAIR)
        return
    words = {True: "a step is more than 5 % faster for", False: "a step is not 5 % faster for", None: "undecided for"}
    yield question.verdict(
        claim, above, unit="times as long where it waits", why=question.listed(above, words, 6),
        method=f"a step that waits for each bucket over DDP as it is, two ranks, {IN_TURNS}",
    )  # fmt: skip


def bucketed(claim: Claim, taken: Taken) -> Iterator[Answer]:
    """Compare the default bucket size with those tried."""
    asked: dict[tuple[str, int, float], stats.Comparison] = {}
    for bucket in sorted({key[4] for key in taken} - {0.0}):
        found = compared(taken, DDP, {**DDP, "bucket": bucket})
        asked |= {(net, batch, bucket): c for (net, batch), c in found.items()}
    question = Question.of(
        "buckets", ("net", "batch", "bucket"), asked, label="{net} at {batch} with {bucket:g} MiB",
        reference="the default", counted="rounds",
    )  # fmt: skip
    yield question.table()
    if not question:
        yield judged(claim, (), why="no other bucket size was tried at this size of the study")
        return
    words = {
        False: "a step is more than 5 % faster than with the default for",
        True: "not 5 % faster for",
        None: "undecided for",
    }
    yield question.verdict(
        claim, _no_gain, unit="times as long with the default", why=question.listed(_no_gain, words, 6),
        method=f"DDP with its default over DDP with buckets of that size, two ranks, {IN_TURNS}",
    )  # fmt: skip


def _no_gain(comparison: stats.Comparison) -> bool | None:
    gains = above(comparison)
    return None if gains is None else not gains


def traced(claim: Claim, parts: Mapping[str, Taken], taken: Taken) -> Iterator[Answer]:
    """Divide a step by its traces, and tell what share of the exchange computing hides.

    Args:
        claim: that it hides more than half.
        parts: part of a step -> layout -> seconds by turn.
        taken: seconds of the steps without the profiler.
    """
    table, asked, further = [], {}, {}
    for key, computing in parts["computing"].items():
        net, ranks, batch, reduction, bucket = key
        exposed, rest, hidden = (parts[name][key] for name in ("exposed", "rest", "hidden"))
        told = {name: 1e3 * float(np.median(parts[name][key])) for name in ("computing", "hidden", "exposed", "rest")}
        collectives = float(np.median(parts["collectives"][key]))
        untraced = 1e3 * float(np.median(taken[key])) if key in taken else np.nan
        table.append({
            "net": net, "batch": batch, "layout": spelled_out(ranks, reduction, bucket), "n": len(computing), **told,
            "step": 1e3 * float(np.median(computing + exposed + rest)), "untraced": untraced,
            "collectives": collectives,
        })  # fmt: skip
        if reduction == "overlapped" and (exposed + hidden > 0).all():
            shares = hidden / (exposed + hidden)
            asked[net, batch, bucket] = stats.against(shares, HALF, test="median")
            further[net, batch, bucket] = {"collectives": collectives, "exposed_ms": told["exposed"]}
    yield "split", pd.DataFrame(table)
    question = Question.of(
        "hidden", ("net", "batch", "bucket"), asked, label="{net} at {batch} with buckets of {bucket:g} MiB",
        reference="half of it", counted="turns", family=lambda bucket, **_: bucket == 0,
    )  # fmt: skip
    yield question.table(further)
    if not question:
        yield judged(claim, (), why="no step of DDP was traced at this size of the study")
        return
    default = question.where(bucket=0.0)
    default = replace(default, label="{net} at {batch}")
    words = {
        True: "more than half of the exchange is hidden for",
        False: "less than half is shown to be hidden for",
        None: "undecided for",
    }
    if default:
        yield default.verdict(
            claim, above, unit="share of the exchange", why=default.listed(above, words, 6),
            method="share of the time of collectives in which operators run, by torch.profiler's traces of two ranks, "
            f"DDP's default buckets, a mean of ranks and steps a turn, order statistics, against {HALF:g}",
        )  # fmt: skip
        values = [c.effect.value for c in default.members.values()]
        yield Sentence(
            f"Computing hides {min(values):.0%} to {max(values):.0%} of the exchange of two ranks, with DDP's default "
            "buckets, by network and batch.",
            "where_time_goes", (claim.id,),
        )  # fmt: skip
    yield from hidden_for_what(question, taken)


def hidden_for_what(question: Question, taken: Taken) -> Iterator[Answer]:
    """Tell what the step gains where smaller buckets hide more: on a CPU, where both take one core, perhaps nothing."""
    told = []
    smallest = min((key[2] for key in question.members if key[2]), default=0.0)
    for (net, batch, bucket), smaller in question.where(bucket=smallest).members.items():
        default = question.members.get((net, batch, 0.0))
        pair = [taken.get((net, 2, batch, "overlapped", size)) for size in (bucket, 0.0)]
        if bucket and default is not None and pair[0] is not None and pair[1] is not None:
            times = stats.median(pair[0] / pair[1])
            shares = f"{smaller.effect.value:.0%} of the exchange in place of {default.effect.value:.0%}"
            told.append(f"{net} at {batch} hides {shares} and takes {times.told('.2f')} times as long")
    if told:
        others = f" (the first of {len(told)} pairs)" * (len(told) > 1)
        yield Sentence(f"With buckets of {smallest:g} MiB in place of DDP's 25, {told[0]}{others}.")


def spelled_out(ranks: int, reduction: str, bucket: float) -> str:
    """A layout in words: `2 ranks, buckets of 1 MiB`."""
    words = "1 rank" if ranks == 1 else f"{ranks} ranks"
    words += ", waited for" if reduction == "waited" else ""
    return words + (f", buckets of {bucket:g} MiB" if bucket else "")
