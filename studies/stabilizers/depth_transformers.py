"""Transformers at initialization: the gradient of the last feed-forward weights by depth, norm after or before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from depthgauge import drawing, initialization, models, stats, theory
from depthgauge.frames import by_case, groups, params_of
from depthgauge.initialization import Stacked
from depthgauge.initialization.maps import weighted
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

POST = Claim(
    "stabilizers/post_ln", "with the norm after each sum the gradient of a transformer's last feed-forward weights "
    "does not depend on depth",
)  # fmt: skip
PRE = Claim(
    "stabilizers/pre_ln", "with the norm before each branch the gradient of a transformer's last feed-forward weights "
    "falls as 1 / sqrt(depth)",
)  # fmt: skip
STREAM = Claim(
    "stabilizers/pre_ln_stream", "with the norm before each branch that gradient falls as 1 / sqrt(second moment of "
    "the stream), which theory has at every depth",
)  # fmt: skip
POWERS = {"post": 0.0, "pre": -0.5}
MARGIN = 0.125  # of a power: a quarter of the distance between the two laws
WITHIN = 1.1  # factor: a gradient this close to the exact law is the predicted one
CLASSES = 10
HEADS = 4
SIZES = sizes(
    "deepest seeds width tokens examples", quick=(32, 16, 64, 4, 16), standard=(64, 24, 128, 8, 16),
    full=(128, 40, 192, 16, 32), tiny=(8, 6, 8, 3, 2),
)  # fmt: skip


def grids(deepest: int, seeds: int, width: int, tokens: int, examples: int) -> Iterator[Grid]:
    """Both orders, with queries and keys of zero, as the theorem has them, and drawn."""
    fixed = {"depth": deepest, "width": width, "tokens": tokens, "examples": examples}
    yield Grid({"order": tuple(POWERS), "queries": ("zero", "drawn")}, fixed, seeds, together=("seed",), chunk=4)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """One transformer a case, cut after 1, 2, 4, ... blocks: ln norm of an example's gradient there, and the stream."""
    for case in cases:
        tokens, width = case.integer("tokens"), case.integer("width")
        seed = case.random_seed("seed", "width", "tokens")
        model = models.build(
            "transformer", input_shape=(tokens, width), vocabulary=None, classes=CLASSES, each_step=False, width=width,
            depth=case.integer("depth"), heads=HEADS, activation="relu", order=case.text("order"), seed=seed,
            init=_unqueried if case.text("queries") == "zero" else initialization.scheme("xavier"),
        ).double().to(context.device)  # fmt: skip
        shape = (case.integer("examples"), tokens, width)
        x = torch.randn(shape, generator=generator(seed, Purpose.INPUTS), dtype=torch.float64)
        for depth, norm, moment in measured(model, x.to(context.device)):
            yield case.rows("ln_norm", norm, layer_index=depth)
            yield case.rows("stream", moment, layer_index=depth)


def _unqueried(model: nn.Module, draws: torch.Generator) -> None:
    """Xavier's weights, but zero for queries and keys: attention is uniform."""
    initialization.scheme("xavier")(model, draws)
    for layer in weighted(model):
        if isinstance(layer.module, Stacked):
            for each in layer.maps[:2]:
                each.zero_()


