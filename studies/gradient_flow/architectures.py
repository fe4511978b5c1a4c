"""Real architectures at initialization: what passes through each weight layer, forward and backward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from depthgauge import data, models, nested, probe, stats, theory
from depthgauge.factories import Input, is_factory
from depthgauge.frames import groups, layers_to_name, params_of, records
from depthgauge.parts import Answer, verdict_on
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows, StudyError, Value
from depthgauge.verdict import Figure, Status, Verdict
from depthgauge.workload import Inputs, Training, WorkloadError, moved

# All of `models.names()` that have depth; linear and softmax regression and the perceptron are one weight layer each.
PLAIN = ("lenet5", "alexnet", "vgg11", "vgg13", "vgg16", "vgg19", "nin", "googlenet", "plain_cnn")
RESIDUAL = ("mlp", "resnet18", "resnet34", "resnet50", "resnext50_32x4d")

DIRECTIONS = {"activation": "forward", "activation_gradient": "backward"}
REACH = 3.0  # decades of the gradient's norm between last and first layer that count as neither vanished nor exploded
KEYS = ["model", "norm", "residual"]
OWN = "own"  # what a user's factory decides by itself
BRANCHED = frozenset({"googlenet"})  # layers beside each other: a rate a layer means less there


def grids(*, seeds: int, batch: int) -> tuple[Grid, ...]:
    """Every model at its small preset, with and without batch normalization and skip connections where it has them."""

    def grid(names: Sequence[str], claims: Sequence[str], **varied: tuple[Value, ...]) -> Grid:
        return Grid(
            {"model": tuple(names), **varied},
            fixed={"part": "architectures", "batch": batch},
            seeds=seeds,
            chunk=64,
            architecture=tuple(varied),
            any_input=True,
            claims=tuple(f"gradient_flow/{claim}" for claim in ("architectures", *claims)),
        )

    norms, skips = ("none", "batch"), (False, True)
    return (
        grid(("rnn", "lstm"), ()),
        grid(PLAIN, ("batch_norm",), norm=norms),
        grid(RESIDUAL, ("batch_norm", "skips"), norm=norms, residual=skips),
        grid(("transformer",), ("skips",), residual=skips),
    )


def run_architectures(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """One forward pass of real digits, and a backward pass from a random linear functional of the outputs.

    A user's model that says what it takes is fed that, a user's training its first batch, from whose loss the backward
    pass starts. Of each call of a weight layer, in the order of execution: the second moment of its output and of the
    gradient with respect to that, and how many elements one example's output has.
    """
    for case in cases:
        training = _training(case, context.device)
        model, batch = training.model, moved(training.first()[0], context.device)
        yield case.rows("fed", nested.examples(batch), layer=_fed(batch))
        layers = dict(models.layers(model))
        with probe.track(model, directions=DIRECTIONS, layers={type(layer) for layer in layers.values()}) as record:
            _loss(training, batch, case.text("model")).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        frame = record.to_frame()
        frame = _calls(frame[frame["layer"].isin(layers)])
        for direction, word in DIRECTIONS.items():
            passed = frame[frame["direction"] == direction]
            yield case.rows(
                "second_moment",
                passed["second_moment"].to_numpy(),
                layer=passed["name"].tolist(),
                layer_index=passed["place"].to_numpy(),
                direction=word,
            )
        forward = frame[frame["direction"] == "activation"]
        elements = forward["count"].to_numpy() / nested.examples(batch)
        yield case.rows("elements", elements, layer=forward["name"].tolist(), layer_index=forward["place"].to_numpy())


def smallest(case: Case) -> Case:
    """Two digits: what batch normalization needs."""
    return case.but(batch=2, seed=0)


def _training(case: Case, device: str) -> Training:
    """Models of ours as their small preset has them; a user's own, fit for digits as far as its factory allows."""
    spec, batch, asked = case.text("model"), case.integer("batch"), case.get("input")
    sample, cotangent = (
        generator(case.random_seed("seed"), purpose) for purpose in (Purpose.SAMPLE, Purpose.COTANGENT)
    )
    digits = data.load("mnist5k").train
    x, _ = digits[torch.randperm(len(digits), generator=sample)[:batch]]

    def functional(model: torch.nn.Module, fed: Inputs) -> torch.Tensor:
        scores = nested.scores(fed.call(model))
        return (scores * torch.randn(scores.shape, generator=cotangent).to(scores)).sum()

    fit: dict[str, Any] = {"input_shape": tuple(x.shape[1:])} if is_factory(spec) and asked is None else {}
    return models.training(
        spec, preset="small", batch=batch, device=device, data=Inputs((x,), {}, "real digits"), loss=functional,
        seed=case.random_seed("model", "seed"),  # the same with and without what is compared
        asked=None if asked is None else Input.parse(str(asked)), **fit, **case.given("norm", "residual"),
    )  # fmt: skip


