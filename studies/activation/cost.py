"""What an activation costs: elementwise against copy bandwidth, and inside a training step. A clock is read here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from depthgauge import data, models, stats, timing
from depthgauge.frames import groups, params_of, records
from depthgauge.parts import Answer, Tables, verdict_on
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.activation.extremes import highest
from depthgauge.studies.activation.functions import EXPONENTIAL, handed, label, make
from depthgauge.studies.activation.trained import at
from depthgauge.study import Case, Context, Rows
from depthgauge.timing import Clock
from depthgauge.timing.clocks import Work
from depthgauge.verdict import Figure, Status, Verdict

MARGIN = 1.05  # a step that takes up to 5 % longer costs the same
SHORTEST = 3e-4  # seconds that a timed stretch lasts at least: many times what a clock resolves
PASSES = ("forward", "backward")
# Bytes that must move an element, in elements of the format: forward reads x and writes y; backward reads the gradient
# and one saved tensor, and writes the other gradient; a copy reads and writes.
TRAFFIC = {"copy": 2, "forward": 2, "backward": 3}


def in_turns(clock: Clock, a: Work, b: Work, blocks: int) -> np.ndarray:
    """Seconds of a call in turns A B B A: shape (blocks, 2, 2), those of a and then those of b."""
    calls_a, calls_b = (_calls_a_stretch(clock, work) for work in (a, b))
    found = np.empty((blocks, 2, 2))
    for block in found:
        block[0, 0], block[1, 0] = clock.time(a, calls_a), clock.time(b, calls_b)
        block[1, 1], block[0, 1] = clock.time(b, calls_b), clock.time(a, calls_a)
    found /= np.array([calls_a, calls_b])[:, None]
    return found


def _calls_a_stretch(clock: Clock, work: Work) -> int:
    """How many calls take SHORTEST; the first ones warm up."""
    clock.time(work, 2)
    return max(1, round(SHORTEST / max(min(clock.time(work) for _ in range(3)), 1e-9)))


def run_elementwise(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Forward and backward of a large tensor, each in turns with a copy of it; and a copy in turns with itself."""
    clock = timing.clock(context.device)
    for case in cases:
        dtype, size = getattr(torch, case.text("format")), 2 ** case.integer("log2_elements")
        x = torch.randn(size, generator=generator(0, Purpose.INPUTS)).to(context.device, dtype)
        target = torch.empty_like(x)

        def copy(x: Tensor = x, target: Tensor = target) -> None:
            target.copy_(x)

        blocks = case.integer("blocks")
        if case.text("activation") == "copy":
            yield from _timed(case, in_turns(clock, copy, copy, blocks), "copy")
            continue
        module = make(case.text("activation")).to(context.device, dtype)
        for name, call in _calls(module, x).items():
            yield from _timed(case, in_turns(clock, call, copy, blocks), name)
        yield case.rows("saved_bytes", saved_bytes(module, x) / size)


def _calls(module: nn.Module, x: Tensor) -> dict[str, Work]:
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    gradient = torch.ones_like(y)
    inputs = (leaf,)

    def forward() -> None:
        with torch.no_grad():
            module(x)

    def backward() -> None:
        torch.autograd.grad(y, inputs, gradient, retain_graph=True)

    return {"forward": forward, "backward": backward}


