"""How heavy the noise of gradients is: its tail index, at the start and after training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from depthgauge import data, drawing, models, replicas, stats
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, spelled
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

FINITE = Claim(
    "stabilizers/noise_tails", "the noise of gradients has a finite variance: the tail of its norm has an index above 2"
)
KNOWN = Claim(
    "stabilizers/tail_index", "the tail index of gradients is that of the noise in the targets, where that is known"
)
SHARE = 0.05  # of the norms that are the tail
MARGIN = 1.1  # factor of the index: closer to 2 than this is 2
CLOSE = 1.2  # factor of the index: closer to the known one than this is the known one
BATCHES = {"examples": 1, "batches of 16": 16}
LAWS = {"Pareto 1.5": 1.5, "Pareto 3": 3.0}
FEATURES = 16
NETWORKS = ("classifier of digits", "language model")
LEVELS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
SIZES = sizes(
    "examples steps seeds", quick=(300, 40, 5), standard=(1000, 400, 10), full=(1400, 3000, 20), tiny=(120, 2, 5)
)


def grids(examples: int, steps: int, seeds: int) -> Iterator[Grid]:
    """Linear models under known laws, and both networks."""
    fixed = {"examples": examples, "steps": steps}
    yield Grid({"law": tuple(LAWS)}, {**fixed, "network": "linear"}, seeds, ("law", "seed"), 100, claims=(KNOWN.id,))
    for network in NETWORKS:
        yield Grid({}, {**fixed, "network": network}, seeds, ("seed",), 10, claims=(FINITE.id,))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Tail index and quantiles of the norms of the noise, of examples and of batches, before and after training."""
    shared = cases[0]
    network, steps, count = shared.text("network"), shared.integer("steps"), shared.integer("examples")
    if network == "linear":
        for case in cases:
            draws = generator(case.random_seed("seed", "law", "examples"), Purpose.DATA)
            norms = linear(LAWS[case.text("law")], 10 * count, draws)
            yield case.rows("index examples", stats.tail_index(norms, SHARE).value, step=0)
        return
    template, given, optimizer = _network(network, len(cases))
    stack = replicas.stack(template, [case.random_seed("seed", "network") for case in cases], device=context.device)
    x, y = given.x.to(context.device), given.y.to(context.device)
    trained = replicas.train(stack, x, y, optimizer, replicas.Loop(batch=32, steps=steps)).stack
    for i, case in enumerate(cases):
        draws = generator(case.random_seed("seed", "network", "examples"), Purpose.DATA)
        chosen = torch.randperm(len(x), generator=draws)[:count].to(x.device)
        for step, part in ((0, stack), (steps, trained)):
            each = gradients(part.module(i), x[chosen], y[chosen])
            for name, batch in BATCHES.items():
                norms = noise(each, batch, draws)
                yield case.rows(f"index {name}", stats.tail_index(norms, SHARE).value, step=step)
                for level in LEVELS:
                    yield case.rows(f"above {level} {name}", float(np.quantile(norms, 1 - level)), step=step)


def _network(name: str, count: int) -> tuple[nn.Module, data.Examples, Any]:
    """A template, examples, and the optimizer of `count` replicas."""
    if name == NETWORKS[0]:
        digits = data.load("digits")
        template = models.build("mlp", input_shape=digits.input_shape, classes=digits.classes, depth=3, width=32)
        return template, digits.train, replicas.SGD([0.1] * count)
    plays = data.load("shakespeare", context=32)
    template = models.build(
        "transformer", input_shape=plays.input_shape, vocabulary=plays.vocabulary, classes=plays.classes,
        each_step=True, depth=2, width=32, heads=2, fused=False,
    )  # fmt: skip
    return template, data.Examples(plays.train.x[:4000], plays.train.y[:4000]), replicas.Adam([3e-3] * count)