def _fed(batch: Any) -> str:
    """What a model was really given, in words."""
    if not isinstance(batch, Inputs):
        return f"the first batch of its own training ({nested.describe(batch)})"
    return f"{batch.source} ({nested.describe(batch)})"


def _loss(training: Training, batch: Any, spec: str) -> torch.Tensor:
    try:
        return training.value(batch)
    except WorkloadError as error:  # a sentence already, and not one about the input
        raise StudyError(f"{spec}, fed {nested.describe(batch)}: {error}") from error
    except Exception as error:
        raise StudyError(
            f"{spec} does not take {nested.describe(batch)} ({type(error).__name__}: {error}); give its factory a"
            " parameter input_shape, the module an example_input_array, or the command an --input-shape"
        ) from error


def _calls(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each call of a layer and direction; a repeated call is `name:1`, `name:2`, ...

    Of a layer that returns several tensors the first counts. A tensor that holds NaN or infinity has no other moment.
    """
    frame = frame.sort_values(["layer_index", "call"], kind="stable")
    frame = frame.drop_duplicates(["layer", "call", "direction"]).copy()
    repeated = frame["call"].astype(int)
    frame["name"] = frame["layer"].where(repeated == 0, frame["layer"] + ":" + repeated.astype(str))
    frame["place"] = pd.factorize(frame["name"])[0] + 1
    infinite = frame["positive_infinities"] + frame["negative_infinities"] > 0
    frame["second_moment"] = frame["second_moment"].mask(infinite, math.inf).mask(frame["nans"] > 0, math.nan)
    return frame


@dataclass(frozen=True)
class Network:
    """An architecture in one of its forms.

    Attributes:
        model: its name, or spec.
        norm: its normalization: `none`, `batch`, ...; or `own`.
        skips: `with` or `without` skip connections, `none` where a model of ours has no place for them; or `own`.
        as_built: whether that is what the model is by default.
    """

    model: str
    norm: str
    skips: str
    as_built: bool

    @property
    def partial(self) -> bool:
        """Whether one of the two was left to a user's factory and the other was not."""
        return (self.norm == OWN) != (self.skips == OWN)

    @property
    def full(self) -> bool:
        """Whether neither was."""
        return OWN not in (self.norm, self.skips)


# -- analysis ----------------------------------------------------------------------------------------------------------


def analyse_architectures(rows: pd.DataFrame) -> Answer:
    """How far the gradient reaches in real architectures, and what skip connections and batch normalization change."""
    params = params_of(rows, *KEYS, "seed")
    tracks, fed = _tracks(rows), rows[rows["metric"] == "fed"].set_index("case")["layer"]
    profiles, table = [], []
    measured: dict[Network, pd.DataFrame] = {}
    for network, own_params in _forms(params):
        own_tracks = tracks[tracks["case"].isin(own_params.index)]
        seeds = measured[network] = _by_seed(own_tracks, own_params["seed"])
        given = " or ".join(fed.reindex(own_params.index).dropna().unique())
        profiles.append(_profile(own_tracks).assign(**asdict(network), fed=given))
        table.append({**asdict(network), "fed": given, **_summary(seeds)})
    summary = pd.DataFrame(table)
    skips, normalized = _skips(measured), _batch_norm(measured)
    return Answer(
        {"architecture_profiles": pd.concat(profiles, ignore_index=True), "architectures": summary},
        (
            *_verdict_on_reach(summary),
            *_verdict_on_skips(skips),
            *_verdict_on_batch_norm(normalized, measured),
        ),
        (*_said_of_reach(summary), *_said_of_changes(skips, normalized)),
    )


def _tracks(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a case, direction and call: ln of the signal.

    Forward it is the second moment an element; backward the squared norm of one example's gradient, over that of the
    last layer: with weights scaled by fan-in these are what a layer multiplies by a factor that knows no shapes.
    """
    at = ["case", "layer"]
    moments = rows[rows["metric"] == "second_moment"]
    elements = rows[rows["metric"] == "elements"].set_index(at)["value"].rename("elements")
    tracks = moments[[*at, "layer_index", "direction", "value"]].merge(elements, left_on=at, right_index=True)
    back = tracks["direction"] == "backward"
    with np.errstate(divide="ignore"):
        tracks["log"] = np.log(tracks["value"] * tracks["elements"].where(back, 1.0))
    last = tracks[back].sort_values("layer_index").drop_duplicates("case", keep="last").set_index("case")["log"]
    tracks.loc[back, "log"] -= tracks.loc[back, "case"].map(last)
    return tracks.drop(columns=["value", "elements"])


def _forms(params: pd.DataFrame) -> Iterator[tuple[Network, pd.DataFrame]]:
    """Every form of every model with its cases, the simplest models first."""
    found: dict[Network, pd.DataFrame] = {}
    keys: Any
    for keys, own_params in params.groupby(KEYS, sort=False, dropna=False):
        model, *varied = keys
        found[_network_of(model, *(None if pd.isna(value) else value for value in varied))] = own_params
    known = models.names()
    for network in sorted(found, key=lambda one: known.index(one.model) if one.model in known else len(known)):
        # What a user's factory decides by itself is shown once: as it is, or in all the forms that it can take.
        if not (network.partial and any(other.model == network.model and other.full for other in found)):
            yield network, found[network]


def _network_of(model: str, norm: str | None, residual: bool | float | None) -> Network:
    preset = {} if is_factory(model) else models.arguments(model, "small")
    unknown = OWN if is_factory(model) else "none"
    varied = {"norm": norm, "residual": residual}
    made = {name: preset.get(name) if value is None else value for name, value in varied.items()}
    return Network(
        model,
        norm=unknown if made["norm"] is None else str(made["norm"]),
        skips=unknown if made["residual"] is None else "with" if made["residual"] else "without",
        as_built=all(value is None or value == preset.get(name) for name, value in varied.items()),
    )


def _by_seed(tracks: pd.DataFrame, seeds: pd.Series) -> pd.DataFrame:
    """One row a seed: slopes of both directions toward the end that the signal runs to, and backward spread."""
    found = {}
    for direction, sign in (("forward", 1.0), ("backward", -1.0)):
        own_tracks = tracks[tracks["direction"] == direction]
        wide = own_tracks.pivot_table(index="case", columns="layer_index", values="log", sort=False, dropna=False)
        wide = wide.sort_index(axis="columns")
        wide.index = wide.index.map(seeds.to_dict())
        y = wide.to_numpy()
        deep = y.shape[1] > 2
        found[direction] = pd.Series(sign * stats.slopes(wide.columns, y).slope if deep else math.nan, wide.index)
        if direction == "backward":
            far = np.abs(y).argmax(axis=1)
            found["furthest"] = pd.Series(y[np.arange(len(y)), far] / math.log(10) / 2, wide.index)
            found["layers"] = pd.Series(y.shape[1], wide.index)
            names = own_tracks.drop_duplicates("layer_index").sort_values("layer_index")["layer"]
            found["where"] = pd.Series(names.to_numpy()[far], wide.index)
            found["logs"] = pd.Series([dict(zip(names, line, strict=True)) for line in y], wide.index)
    return pd.DataFrame(found).sort_index()


def _profile(tracks: pd.DataFrame) -> pd.DataFrame:
    """Mean and range over seeds, call by call, in decades of the root mean square and of the gradient's norm."""
    decades = tracks.assign(value=tracks["log"] / math.log(10) / 2)
    by = ["direction", "layer_index", "layer"]
    profile = decades.groupby(by, sort=False)["value"].agg(["mean", "min", "max", "size"]).reset_index()
    layers = profile["layer_index"].max()
    profile["depth"] = (profile["layer_index"] - 1) / max(layers - 1, 1)
    return profile.rename(columns={"min": "low", "max": "high", "size": "n"})


def _summary(seeds: pd.DataFrame) -> dict[str, object]:
    forward, backward = (stats.mean(seeds[direction].to_numpy()) for direction in ("forward", "backward"))
    beyond = int((~(seeds["furthest"].abs() <= REACH)).sum())  # NaN is not near
    return {
        "layers": int(seeds["layers"].iloc[0]), "n": len(seeds),
        "forward": forward.value, "forward_low": forward.low, "forward_high": forward.high,
        "backward": backward.value, "backward_low": backward.low, "backward_high": backward.high,
        "furthest": float(seeds["furthest"].median()), "where": seeds["where"].mode()[0], "beyond": beyond,
    }  # fmt: skip


def _verdict_on_reach(summary: pd.DataFrame) -> Iterator[Verdict]:
    built = summary[summary["as_built"] & (summary["layers"] > 1)]
    if built.empty:
        return
    told: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for row in records(built):
        share = stats.rate(row.beyond, row.n)
        fine = None if row.n < 5 or share.low <= 0.5 <= share.high else share.high < 0.5
        told[fine].append(row.model if fine else f"{row.model} ({_power(row.furthest)} at {row.where})")
    share = stats.rate(int((built["n"] - built["beyond"]).sum()), int(built["n"].sum()))
    yield verdict_on(
        "gradient_flow/architectures",
        Status(stats.combine([fine for fine, names in told.items() for _ in names])),
        _told(
            (f"the gradient's norm stays within a factor of {10**REACH:,.0f} of that at the output in", told[True]),
            (
                "it leaves that range (in brackets the norm furthest off, relative to the output's, and its layer) in",
                told[False],
            ),
            ("it is undecided for", told[None]),
        ),
        observed=share.value,
        low=share.low,
        high=share.high,
        unit="share of networks",
        n=share.n,
        method=f"every call of a weight layer within {REACH:g} decades; decided for an architecture where Wilson's "
        "interval over seeds leaves a half out; the figure is over all architectures as they are built",
    )


def _told(*groups_of_names: tuple[str, Sequence[str]]) -> str:
    """Each group that is not empty, with what is said of it."""
    return "; ".join(f"{words} {', '.join(names)}" for words, names in groups_of_names if names)


def _power(decades: float) -> str:
    return f"1e{decades:+.0f}" if math.isfinite(decades) else {-math.inf: "0", math.inf: "inf"}.get(decades, "NaN")


def _find(measured: Mapping[Network, pd.DataFrame], *made: str) -> pd.DataFrame | None:
    return next((seeds for n, seeds in measured.items() if (n.model, n.norm, n.skips) == made), None)


def _skips(measured: Mapping[Network, pd.DataFrame]) -> dict[tuple[str, str], stats.Comparison]:
    """(model, norm) -> decades between largest and smallest gradient of the layers that both have: with - without."""
    pairs = {}
    for network, having in measured.items():
        lacking = _find(measured, network.model, network.norm, "without")
        if network.skips == "with" and lacking is not None:
            pairs[network.model, network.norm] = _pair(_spread(having, lacking), _spread(lacking, having))
    return dict(zip(pairs, stats.together(pairs.values()), strict=True)) if pairs else {}


def _spread(seeds: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    """Decades of the norm between the largest and the smallest gradient, over the layers that the other has too."""
    common = [layer for layer in seeds["logs"].iloc[0] if layer in other["logs"].iloc[0]]
    values = [[line[layer] for layer in common] for line in seeds["logs"]]
    return pd.Series(np.ptp(values, axis=1) / math.log(10) / 2, seeds.index)


def _pair(a: pd.Series, b: pd.Series) -> stats.Comparison:
    both = a.index.intersection(b.index)
    first, second = a[both].to_numpy(), b[both].to_numpy()
    # Effects of many standard errors, at fewer seeds than the sign flips of a family this large would need; where a
    # layer gets no gradient at all, decades are infinite and have a median, but no mean.
    infinite = np.isinf(first).any() or np.isinf(second).any()
    return stats.paired(first, second, test="median" if infinite else "t")


def _furthest(pairs: Mapping[tuple[str, str], stats.Comparison]) -> tuple[tuple[str, str], stats.Comparison]:
    """The pair of the largest finite effect; the first pair where none is finite."""
    finite = [item for item in pairs.items() if math.isfinite(item[1].effect.value)]
    return max(finite, key=lambda item: abs(item[1].effect.value)) if finite else next(iter(pairs.items()))


def _verdict_on_skips(pairs: Mapping[tuple[str, str], stats.Comparison]) -> Iterator[Verdict]:
    if not pairs:
        return
    told = [(f"{model} ({_norm(norm)})", pair) for (model, norm), pair in pairs.items()]
    (model, norm), largest = _furthest(pairs)
    yield verdict_on(
        "gradient_flow/skips",
        Status(stats.combine(True if p.below else False if p.above else None for p in pairs.values())),
        _told(
            ("they make it smaller in", [name for name, pair in told if pair.below]),
            ("larger in", [name for name, pair in told if pair.above]),
            ("no difference is established in", [name for name, pair in told if not pair.differs]),
        ),
        **_figures(largest),
        unit="decades",
        method=f"decades between the largest and the smallest gradient norm of the common layers, with minus without; "
        f"paired t (where a layer gets no gradient at all, sign test of the median), Holm over {len(pairs)}; the "
        f"figure is the largest that is finite, {model}, {_norm(norm)}",
    )


def _batch_norm(
    measured: Mapping[Network, pd.DataFrame],
) -> dict[str, tuple[stats.Comparison, stats.Comparison]]:
    """Model -> growth of its squared gradient a layer against 0, with batch normalization and without; no skips."""
    pairs = {}
    for network, having in measured.items():
        lacking = _find(measured, network.model, "none", network.skips)
        if network.norm == "batch" and network.skips != "with" and lacking is not None:
            pairs[network.model] = [stats.against(seeds["backward"].to_numpy(), 0.0) for seeds in (having, lacking)]
    family = iter(stats.together([comparison for pair in pairs.values() for comparison in pair]))
    return {model: (next(family), next(family)) for model in pairs}


def _verdict_on_batch_norm(
    pairs: Mapping[str, tuple[stats.Comparison, stats.Comparison]],
    measured: Mapping[Network, pd.DataFrame],
) -> Iterator[Verdict]:
    if not pairs:
        return
    conditions = [True if (a.above and b.below) else False if (a.below or b.above) else None for a, b in pairs.values()]
    chains = [model for model in pairs if model not in BRANCHED] or list(pairs)
    deepest = max(chains, key=lambda model: max(s["layers"].iloc[0] for n, s in measured.items() if n.model == model))
    yield verdict_on(
        "gradient_flow/batch_norm",
        Status(stats.combine(conditions)),
        _told(
            ("with it the gradient grows in", [model for model, (a, _) in pairs.items() if a.above]),
            ("with it it still shrinks in", [model for model, (a, _) in pairs.items() if a.below]),
            ("with it neither is established in", [model for model, (a, _) in pairs.items() if not a.differs]),
            ("without it it shrinks in", [model for model, (_, b) in pairs.items() if b.below]),
            ("without it it grows in", [model for model, (_, b) in pairs.items() if b.above]),
            ("without it neither is established in", [model for model, (_, b) in pairs.items() if not b.differs]),
        )
        + f"; {deepest}: {_rate(pairs[deepest][0])} a layer with it, {_rate(pairs[deepest][1])} without",
        **_figures(pairs[deepest][0]),
        predicted=_theory_of_batch_norm(),
        unit="ln a layer",
        method=f"line through ln of the squared gradient over weight layers, one a seed; t against 0, Holm over "
        f"{2 * len(pairs)}; the figure is that of {deepest} with batch normalization and no skips, the prediction that "
        "of fully connected ReLU layers at a large batch (Yang et al. 2019)",
    )


def _theory_of_batch_norm() -> float:
    """At a large batch, since a channel is normalized over the pixels of the batch as well."""
    return math.log(theory.batch_norm_growth("relu", math.inf))


def _figures(comparison: stats.Comparison) -> dict[str, float | int]:
    effect = comparison.effect
    return {"observed": effect.value, "low": effect.low, "high": effect.high, "n": effect.n}


def _norm(norm: str) -> str:
    return {"none": "no normalization", OWN: "its own normalization"}.get(norm, f"{norm} normalization")


def _rate(comparison: stats.Comparison) -> str:
    return f"a factor of {math.exp(comparison.effect.value):.2f}"


def _said_of_reach(summary: pd.DataFrame) -> tuple[str, ...]:
    built = summary[summary["as_built"] & (summary["layers"] > 1)]
    if built.empty:
        return ()
    lost = built[~(built["furthest"].abs() <= REACH)].sort_values("furthest", key=abs, ascending=False)
    worst = ", ".join(f"{row.model} ({_power(row.furthest)} at {row.where})" for row in records(lost))
    rest = f"; in {len(lost)} it falls or rises by more: {worst}" if len(lost) else ""
    sentence = (
        f"At initialization the gradient's norm stays within a factor of {10**REACH:,.0f} of that at the output in "
        f"{len(built) - len(lost)} of {len(built)} architectures as they are built by default{rest}."
    )
    return (sentence,)


def _said_of_changes(
    skips: Mapping[tuple[str, str], stats.Comparison],
    normalized: Mapping[str, tuple[stats.Comparison, stats.Comparison]],
) -> Iterator[str]:
    if skips:
        (model, norm), most = _furthest(skips)
        dead = [f"{name} ({_norm(n)})" for (name, n), pair in skips.items() if pair.effect.value == -math.inf]
        without = (
            f"; without them most networks have layers that no gradient reaches in {', '.join(dead)}" if dead else ""
        )
        yield (
            f"Skip connections narrow the range of the gradient's norm over the layers in "
            f"{sum(pair.below for pair in skips.values())} of {len(skips)} pairs of networks and widen it in "
            f"{sum(pair.above for pair in skips.values())}; in {model} with {_norm(norm)} it changes by "
            f"{most.effect.value:.1f} decades{without}."
        )
    if normalized:
        turned = sum(having.above and lacking.below for having, lacking in normalized.values())
        yield (
            f"Batch normalization turns a gradient that shrinks toward the input into one that grows in {turned} of "
            f"{len(normalized)} architectures without skip connections."
        )


# -- figures -----------------------------------------------------------------------------------------------------------

# Normalized or not, with skip connections or without; None where a user's own factory does not say.
LOOKS = {
    (True, True): ("C0", "normalization and skip connections"),
    (True, False): ("C1", "normalization alone"),
    (False, True): ("C2", "skip connections alone"),
    (False, False): ("C3", "neither"),
    (True, None): ("C1", "with normalization"),
    (False, None): ("C3", "without normalization"),
    (None, True): ("C0", "with skip connections"),
    (None, False): ("C5", "without skip connections"),
    (None, None): ("C6", "as its factory makes it"),
}
PANELS = {"forward": ("rms of\nthe output", (-3.2, 2.2)), "backward": ("norm of\nthe gradient", (-9.5, 4.5))}
COLUMNS = 6


def _look(norm: str, skips: str) -> tuple[bool | None, bool | None]:
    return None if norm == OWN else norm != "none", None if skips == OWN else skips == "with"


def _legend(canvas: Canvas, frame: pd.DataFrame) -> None:
    shown = {_look(norm, skips) for norm, skips in zip(frame["norm"], frame["skips"], strict=True)}
    handles = [Line2D([], [], color=color, lw=2, label=word) for look, (color, word) in LOOKS.items() if look in shown]
    canvas.legend(handles=handles, loc="outside lower center", ncols=2)


def plot_architectures(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """Signal and gradient layer by layer, two panels for every architecture."""
    if "architecture_profiles" not in tables:
        return
    profiles = tables["architecture_profiles"]
    names = list(dict.fromkeys(profiles["model"]))
    columns = min(COLUMNS, len(names))
    blocks = math.ceil(len(names) / columns)
    named = _named(profiles) if len(names) == 1 else None
    size = (
        max(6.8, 2.0 * columns),
        2.9 * blocks + 1.0 + (0.0 if named is None else 0.08 * named["layer"].str.len().max()),
    )
    canvas, axes = plt.subplots(2 * blocks, columns, figsize=size, sharex=True, squeeze=False)
    for number, name in itertools.zip_longest(range(blocks * columns), names):
        own_profiles = profiles[profiles["model"] == name]
        for below, direction in enumerate(PANELS):
            axis = axes[2 * (number // columns) + below, number % columns]
            if name is None:
                axis.set_visible(False)
                continue
            _draw_panel(axis, own_profiles[own_profiles["direction"] == direction])
            word, limits = PANELS[direction]
            axis.set(xlim=(-0.03, 1.03), ylim=limits)
            if named is None:
                axis.set_xticks((0, 0.5, 1), ("in", "", "out"))
            else:
                axis.set_xticks(named["depth"], named["layer"], rotation=90, fontsize="small")
            axis.yaxis.set_major_formatter(lambda value, _: f"$10^{{{value:.0f}}}$")
            axis.tick_params(labelleft=number % columns == 0, labelbottom=below == 1)
            if number % columns == 0:
                axis.set_ylabel(word, fontsize="small")
            if not below:
                axis.set_title(name.removesuffix("_32x4d"), fontsize="medium", pad=3)
    _legend(canvas, profiles)
    varied = profiles[["norm", "skips"]].drop_duplicates().shape[0] > 1
    yield Figure(
        "architectures",
        canvas,
        "Skip connections and normalization decide how far the gradient of an architecture reaches at initialization"
        if varied
        else "What signal and gradient do in a real architecture at initialization",
        f"Each pair of panels: one model{_made(names)}, fed {' or '.join(profiles['fed'].unique())}, weight layers "
        f"from input to output in the order in which they run{_recurrent(names)}. Above, the root mean square of each "
        "layer's output; below, the norm of the gradient with respect to it, relative to the last layer's. Thick: as "
        "the model is built by default; line and band: mean and range over "
        f"{int(profiles['n'].min())} seeds. Lines that leave a panel go on outside it; a gap is a layer without any "
        "signal.",
    )


def _made(names: Sequence[str]) -> str:
    made = ("as its factory makes it" if is_factory(name) else "at its small preset" for name in names)
    return f" {' or '.join(dict.fromkeys(made))}"


def _recurrent(names: Sequence[str]) -> str:
    there = [name for name in names if name in ("rnn", "lstm")]
    return f" ({' and '.join(there)}: the layer of the input, then that of the state step by step)" if there else ""


def _named(profiles: pd.DataFrame) -> pd.DataFrame:
    """The layers of one network by name, as many as there is room for: of its forms that which it is by default."""
    built = profiles[profiles["as_built"]]
    first = (profiles if built.empty else built)[["norm", "skips"]].iloc[0]
    return layers_to_name(profiles[(profiles[["norm", "skips"]] == first).all(axis=1)])


def _draw_panel(axis: Axes, lines: pd.DataFrame) -> None:
    finite = lines.replace([math.inf, -math.inf], math.nan).sort_values("layer_index")
    for (norm, skips, built), line in groups(finite, ["norm", "skips", "as_built"]):
        color, _ = LOOKS[_look(norm, skips)]
        width = 2.0 if built else 1.1
        axis.plot(line["depth"], line["mean"], color=color, lw=width, zorder=2 if built else 3)
        axis.fill_between(line["depth"], line["low"], line["high"], color=color, alpha=0.25, lw=0)


def plot_architecture_rates(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """The rate a layer at which each architecture's gradient grows or shrinks, beside theory's."""
    if "architectures" not in tables or not np.isfinite(tables["architectures"]["backward"]).any():
        return
    summary = tables["architectures"]
    names = list(dict.fromkeys(summary["model"]))
    canvas, axis = plt.subplots(figsize=(7.6, 2.4 + 0.3 * len(names)))
    for value, style, label in (
        (math.log(1 / 6), "--", "PyTorch's default,\nReLU: ln 1/6"),
        (_theory_of_batch_norm(), ":", "batch norm, ReLU:\nln π/(π-1)"),
    ):
        axis.axvline(value, color="0.35", lw=1.2, ls=style)
        axis.text(value, -0.75, label, ha="center", va="bottom", fontsize="small", color="0.35")
    axis.axvline(0.0, color="0.75", lw=1.0)
    forms = summary.assign(form=summary.groupby("model").cumcount())
    for row in records(forms):
        place = names.index(row.model) + 0.16 * (row.form - (forms["model"] == row.model).sum() / 2 + 0.5)
        color, _ = LOOKS[_look(row.norm, row.skips)]
        axis.plot([row.backward_low, row.backward_high], [place, place], color=color, lw=1.6)
        axis.plot(row.backward, place, "o" if row.as_built else "D", color=color, ms=6 if row.as_built else 4)
    axis.set_yticks(range(len(names)), names)
    axis.set(ylim=(len(names) - 0.4, -0.7), xlabel="growth of the squared gradient toward the input, ln a layer")
    _legend(canvas, summary)
    yield Figure(
        "architecture_rates",
        canvas,
        "Batch normalization turns the decay of PyTorch's default initialization into growth"
        if (_median(summary, "batch") > 0) and (_median(summary, "none") < 0)
        else "How fast the gradient of real architectures grows or shrinks toward the input",
        "Slope of ln of the squared gradient norm over weight layers (rnn and lstm: over steps), 95 % t interval over "
        f"{int(summary['n'].min())} seeds; circles: as the model is built by default. Theory, for fully connected ReLU "
        "layers: 1/3 from the variance of nn.Linear's weights times 1/2 from ReLU; with batch normalization "
        "Yang et al. 2019 at a large batch.",
    )


def _median(summary: pd.DataFrame, norm: str) -> float:
    """Growth of the squared gradient a layer over the networks without skip connections."""
    return float(summary.loc[(summary["norm"] == norm) & (summary["skips"] != "with"), "backward"].median())