def saved_bytes(module: nn.Module, x: Tensor) -> float:
    """Bytes that autograd keeps of a forward pass for the backward one, each tensor once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() > 1:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x.clone().requires_grad_())
    return float(sum(kept.values()))


def _timed(case: Case, found: np.ndarray, direction: str) -> Iterator[Rows]:
    steps = np.repeat(np.arange(len(found)), 2)
    yield case.rows("seconds", found[:, 0].ravel(), direction=direction, step=steps)
    yield case.rows("reference_seconds", found[:, 1].ravel(), direction=direction, step=steps)


def run_step(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """A whole training step, in turns with the same step of the same model with ReLU."""
    clock = timing.clock(context.device)
    for case in cases:
        with_it, with_relu = (_step(case, spec, context.device) for spec in (case.text("activation"), "relu"))
        yield from _timed(case, in_turns(clock, with_it, with_relu, case.integer("blocks")), "step")


def _step(case: Case, spec: str, device: str) -> Work:
    x, y = data.load("mnist5k").train[: case.integer("batch")]
    x, y = x.to(device), y.to(device)
    model = models.build(
        case.text("model"), preset="small", input_shape=(1, 28, 28), classes=10, activation=handed(spec), device=device
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()

    return step


def _durations(rows: pd.DataFrame, case: str, direction: str) -> tuple[np.ndarray, np.ndarray]:
    own = rows[(rows["case"] == case) & (rows["direction"] == direction)]
    a, b = (
        own[own["metric"] == metric]["value"].to_numpy().reshape(-1, 2) for metric in ("seconds", "reference_seconds")
    )
    return a, b


def analyse_elementwise(rows: pd.DataFrame) -> Answer:
    """Each activation's share of the copy bandwidth, by format."""
    keys = ["activation", "format", "log2_elements"]
    params = params_of(rows, *keys).astype({"log2_elements": int})
    saved = rows[rows["metric"] == "saved_bytes"].set_index("case")["value"]
    found = []
    for (fmt, size), own in groups(params, ["format", "log2_elements"]):
        width = torch.finfo(getattr(torch, fmt)).bits // 8
        reference = own[own["activation"] == "copy"]
        blur = stats.resolution(*_durations(rows, reference.index[0], "copy")) if len(reference) else np.inf
        for case, row in own[own["activation"] != "copy"].iterrows():
            line: dict[str, object] = {"activation": label(row["activation"]), "format": fmt, "log2_elements": size}
            for name in PASSES:
                a, b = _durations(rows, str(case), name)
                ratio = stats.time_ratio(a, b, resolution=blur)
                # bytes that have to move, over time, as a share of what a copy attains
                share = TRAFFIC[name] / TRAFFIC["copy"]
                line |= {
                    f"{name}_ns": 1e9 * float(np.median(a)) / 2**size, f"{name}_times_copy": ratio.effect.value,
                    f"{name}_low": ratio.effect.low, f"{name}_high": ratio.effect.high,
                    f"{name}_bandwidth": share / ratio.effect.value, f"{name}_answer": str(ratio.answer),
                }  # fmt: skip
            copied = float(np.median(_durations(rows, str(case), "forward")[1]))
            line |= {
                "saved_bytes": saved.get(case, np.nan), "bytes": (TRAFFIC["forward"] + TRAFFIC["backward"]) * width,
                "copy_gigabytes_a_second": TRAFFIC["copy"] * width * 2**size / copied / 1e9, "resolution": blur,
            }  # fmt: skip
            found.append(line)
    table = pd.DataFrame(found)
    return Answer({"elementwise": table}, (), tuple(_elementwise_sentences(table)))


def _elementwise_sentences(table: pd.DataFrame) -> Iterator[str]:
    for fmt, own in groups(table, "format") if len(table) else ():
        both = own.assign(total=own["forward_ns"] + own["backward_ns"]).set_index("activation")["total"].sort_values()
        if "relu" not in both or len(both) < 2:
            continue
        slowest = both.index[-1]
        yield (
            f"Elementwise in {fmt}, forward and backward of ReLU take {both['relu']:.2g} ns an element; "
            f"{slowest}, the slowest, {both[slowest] / both['relu']:.1f} times as long."
        )


def analyse_step(rows: pd.DataFrame) -> Answer:
    """N12: the time of a training step against the same step with ReLU."""
    keys = ["activation", "model", "batch"]
    params = params_of(rows, *keys).astype({"batch": int})
    found = []
    for (model, _), own in groups(params, ["model", "batch"]):
        same = own[own["activation"] == "relu"]
        blur = stats.resolution(*_durations(rows, same.index[0], "step")) if len(same) else np.inf
        ratios = {
            case: stats.time_ratio(*_durations(rows, str(case), "step"), resolution=blur, margin=MARGIN)
            for case in own.index[own["activation"] != "relu"]
        }
        for (case, ratio), member in zip(ratios.items(), stats.together(ratios.values()), strict=True):
            a, b = _durations(rows, str(case), "step")
            found.append(
                {
                    "activation": label(own.loc[case, "activation"]), "model": model, "batch": own.loc[case, "batch"],
                    "step_ms": 1e3 * float(np.median(a)), "relu_step_ms": 1e3 * float(np.median(b)),
                    "times_relu": ratio.effect.value, "low": ratio.effect.low, "high": ratio.effect.high,
                    "answer": str(member.answer), "slower": member.above, "resolution": blur, "blocks": ratio.effect.n,
                }
            )  # fmt: skip
    table = pd.DataFrame(found)
    if table.empty:
        return Answer({"step_cost": table})
    return Answer({"step_cost": table}, (_verdict(table),), tuple(_step_sentences(table)))