def linear(index: float, count: int, draws: torch.Generator) -> np.ndarray[Any, Any]:
    """Norms (count,) of a linear model's gradients, at its minimum, whose targets have symmetric Pareto noise.

    The gradient of half a square is the error times the features, which are normal: P(e r > x) = x^-a E r^a for an
    error e of P(e > x) = x^-a, as long as features' norms r stay below x, so that the index is the error's.

    Args:
        index: tail index of the noise.
        count: of examples.
        draws: of features and noise.
    """
    features = torch.randn(count, FEATURES, generator=draws, dtype=torch.float64)
    sizes_of = torch.rand(count, generator=draws, dtype=torch.float64).clamp(min=1e-15) ** (-1 / index)
    signs = torch.randint(0, 2, (count,), generator=draws).double() * 2 - 1
    return np.asarray((features * (sizes_of * signs)[:, None]).norm(dim=1))


def gradients(model: nn.Module, x: Tensor, y: Tensor, together: int = 100) -> Tensor:
    """Gradients (n, P) of each example's mean cross-entropy."""
    parameters = {name: each.detach() for name, each in model.named_parameters()}

    def loss(given: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
        out = functional_call(model, given, (one[None],))
        return nn.functional.cross_entropy(out.reshape(-1, out.shape[-1]), target.reshape(-1))

    each = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=together)(parameters, x, y)
    return torch.cat([value.flatten(1) for value in each.values()], 1)


def noise(each: Tensor, batch: int, draws: torch.Generator) -> np.ndarray[Any, Any]:
    """Norms (n,) of gradients of batches, drawn anew, less the mean gradient of all examples."""
    rest = each.double() - each.double().mean(0)
    if batch > 1:
        n = len(each)
        chosen = torch.randint(0, n, (n, batch), generator=draws)
        weights = torch.zeros(n, n, dtype=torch.float64).scatter_add_(
            1, chosen, torch.full(chosen.shape, 1 / batch, dtype=torch.float64)
        )
        rest = weights.to(rest.device) @ rest
    return np.asarray(rest.norm(dim=1).cpu())


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Indices against the known ones, and against 2; quantiles of the norms."""
    indices = rows[rows["metric"].str.startswith("index ")].assign(of=lambda t: t["metric"].str[len("index ") :])
    known = indices[indices["network"] == "linear"]
    if len(known):
        yield from _known(known)
    found = indices[indices["network"] != "linear"]
    if len(found):
        yield from _found(found.assign(when=_when(found)))
        yield "noise_quantiles", pd.DataFrame(_quantiles(rows[rows["metric"].str.startswith("above ")]))


def _when(table: pd.DataFrame) -> pd.Series[Any]:
    return table["step"].eq(0).map({True: "at the start", False: "after training"})


def _known(known: pd.DataFrame) -> Iterator[Answer]:
    asked = {
        (law,): stats.against(own["value"].to_numpy(), LAWS[str(law)], log=True, margin=CLOSE)
        for law, own in groups(known, "law")
    }
    question = Question.of("tail_index", ("law",), asked, label="{law}")
    yield question.table({key: {"known": LAWS[str(key[0])]} for key in asked})
    yield question.prediction(KNOWN, "tail indices", within=f"a factor of {CLOSE:g}", unit="tail index")


def _found(found: pd.DataFrame) -> Iterator[Answer]:
    keys = ["network", "of", "when"]
    asked, lines = {}, []
    for key, own in groups(found, keys):
        values = own["value"].to_numpy()
        asked[key] = stats.against(values, 2.0, log=True, margin=MARGIN)
        lines.append({
            **dict(zip(keys, key, strict=True)), "n": len(own), **spelled("index", stats.median(values)),
            "steps": int(own["steps"].iloc[0]),
        })  # fmt: skip
    question = Question.of(
        "noise_tail", keys, asked, label="{of} of the {network} {when}", reference="2, the least of finite variance"
    )
    yield question.table()
    yield "noise_indices", pd.DataFrame(lines)
    words = {True: "above 2 for", False: "not above 2 for", None: "undecided for"}
    yield question.verdict(
        FINITE, above, unit="tail index", why=f"the tail index is {question.listed(above, words, 8)}",
        method=f"Hill's estimate over the largest {SHARE:.0%} of the norms of each network's noise, t on the logarithm "
        f"over seeds, margin {MARGIN:g}",
    )  # fmt: skip
    for network, own in groups(pd.DataFrame(lines), "network"):
        told = own.set_index(["of", "when"])["index"]
        yield Sentence(
            f"The gradient noise of the {network} has a tail index of {told['examples', 'at the start']:.1f} at the "
            f"start and of {told['examples', 'after training']:.1f} after {own['steps'].iloc[0]} steps for single "
            f"examples, and of {told['batches of 16', 'at the start']:.1f} and "
            f"{told['batches of 16', 'after training']:.1f} for batches of 16; noise of infinite variance "
            "has one of at most 2.",
            figure="noise_quantiles", claims=(FINITE.id,),
        )  # fmt: skip


def _quantiles(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Median over seeds of the norms exceeded by each share, over the median norm."""
    parts = table["metric"].str.extract(r"above (?P<share>\S+) (?P<of>.+)")
    table = table.assign(share=parts["share"].astype(float), of=parts["of"], when=_when(table))
    middle = table["value"].where(table["share"] == 0.5).groupby([table[name] for name in ("case", "step", "of")])
    table = table.assign(ratio=table["value"] / middle.transform("max"))
    for (network, of, when, share), own in groups(table, ["network", "of", "when", "share"]):
        yield {
            "network": network,
            "noise": f"{of} {when}",
            "share": share,
            "times": own["ratio"].median(),
            "n": len(own),
        }


