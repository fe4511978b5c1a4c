"""Bytes that a rank holds and sends in each way of training, at 2, 8 and 64 ranks: counted, not timed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from math import ceil, prod
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import drawing, parallel
from depthgauge.conditions import explained
from depthgauge.drawing.palette import INK
from depthgauge.frames import groups, only, params_of, records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import judged
from depthgauge.studies.data_parallel.allocation import allocated
from depthgauge.studies.data_parallel.trainers import DDP, FP16, FSDP, POWER, RANK, TENSOR, VIEWS, Task, shapes, trainer
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

SENT = Claim(
    "data_parallel/sent",
    "a step sends 2 (p - 1) / p times the weights' bytes with DDP, half as much again with FSDP2, half as much with "
    "a 16-bit hook",
)
HELD = Claim(
    "data_parallel/held",
    "between two steps a rank holds weights, gradients and momentum: three times the weights' bytes with DDP, a p-th "
    "of that with FSDP2 and with tensor parallelism",
)

WAYS = (DDP, VIEWS, FSDP, FP16, POWER, TENSOR)
NEAR = 0.02  # of what is claimed, or predicted
SHARES = {DDP: 1.0, FSDP: 1.5, FP16: 0.5}  # claimed, of what an all-reduce of the weights sends
SIZES = sizes(
    "ways ranks widths", quick=(WAYS, (8, 64), ()), standard=(WAYS, (2, 8, 64), (64, 96)),
    full=(WAYS, (2, 4, 8, 16, 32, 64), (64, 96)), tiny=((DDP, FSDP, TENSOR), (2, 8), (12,)),
)  # fmt: skip


def grids(ways: tuple[str, ...], ranks: tuple[int, ...], widths: tuple[int, ...]) -> Iterator[Grid]:
    """Every way at every number of ranks; the network's width is a multiple of it, or not."""
    if widths:
        yield Grid(
            {"width": widths, "ranks": ranks, "way": ways}, {"depth": 3, "examples": 1}, together=("ranks", "way"),
            chunk=100,
        )  # fmt: skip


def run(cases: Sequence[Case], _: Context) -> Iterator[Rows]:
    """Build each in a process that takes itself for rank 0 of many, and count in its steps."""
    for case in cases:
        with parallel.pretended(case.integer("ranks")), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own hooks and functions speak of themselves
            yield from _counted(case)


def _counted(case: Case) -> Iterator[Rows]:
    task, ranks = _task(case), case.integer("ranks")
    assert len(task.examples[0]) == task.batch  # drawn before anything is counted
    group = parallel.Group(0, ranks, torch.device("cpu"))
    step, held, peak = allocated(lambda: trainer(case.text("way"), task, group).step, group.device)
    yield case.rows("held", float(held))
    yield case.rows("peak", float(peak))
    for each in parallel.traffic(step).collectives:
        yield case.rows("sent", each.sent, layer=each.name)
        yield case.rows("calls", float(each.count), layer=each.name)


def _task(case: Case) -> Task:
    width, depth, ranks = (case.integer(name) for name in ("width", "depth", "ranks"))
    return Task(width, depth, case.integer("examples") * ranks)


def predicted_sent(way: str, ranks: int, width: int, depth: int, batch: int) -> float:
    """Bytes that a rank sends in a step, over those of the weights."""
    whole = Task(width, depth, batch).bytes
    reduced = {
        FP16: whole / 2,
        FSDP: 1.5 * _padded(ranks, width, depth) * ranks,
        POWER: 4 * depth * sum(RANK * sum(shape) if len(shape) > 1 else shape[0] for shape in shapes(width)),
        TENSOR: 4 * batch * width * (2 * depth - 1),  # each block forward, and backward but for the first
    }.get(way, whole)
    return 2 * (ranks - 1) / ranks * reduced / whole