def _verdict(table: pd.DataFrame) -> Verdict:
    """Does an exponential make a step longer than one with ReLU by more than the margin?"""
    own = table[table["activation"].isin(sorted(EXPONENTIAL))]
    conditions: list[bool | None] = []
    for row in records(own):
        cheaper = row.slower and row.low > MARGIN
        conditions.append(True if cheaper else False if row.answer == "equivalent" else None)
    told = "; ".join(
        f"{model}: "
        + ", ".join(f"{row.activation} {row.times_relu:.2f}" for row in records(part.sort_values("times_relu")))
        for model, part in groups(own, "model")
    )
    others = table[~table["activation"].isin(sorted(EXPONENTIAL)) & (table["low"] > MARGIN)]
    without = ", ".join(f"{row.activation} {row.times_relu:.2f} ({row.model})" for row in records(others))
    worst = highest(own if len(own) else table, "times_relu")
    return verdict_on(
        "N12",
        Status(stats.combine(conditions)),
        f"a training step takes this many times as long as with ReLU: {told}"
        + (f"; without any exponential, too: {without}" if without else "")
        + f". Beyond {MARGIN - 1:.0%} in {sum(c is True for c in conditions)} of {len(conditions)} comparisons, "
        f"within it in {sum(c is False for c in conditions)}",
        observed=float(worst["times_relu"]), low=float(worst["low"]), high=float(worst["high"]),
        unit="times a step with ReLU", n=int(worst["blocks"]),
        method=f"A B B A on one thread, median of paired log-ratios, order statistics at 99 %, resolution by ReLU "
        f"against itself ({table['resolution'].max():.3g} at the worst), margin {MARGIN:g}, Holm within a model; the "
        f"figure is {worst['activation']} in {worst['model']}",
    )  # fmt: skip


def _step_sentences(table: pd.DataFrame) -> Iterator[str]:
    own = table[table["activation"].isin(sorted(EXPONENTIAL))]
    if own.empty:
        return
    slower, same = own[own["slower"] & (own["low"] > MARGIN)], own[own["answer"] == "equivalent"]
    told = ", ".join(f"{row.activation} in {row.model} by {row.times_relu - 1:.0%}" for row in records(slower))
    yield (
        f"Of {len(own)} training steps with an exponential, {len(slower)} take more than {MARGIN - 1:.0%} longer than "
        f"with ReLU{f' ({told})' if told else ''}, {len(same)} do not, and {len(own) - len(slower) - len(same)} "
        f"cannot be told apart at this machine's resolution of {own['resolution'].max() - 1:.1%}."
    )