@drawing.figure(
    "noise_quantiles", "How far the norm of gradient noise reaches",
    lambda noise_quantiles: "Share of the gradients whose noise is larger than so many times the median norm; median "
    f"of {noise_quantiles['n'].min()} networks. A power law is a straight line.",
)  # fmt: skip
def draw_quantiles(noise_quantiles: pd.DataFrame) -> Any:
    """Share above by size, a panel a network, a line for examples and batches, before and after training."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "norm over the median norm", "ylabel": "share above"}
    return drawing.panels(
        noise_quantiles, "network", drawing.lines, x="times", y="share", by="noise", axes=axes, shared="y"
    )


@drawing.figure(
    "noise_indices", "The tail index of gradient noise",
    lambda noise_indices: f"Hill's estimate over the largest {SHARE:.0%} of the norms; median of "
    f"{noise_indices['n'].min()} networks with 95 % intervals. Below 2 a variance is infinite.",
)  # fmt: skip
def draw_indices(noise_indices: pd.DataFrame) -> Any:
    """Indices, a row for examples and batches, before and after training, a panel a network."""
    shown = noise_indices.assign(noise=noise_indices["of"] + " " + noise_indices["when"])
    axes = {"xscale": "log", "xlabel": "tail index", "ylabel": ""}
    return drawing.panels(shown, "network", drawing.estimates, at="noise", value="index", axes=axes, shared="both")


METHOD = f"""**Noise tails.** Gradients of single examples, less their mean, and of batches of 16 drawn from them; a
ReLU network of three layers on 8 x 8 digits (SGD) and a transformer of two layers that reads plays by character (Adam),
before and after training. The tail index of their norms is Hill's (1975, Ann. Stat. 3, 1163) over the largest
{SHARE:.0%}. Data are finite, so that no variance is infinite: an index below 2 says that, as far out as the data
reach, rare gradients carry most of it. Zhang et al. (2020, arXiv:1912.03194) say that heavy-tailed noise is one cause
of what adaptive and clipped steps gain with attention. Known laws: a linear model at its minimum, whose targets have
symmetric Pareto noise."""
PART = Part(
    "noise_tails", (FINITE, KNOWN), SIZES, grids, run, analyse, (draw_quantiles, draw_indices), METHOD
)  # fmt: skip