def predicted_held(way: str, ranks: int, width: int, depth: int) -> float:
    """Bytes that rank 0 holds between two steps, over those of the weights; NaN where no formula is known."""
    whole = Task(width, depth, 1).bytes
    up, up_bias, down, down_bias = map(prod, shapes(width))
    parts = {
        DDP: 4 * whole,  # gradients lie in its buckets a second time
        VIEWS: 3 * whole,
        FP16: 4 * whole,
        FSDP: 3 * _padded(ranks, width, depth),
        TENSOR: 12 * depth * ((up + up_bias + down) / ranks + down_bias),
    }
    return parts.get(way, np.nan) / whole


def _padded(ranks: int, width: int, depth: int) -> int:
    """Bytes of a rank's shard: each weight is cut along its first dimension, padded to as many rows in every rank."""
    return 4 * depth * sum(ceil(shape[0] / ranks) * prod(shape[1:]) for shape in shapes(width))


# -- answering ---------------------------------------------------------------------------------------------------------


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Both figures in multiples of the weights, beside what is predicted and what is claimed."""
    cases = params_of(rows, "way", "ranks", "width", "depth", "examples").astype(
        dict.fromkeys(("ranks", "width", "depth", "examples"), int)
    )
    cases = cases.assign(held=only(rows, "held"), peak=only(rows, "peak"))
    for metric in ("sent", "calls"):
        cases[metric] = rows[rows["metric"] == metric].groupby("case")["value"].sum()
    cases["weights"] = [Task(own.width, own.depth, 1).bytes for own in records(cases)]
    sent, held = _sent(cases), _held(cases)
    yield "sent", sent
    yield "held", held
    yield _verdict(SENT, sent, "sent", "bytes sent", "collectives seen where torch dispatches them")
    yield _verdict(HELD, held, "held", "bytes held", "bytes that torch's allocator handed out and did not get back")
    yield from _sentences(sent, held)


def _sent(cases: pd.DataFrame) -> pd.DataFrame:
    table = []
    for own in records(cases.dropna(subset=["sent"])):
        p = own.ranks
        claimed = SHARES.get(own.way, np.nan) * 2 * (p - 1) / p
        predicted = predicted_sent(own.way, p, own.width, own.depth, own.examples * p)
        table.append({**_row(own, own.sent / own.weights, predicted, claimed), "calls": own.calls})
    return pd.DataFrame(table)


def _held(cases: pd.DataFrame) -> pd.DataFrame:
    table = []
    for own in records(cases):
        claimed = {DDP: 3.0, FSDP: 3 / own.ranks, TENSOR: 3 / own.ranks}.get(own.way, np.nan)
        predicted = predicted_held(own.way, own.ranks, own.width, own.depth)
        table.append({**_row(own, own.held / own.weights, predicted, claimed), "peak": own.peak / own.weights})
    return pd.DataFrame(table)


def _row(own: Any, value: float, predicted: float, claimed: float) -> dict[str, Any]:
    fits = "as claimed" if abs(value - claimed) <= NEAR * claimed else "other"
    return {
        "way": own.way, "ranks": own.ranks, "width": own.width, "value": value, "predicted": predicted,
        "claimed": claimed, "answer": "nothing claimed" if np.isnan(claimed) else fits,
    }  # fmt: skip


def _where(key: tuple[Any, ...]) -> str:
    return "{} at {} ranks, width {}".format(*key)


def _verdict(claim: Claim, table: pd.DataFrame, name: str, what: str, how: str) -> Any:
    asked = table[table["claimed"].notna()]
    as_claimed = {(own.way, own.ranks, own.width): own.answer == "as claimed" for own in records(asked)}
    off = asked[asked["answer"] == "other"]
    far = asked.iloc[int((asked["value"] / asked["claimed"] - 1).abs().to_numpy().argmax())]
    true = (table["value"] / table["predicted"] - 1).abs() <= NEAR
    why = f"as claimed in {len(asked) - len(off)} of {len(asked)} cases"
    if len(off):
        each = [f"{w} ({', '.join(_places(own))})" for w, own in groups(off, "way")]
        why += f"; other for {', '.join(each)}"
    why += f"; counting padding and buckets predicts {int(true.sum())} of {int(table['predicted'].notna().sum())}"
    return judged(
        claim, list(as_claimed.values()), why, says=explained(("way", "ranks", "width"), as_claimed, _where),
        observed=float(far["value"]),
        predicted=float(far["claimed"]), n=len(asked), counted="cases", table=name, answer=str(far["answer"]),
        unit="times the weights' bytes", condition=f"{far['way']}, {far['ranks']} ranks, width {far['width']}",
        method=f"{what} by rank 0 of torch's fake process group, {how}; margin {NEAR:.0%}",
    )  # fmt: skip


def _places(rows: pd.DataFrame) -> list[str]:
    return [
        f"{own.value:.3g} in place of {own.claimed:.3g} at {own.ranks} ranks, width {own.width}"
        for own in records(rows)
    ]


def _sentences(sent: pd.DataFrame, held: pd.DataFrame) -> Iterator[Sentence]:
    most = int(held["ranks"].max())
    at = held[held["ranks"] == most].drop_duplicates("way").set_index("way")["value"]
    if {DDP, FSDP} <= set(at.index):
        yield Sentence(
            f"At {most} ranks a rank of FSDP2 holds {at[FSDP]:.2g} times the bytes of all weights, one of DDP "
            f"{at[DDP]:.2g} times.",
            claims=(HELD.id,),
        )
    padding = sent[sent["way"] == FSDP]
    padding = padding[padding["value"] > (1 + NEAR) * padding["claimed"]]
    if len(padding):
        worst = padding.iloc[int((padding["value"] / padding["claimed"]).to_numpy().argmax())]
        yield Sentence(
            f"FSDP2 pads weights whose rows do not divide by the ranks: at width {worst['width']} and "
            f"{worst['ranks']} ranks it sends {worst['value'] / worst['claimed']:.2f} times as much as without.",
            claims=(SENT.id,),
        )


def _form(axis: Any, rows: pd.DataFrame, by: str, looks: Any) -> None:
    for place, (way, own) in enumerate(groups(rows.sort_values("ranks"), by)):
        look, size = looks[way], 11 - 1.6 * place  # so that equal points are seen as rings
        axis.plot(own["ranks"], own["value"], look.marker, ms=size, color=look.colour, label=way)
        axis.plot(own["ranks"], own["predicted"], "--", lw=1.1, color=look.colour)
    axis.plot([], [], "--", lw=1.1, color=INK, label="predicted")


@drawing.figure(
    "shares", "Bytes that a rank holds and sends, by the number of ranks",
    "Points: bytes in multiples of the weights', counted in rank 0 of a fake process group, at the largest width; "
    "dashed: predicted from the shapes of the weights. Rings are ways with equal bytes.",
)  # fmt: skip
def draw_shares(held: pd.DataFrame, sent: pd.DataFrame) -> Any:
    """Held and sent bytes by ranks, a panel each."""
    both = pd.concat([held.assign(what="held between two steps"), sent.assign(what="sent in a step")])
    both = both[both["width"] == both["width"].max()]
    axes = {"xscale": "log", "yscale": "log", "xlabel": "ranks", "ylabel": "times the weights' bytes"}
    return drawing.panels(both, "what", _form, by="way", shared="", axes=axes)


METHOD = f"""**Bytes.** A process takes itself for rank 0 of many, by torch's fake process group: collectives return at
once and exchange nothing, their calls and sizes are those of a real group (the part *ways* counts some of them there).
The network is three feed-forward blocks with a residual; SGD with momentum. Bytes sent are the least that a rank sends
for such collectives on average, 2 (p - 1) / p of an all-reduce's buffer, (p - 1) / p of the gathered or scattered one.
Bytes held are what torch's allocator handed out and did not get back after a step: weights, gradients, momentum, and
DDP's buckets, in which gradients lie a second time unless they are views of them; buffers of NCCL or gloo are not
counted. FSDP2 cuts every weight along its first dimension and pads it to as many rows in each rank. PowerSGD has rank
{RANK}, and its error feedback is held too."""
PART = Part(
    "shares", (SENT, HELD), SIZES, grids, run, analyse, (draw_shares,), METHOD, shown=("sent", "held")
)  # fmt: skip