def plot_elementwise(tables: Tables) -> Iterator[Figure]:
    """Nanoseconds an element, as multiples of a copy, by format."""
    if "elementwise" not in tables or tables["elementwise"].empty:
        return
    table = tables["elementwise"]
    table = table[table["log2_elements"] == table["log2_elements"].max()]
    formats = list(dict.fromkeys(table["format"]))
    order = list(table.groupby("activation")["forward_times_copy"].mean().sort_values(ascending=False).index)
    places = {name: i for i, name in enumerate(order)}
    canvas, axes = plt.subplots(
        1, len(PASSES), figsize=(4.6 * len(PASSES) + 1, 0.27 * len(order) + 1.8), sharey=True, squeeze=False
    )
    for axis, name in zip(axes[0], PASSES, strict=True):
        for i, fmt in enumerate(formats):
            own = table[table["format"] == fmt]
            middle = own[f"{name}_times_copy"]
            bars = np.abs(np.stack([middle - own[f"{name}_low"], own[f"{name}_high"] - middle]))
            y = own["activation"].map(places) + 0.2 * (i - (len(formats) - 1) / 2)
            axis.errorbar(middle, y, xerr=np.nan_to_num(bars, posinf=0.0), fmt="o", ms=4.5, color=f"C{i}", label=fmt)
        axis.axvline(TRAFFIC[name] / TRAFFIC["copy"], color="0.25", lw=1.4)
        axis.set(xscale="log", xlabel="times a copy of the tensor", title=name)
    axes[0, 0].set_yticks(range(len(order)), order)
    handles, names = axes[0, 0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside lower center", ncols=len(formats))
    yield Figure(
        "elementwise",
        canvas,
        "What an activation costs by itself, against moving its bytes",
        f"Time of a tensor of 2^{int(table['log2_elements'].max())} elements in multiples of the time of copying it "
        "(99 % intervals). Line: what the bytes that have to move would take at copy bandwidth; beyond it arithmetic, "
        "or memory used again, decides.",
    )


def plot_scatter(tables: Tables) -> Iterator[Figure]:
    """Accuracy against cost: which activations are worth their time."""
    if "step_cost" not in tables or "answers" not in tables or tables["step_cost"].empty:
        return
    cost, answers = tables["step_cost"], tables["answers"]
    cost = cost[cost["model"] == "mlp"].set_index("activation")[["times_relu", "low", "high"]]
    cost = cost.set_axis(["cost", "cost_low", "cost_high"], axis=1)
    depth = int(answers["depth"].max())
    own = answers[answers["depth"] == depth].set_index("activation")
    own = own.join(cost)
    own.loc[own.index == "relu", ["cost", "cost_low", "cost_high"]] = 1.0
    own = own.dropna(subset="cost")
    if len(own) < 2:
        return
    looks = {"picked": ("C2", "*", 13), "as good": ("C2", "o", 6.5), "open": ("C6", "o", 6.5), "out": ("C1", "s", 5.5)}
    canvas, axis = plt.subplots(figsize=(7.6, max(4.2, 0.2 * len(own) + 1.2)))
    for word, (colour, marker, size) in looks.items():
        part = own[own["answer"] == word]
        if len(part):
            bars = np.abs(np.stack([part["cost"] - part["cost_low"], part["cost_high"] - part["cost"]]))
            axis.errorbar(
                part["cost"], part["accuracy"], xerr=np.nan_to_num(bars, posinf=0.0), fmt=marker, ms=size,
                color=colour, ecolor="0.8", elinewidth=1.2, label=word,
            )  # fmt: skip
    low, high = float(own["cost"].min()), float(own["cost"].max())
    room = 0.08 * (high - low)
    axis.set_xlim(low - room, high + room)
    bottom, top = axis.get_ylim()
    ranked = own.sort_values("accuracy")
    heights = _apart(((ranked["accuracy"] - bottom) / (top - bottom)).to_numpy(), 0.22 / canvas.get_figheight())
    for (name, row), height in zip(ranked.iterrows(), heights, strict=True):
        axis.annotate(
            str(name), (row["cost"], row["accuracy"]), (1.07, height), textcoords="axes fraction", fontsize="small",
            va="center", color="0.2", arrowprops={"arrowstyle": "-", "color": "0.75", "lw": 0.7, "shrinkB": 3},
        )  # fmt: skip
    axis.axvline(1, color="0.6", lw=0.8, ls=":")
    axis.set(xlabel="time of a training step, times that with ReLU", ylabel=f"test accuracy {at(depth)}")
    canvas.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    yield Figure(
        "scatter",
        canvas,
        "Accuracy against cost",
        f"Mean test accuracy {at(depth)}, own gain and tuned learning rate, against the time of a training step "
        "of a multilayer perceptron (4 layers of 128 units) with that activation (99 % intervals). Picked, as "
        "good, open, out: against the pick of validation at that depth, as in the answers.",
    )


def _apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """The same ascending heights, moved as little as keeps them `gap` apart and below 1, if there is room."""
    placed = heights.copy()
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    placed[-1] = min(placed[-1], max(1.0, gap * (len(placed) - 1)))
    for i in range(len(placed) - 2, -1, -1):
        placed[i] = min(placed[i], placed[i + 1] - gap)
    return placed