def measured(model: nn.Module, x: Tensor) -> Iterator[tuple[int, float, float]]:
    """Depth; ln Frobenius norm of the gradient of the last block's output weights, and the last sum's second moment.

    The model cut after that block, loss of the last token; means over the examples under every label, of which each has
    a gradient of its own: the outer product of what goes into these weights and of the gradient of what comes out.
    """
    blocks = list(model.get_submodule("blocks").children())
    inside: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(place: int, at: str) -> Any:
        def hook(_module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            value = given[0] if at == "hidden" else out
            kept = inside.get(place, (value, value))
            inside[place] = (value[:, -1].detach(), kept[1]) if at == "hidden" else (kept[0], value[:, -1].detach())

        return hook

    for place, block in enumerate(blocks, 1):
        block.get_submodule("feed_forward.project").register_forward_hook(keep(place, "hidden"))
        block.get_submodule("join2").register_forward_hook(keep(place, "sum"))
    with torch.no_grad():
        model(x)
    labels = torch.arange(CLASSES, device=x.device).repeat_interleave(len(x))
    post = isinstance(model.get_submodule("norm"), nn.Identity)
    for depth in (2**k for k in range(len(blocks).bit_length())):
        hidden, total = (each.repeat(CLASSES, 1) for each in inside[depth])
        norm = blocks[depth - 1].get_submodule("norm2") if post else model.get_submodule("norm")
        total = total.requires_grad_()
        loss = cross_entropy(model.get_submodule("output")(norm(total)), labels, reduction="sum")
        (sent,) = torch.autograd.grad(loss, total)
        norms = hidden.norm(dim=1) * sent.norm(dim=1)
        yield depth, float(norms.log().mean()), float(total.detach().square().mean())


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Slopes over ln depth against the two powers, and norms by depth against the exact law."""
    params = params_of(rows, "order", "queries", "tokens", "width")
    norms, streams = (by_case(rows, metric) for metric in ("ln_norm", "stream"))
    depths = np.array([depth for depth in map(int, norms.columns) if depth > 1])
    lines: list[dict[str, Any]] = []
    slopes: dict[tuple[str, str], stats.Comparison] = {}
    further: dict[tuple[str, str], dict[str, float]] = {}
    exact: dict[tuple[int], stats.Comparison] = {}
    for (order, queries), networks in groups(params, ["order", "queries"]):
        own, seen = norms.loc[networks.index], streams.loc[networks.index]
        law = _law(order, int(networks["tokens"].iloc[0]), max(depths))
        lines += _lines(order, queries, own, law if queries == "zero" else None)
        fitted = stats.slopes(np.log(depths), own[depths].to_numpy()).slope
        slopes[order, queries] = stats.against(fitted, POWERS[order], margin=MARGIN)
        halves = stats.slopes(np.log(depths), np.log([law[d] for d in depths])[None]).slope
        further[order, queries] = {
            "exact": float(halves[0]) if queries == "zero" else math.nan,
            "last_doubling": float((own[depths[-1]] - own[depths[-2]]).mean() / math.log(2)),
            "stream_first": float(seen[1].mean()), "stream_last": float(seen[depths[-1]].mean()),
        }  # fmt: skip
        if (order, queries) == ("pre", "zero"):
            for depth in depths:
                ratio = np.exp(own[depth] - own[1]).to_numpy()
                exact[int(depth),] = stats.against(ratio, law[depth] / law[1], log=True, margin=WITHIN)
    yield "last_gradients", pd.DataFrame(lines)
    question = Question.of(
        "depth_powers", ("order", "queries"), slopes, label="{order}-LN with {queries} queries", counted="networks"
    )
    yield question.table(further)
    yield from _powers(question, depths)
    yield from _stream(exact, further, question)


def _law(order: str, tokens: int, deepest: int) -> np.ndarray[Any, Any]:
    """The gradient by depth up to a factor, queries of zero; the stream starts at 2: embedding 1, position 1."""
    if order == "post":
        return np.ones(deepest + 1)
    law: np.ndarray[Any, Any] = theory.transformer_stream(deepest, tokens=tokens, q_0=2.0) ** -0.5
    return law


def _lines(order: str, queries: str, own: pd.DataFrame, law: Any) -> Iterator[dict[str, Any]]:
    for depth in own.columns:
        measured_norm = stats.mean(np.exp((own[depth] - own[1]).to_numpy()), log=True)
        yield {
            "network": f"{order}-LN, queries {queries}", "depth": int(depth), "n": len(own),
            "value": measured_norm.value, "low_95": measured_norm.low, "high_95": measured_norm.high,
            "predicted": math.nan if law is None else float(law[int(depth)] / law[1]),
        }  # fmt: skip


def _powers(question: Question, depths: np.ndarray[Any, Any]) -> Iterator[Answer]:
    for order, claim in (("post", POST), ("pre", PRE)):
        own = question.where(order=order)
        if not own:
            continue
        told = ", ".join(f"{c.effect.value:.3g} with {key[1]} queries" for key, c in own.members.items())
        yield own.verdict(
            claim, agrees, unit="power of depth",
            why=f"the power from {depths[0]} to {depths[-1]} blocks is {told}",
            method=f"slope of the logarithm of the gradient's norm over that of depth, {depths[0]} to {depths[-1]} "
            f"blocks, within {MARGIN:g} of {POWERS[order]:g}; an example's own gradient under every label, loss of its "
            "last token",
        )  # fmt: skip


def _stream(exact: Any, further: Any, slopes: Question) -> Iterator[Answer]:
    question = Question.of("exact_law", ("depth",), exact, label="depth {depth}", counted="networks")
    if not question:
        return
    yield question.table()
    within = f"a factor of {WITHIN:g}"
    yield question.prediction(STREAM, "gradients", within=within, unit="times that at depth 1")
    found, own = slopes.members["pre", "zero"].effect, further["pre", "zero"]
    yield Sentence(
        f"The gradient of a pre-LN transformer's last feed-forward weights falls as the power of depth "
        f"{found.told('.3g')}; the exact law at these depths, of a stream that starts at 2, has "
        f"{own['exact']:.3g}.",
        figure="last_gradients", claims=(PRE.id, STREAM.id),
    )  # fmt: skip


@drawing.figure(
    "last_gradients", "With the norm before, the last gradient falls as the stream grows; with the norm after it stays",
    lambda last_gradients: f"Norm of the gradient of the last feed-forward weights over that at depth 1, geometric "
    f"mean of {last_gradients['n'].min()} networks' ratios, 95 % intervals. Dashed: the exact law, queries of zero.",
)  # fmt: skip
def draw_gradients(last_gradients: pd.DataFrame) -> Any:
    """Norm by depth, a line an order and draw of the queries."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "blocks L", "ylabel": "gradient over that at depth 1"}
    return drawing.panels(last_gradients, "", drawing.estimates, at="depth", by="network", axes=axes)


METHOD = f"""**Depth laws of transformers.** Causal transformers of Xavier's weights, ReLU, {HEADS} heads, independent
normal tokens of second moment 1 plus learned positions of 1, loss of the last token under every label; queries and
keys zero, as Xiong et al. 2020 have them for their Theorem 1, or drawn. One network a seed is cut after 1, 2, 4, ...
blocks. Powers are held against 0 and -1/2 within {MARGIN:g}, a quarter of their distance. The exact law is that of
the stream, `theory.transformer_stream`: the last norm divides what comes back by the stream's size, and nothing else
depends on depth."""
PART = Part(
    "depth_transformers", (POST, PRE, STREAM), SIZES, grids, run, analyse, (draw_gradients,), METHOD
)  # fmt: skip
