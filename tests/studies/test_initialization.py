"""What is special to the study: closed forms of its measurements, and its verdicts on rows whose answer is known."""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from depthgauge import models, theory
from depthgauge.initialization import gaussian
from depthgauge.parts import Part
from depthgauge.restriction import restrict
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.initialization import STUDY, signal, spectrum, stacks, symmetry, training
from depthgauge.study import Context, Grid, Rows, StudyError, Value
from depthgauge.verdict import Status, Verdict

Tidy = Callable[..., pd.DataFrame]
SEEDS = 8
HOLDS, FAILS, DEPENDS, OPEN = Status.HOLDS, Status.FAILS, Status.DEPENDS, Status.INCONCLUSIVE


def verdict(frame: pd.DataFrame, claim: str) -> Verdict:
    return {answer.id.removeprefix("initialization/"): answer for answer in STUDY.analyse(frame).verdicts}[claim]


def measure(part: Part, grid: Grid) -> list[Rows]:
    return list(part.run(tuple(grid.cases()), Context()))


SIGNAL = {"part": "signal", "model": "mlp", "depth": 6, "units": 64, "norm": "none", "activation": "relu"}


def test_schemes_of_one_seed_differ_by_their_scale_alone() -> None:
    """He's variance is twice LeCun's and the draws are the same: ln 2 a layer, exactly, as ReLU is homogeneous."""
    rows = measure(signal.PART, Grid({"scheme": ("lecun", "he")}, SIGNAL, 1, ("scheme", "seed")))
    logs = {(row.case["scheme"], row.direction): np.asarray(row.value) for row in rows}
    forward, backward = (logs["he", way] - logs["lecun", way] for way in ("forward", "backward"))
    layers = np.arange(1, 8)
    np.testing.assert_allclose(forward, layers * math.log(2), rtol=1e-5)  # weights are drawn in single precision
    np.testing.assert_allclose(backward, (7 - layers) * math.log(2), rtol=1e-5, atol=1e-12)


def test_a_network_without_two_layers_in_between_has_no_rate(tidy: Tidy) -> None:
    """A depth of 2 are three weight layers; 3 are four."""
    shallow, enough = (Grid({"scheme": ("he",)}, {**SIGNAL, "depth": depth}, 2) for depth in (2, 3))
    with pytest.raises(StudyError, match=r"a rate a layer .* takes 4 weight layers; mlp has 3$"):
        measure(signal.PART, shallow)
    assert np.isfinite(STUDY.analyse(tidy(measure(signal.PART, enough))).tables["signal_rates"]["value"]).all()


@pytest.mark.parametrize(
    ("lsuv", "normed", "status"), [(0, 0, HOLDS), (0.3, -0.3, FAILS), (0, 0.3, DEPENDS), (0.1, 0, OPEN)]
)
def test_n11_asks_where_moments_are_held(tidy: Tidy, lsuv: float, normed: float, status: Status) -> None:
    """Rates by LSUV and by layer norm; He's plain network, of rate 0.3, has no part in it."""

    def planted() -> Iterator[Rows]:
        for norm, scheme, rate in (("none", "lsuv", lsuv), ("layer", "he", normed), ("none", "he", 0.3)):
            for case in Grid({"scheme": (scheme,)}, {**SIGNAL, "norm": norm}, SEEDS).cases():
                for way, sign in (("forward", 1), ("backward", -1)):
                    line = sign * (rate + 1e-3 * math.sin(case.integer("seed"))) * np.arange(5)
                    whole = np.concatenate([[9.0], line, [-9.0]])  # neither the first layer nor the outputs are judged
                    yield case.rows("log_moment", whole, layer_index=np.arange(1, 8), direction=way)

    answer = verdict(tidy(planted()), "N11")
    assert answer.status is status
    assert ("not steady: he (layer norm, relu, forward)" in answer.why) is (status is DEPENDS)


@pytest.mark.parametrize("seeds", [4, SEEDS])
def test_schemes_that_are_undecided_are_not_called_unsteady(tidy: Tidy, seeds: int) -> None:
    """He's signal and gradient stand still, Xavier's halve; 4 seeds decide neither."""

    def planted() -> Iterator[Rows]:
        for scheme, rate in (("he", 0.0), ("xavier", -0.7)):
            for case in Grid({"scheme": (scheme,)}, SIGNAL, seeds).cases():
                for way, sign in (("forward", 1), ("backward", -1)):
                    line = sign * (rate + 1e-3 * math.sin(case.integer("seed"))) * np.arange(7)
                    yield case.rows(
                        "log_moment", line, layer_index=np.arange(1, 8), layer=list("abcdefg"), direction=way
                    )

    found = STUDY.analyse(tidy(planted()))
    (told,) = [answer.text for answer in found.answers if "keep their size" in getattr(answer, "text", "")]
    title = signal._title(found.tables["signal"], found.tables["steadiness"])
    if seeds < SEEDS:
        assert told.endswith("from 0 of 2 initializations: none; 2 of 2 are undecided.")
        assert title == "Signal and gradient are steady from: none of these (undecided: he, xavier)"
    else:
        assert told.endswith("from 1 of 2 initializations: he.")
        assert title == "Signal and gradient are steady from: he"


@pytest.mark.parametrize(("rate", "told"), [(0.4, "1.49"), (-0.1, "0.90")])
def test_what_batch_norm_does_to_a_gradient_is_told_either_way(tidy: Tidy, rate: float, told: str) -> None:
    def planted() -> Iterator[Rows]:
        for case in Grid({"scheme": ("he",)}, {**SIGNAL, "norm": "batch"}, SEEDS).cases():
            for way, line in (("forward", np.zeros(7)), ("backward", rate * np.arange(7)[::-1])):
                yield case.rows("log_moment", line, layer_index=np.arange(1, 8), layer=list("abcdefg"), direction=way)

    growth = theory.batch_norm_growth("relu", signal.BATCH)
    (line,) = [answer.text for answer in STUDY.analyse(tidy(planted())).answers if hasattr(answer, "text")]
    assert line.startswith(f"Under batch norm a layer multiplies the squared gradient, toward the input, by {told} at")
    assert line.endswith(f" at initialization (theory: {growth:.2f}).")


def test_the_laws_of_plain_and_normalized_signals_are_theorys() -> None:
    named = {"model": "mlp", "norm": "batch", "activation": "relu", "scheme": "he", "units": 128}
    backward = signal._law(named, "backward", 0.0, 11)
    assert backward[0] - backward[-1] == pytest.approx(10 * math.log(theory.batch_norm_growth("relu", signal.BATCH)))
    assert not signal._law(named, "forward", 0.0, 11).any()
    plain = signal._law({**named, "norm": "no"}, "forward", 0.0, 11)
    assert np.diff(plain) == pytest.approx([theory.relu_log_gain(128, 2.0).mean] * 10)


def test_spectra_of_orthogonal_networks_are_exact() -> None:
    """Linear: all ones. One ReLU layer: sqrt(2) or 0, as the rows of an orthogonal matrix are orthonormal."""
    fixed = {"part": "spectrum", "width": 24, "weights": "orthogonal"}
    rows = measure(spectrum.PART, Grid({"activation": ("identity", "relu", "tanh")}, fixed, 1))
    at = {(row.case["activation"], row.layer or row.metric, row.layer_index): float(row.value) for row in rows}
    assert at["identity", "squared_mean", 32] == pytest.approx(at["identity", "1", 32]) == pytest.approx(1.0)
    assert at["identity", "squared_variance", 32] < 1e-24
    mean = at["relu", "squared_mean", 1]
    assert mean * 12 == pytest.approx(round(mean * 12))  # two for every active unit
    assert at["relu", "squared_variance", 1] == pytest.approx(mean * (2 - mean))
    assert at["tanh", "squared_mean", 1] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("tanh", "relu", "status"), [(1.1, 50.0, HOLDS), (50.0, 50.0, DEPENDS), (1.1, 1.1, DEPENDS)])
def test_isometry(tidy: Tidy, tanh: float, relu: float, status: Status) -> None:
    """Spans of the singular values from orthogonal weights; Gaussian ones span 100."""
    spans = {"tanh": tanh, "relu": relu, "identity": 1.0}

    def planted() -> Iterator[Rows]:
        varied = {"activation": ("identity", "relu", "tanh"), "weights": ("gaussian", "orthogonal")}
        for case in Grid(varied, {"part": "spectrum", "width": 128}, SEEDS).cases():
            span = spans[case.text("activation")] if case["weights"] == "orthogonal" else 100.0
            for depth in spectrum.DEPTHS:
                for name, singular in (("0.05", 1 / span), ("0.5", 1.0), ("0.95", 1.0)):
                    yield case.rows("singular_value", singular, layer_index=depth, layer=name)
                yield from (case.rows(f"squared_{name}", 1.0, layer_index=depth) for name in ("mean", "variance"))

    answer = verdict(tidy(planted()), "isometry")
    assert (answer.status, answer.observed) == (status, pytest.approx(tanh))


def test_growth_is_that_of_the_sums() -> None:
    """Two blocks of pre order, by hand."""
    fixed = {"part": "stacks", "order": "pre", "norm": "none", "width": 16, "blocks": 2}
    (row,) = measure(stacks.PART, Grid({"branch": ("1",)}, fixed, 1))
    seed = row.case.random_seed("seed", "width")
    shape = {"input_shape": (16,), "width": 16, "depth": 3, "classes": 2, "bias": False, "residual": True}
    model = models.build("mlp", seed=seed, init=gaussian(2**0.5), order="pre", **shape).double()
    x = torch.randn(stacks.INPUTS, 16, generator=generator(seed, Purpose.INPUTS), dtype=torch.float64)
    first, *blocks = (model.hidden[number].linear.weight.detach() for number in range(3))
    stream = [x @ first.T]
    for weight in blocks:
        stream.append(stream[-1] + stream[-1].relu() @ weight.T)
    sums = np.array([float(h.square().mean(1).log().mean()) for h in stream])
    np.testing.assert_allclose(row.value, sums - sums[0], atol=1e-12)


SHAPE = {"part": "symmetry", "depth": 2, "width": 8, "steps": 40, "lr": 0.03}
SYMMETRY = Grid({"scheme": ("zeros", "constant", "he")}, SHAPE, 6, ("scheme", "seed"))


def test_units_that_start_the_same_stay_the_same(tidy: Tidy) -> None:
    zeros, constant, he = STUDY.analyse(tidy(measure(symmetry.PART, SYMMETRY))).tables["schemes"]["furthest_apart"]
    assert zeros == 0
    assert constant < symmetry.SAME < 0.5 < he


@pytest.mark.parametrize(("apart", "status"), [(0.0, HOLDS), (1e-6, HOLDS), (0.5, FAILS)])
def test_symmetry(tidy: Tidy, apart: float, status: Status) -> None:
    """He's weights, far apart, have no part in it."""
    far = {"zeros": apart, "constant": apart, "he": 1.0}
    rows = [case.rows("apart", far[case.text("scheme")], layer="hidden.0.linear") for case in SYMMETRY.cases()]
    rows += [case.rows("test_accuracy", 0.2) for case in SYMMETRY.cases()]
    assert verdict(tidy(rows), "symmetry").status is status


RATES = (0.003, 0.01, 0.03)
MLP = {"model": "mlp", "depth": 10, "units": 64, "norm": "none"}
SAME = {"he": 0.95, "xavier": 0.951, "orthogonal": 0.949, "zeros": 0.1}
OTHER = {"he": 0.95, "xavier": 0.85, "orthogonal": 0.9, "zeros": 0.1}


def trained(
    accuracy: Mapping[str, float], best: float = 0.01, spread: float = 0.001, *, reported_best: float | None = None,
    **shape: Value,
) -> Iterator[Rows]:  # fmt: skip
    """Every scheme with its accuracy at the best rate, 0.1 less at every step from it; seeds below 0 choose."""
    shape = {**MLP, **shape}
    fixed = {"part": "training", "steps": 100, "sweep": " ".join(map(str, shape.values())), **shape}
    for case in Grid({"scheme": tuple(accuracy), "lr": RATES}, fixed, SEEDS, selection=3).cases():
        scheme, seed = case.text("scheme"), case.integer("seed")
        peak = best if seed < 0 or reported_best is None else reported_best
        off = abs(RATES.index(case.number("lr")) - RATES.index(peak))
        end = accuracy[scheme] + spread * math.sin(7 * seed + len(scheme)) - 0.1 * off
        ends = {"validation_accuracy": end, "test_accuracy": end, "train_accuracy": end, "train_loss": 1.0}
        for metric, value in {**ends, "diverged": 0.0, "reached": 0.0, "steps_to_target": 100.0}.items():
            yield case.rows(metric, value)


def plain_and_normed(first: Mapping[str, float], second: Mapping[str, float], *more: float) -> list[Rows]:
    return [*trained(first, *more), *trained(second, *more, norm="layer")]


def seven_depths(he: float, lsuv: float, best: float = 0.01) -> list[Rows]:
    """As many decide between two schemes; Xavier's weights are none of those scaled to the activation."""
    accuracy = {"he": he, "lsuv": lsuv, "xavier": 0.2}
    return [row for depth in range(1, 8) for row in trained(accuracy, best, depth=depth)]


def convolutional(xavier22: float, xavier30: float, best: float = 0.01) -> list[Rows]:
    deep = trained({"he": 0.9, "xavier": xavier30}, best, model="plain_cnn", depth=30)
    return [*trained({"he": 0.9, "xavier": xavier22}, model="plain_cnn", depth=22), *deep]


def residual(fixup: float, best: float = 0.01) -> list[Rows]:
    normed = trained({"he": 0.9}, model="resnet18", norm="batch")
    return [*normed, *trained({"he": 0.5, "fixup": fixup}, best, model="resnet18")]


AT_EDGE = 0.03  # the best rate is the last of the grid: a better one may lie outside


@pytest.mark.parametrize(
    ("claim", "planted", "arguments", "status"),
    [
        ("N10", plain_and_normed, (SAME, SAME), HOLDS), ("N10", plain_and_normed, (OTHER, OTHER), FAILS),
        ("N10", plain_and_normed, (OTHER, SAME), DEPENDS), ("N10", plain_and_normed, (OTHER, OTHER, AT_EDGE), OPEN),
        ("N10", plain_and_normed, (SAME, SAME, 0.01, 0.05), OPEN),  # too noisy
        ("N09", seven_depths, (0.9, 0.9), HOLDS), ("N09", seven_depths, (0.2, 0.2), FAILS),
        ("N09", seven_depths, (0.9, 0.2), DEPENDS), ("N09", seven_depths, (0.2, 0.2, AT_EDGE), OPEN),
        ("N09", seven_depths, (0.9, 0.9, AT_EDGE), HOLDS),  # a better rate would change nothing
        ("crossover", convolutional, (0.9, 0.1), HOLDS), ("crossover", convolutional, (0.1, 0.1), FAILS),
        ("crossover", convolutional, (0.9, 0.9), FAILS), ("crossover", convolutional, (0.9, 0.1, AT_EDGE), OPEN),
        ("fixup", residual, (0.9,), HOLDS), ("fixup", residual, (0.95,), HOLDS),  # better is as good
        ("fixup", residual, (0.7,), FAILS), ("fixup", residual, (0.7, AT_EDGE), OPEN),
    ],
)  # fmt: skip
def test_verdicts_on_trained_networks(
    tidy: Tidy, claim: str, planted: Callable[..., list[Rows]], arguments: tuple[object, ...], status: Status
) -> None:
    assert verdict(tidy(planted(*arguments)), claim).status is status


def test_verdicts_say_where_they_are_true(tidy: Tidy) -> None:
    """Zeros are no normal initialization, and are not asked about."""
    frame = tidy(plain_and_normed(OTHER, SAME))
    assert "within 1% of He's weights end xavier in a 10-layer MLP (layer norm)" in verdict(frame, "N10").why
    assert "further from them end xavier in a 10-layer MLP (no norm)" in verdict(frame, "N10").why
    assert set(STUDY.analyse(frame).tables["equivalence"]["scheme"]) == {"xavier", "orthogonal"}
    assert "he trains in 0 of 7 architectures" in verdict(tidy(seven_depths(0.2, 0.9)), "N09").why
    one = verdict(
        tidy(trained({"he": 0.9, "lsuv": 0.9}, 0.01, depth=10)), "N09"
    )  # 1 architecture: its runs are counted
    assert (one.status, one.n, one.counted) == (HOLDS, 8, "runs")
    assert "xavier at 22 layers 8 of 8, he" in verdict(tidy(convolutional(0.9, 0.1)), "crossover").why


def test_the_seeds_that_choose_a_rate_are_not_reported(tidy: Tidy) -> None:
    """They choose 0.01, where the others, whose best rate is 0.03, end 0.1 lower."""
    tables = STUDY.analyse(tidy(trained({"he": 0.95}, reported_best=0.03))).tables
    (row,) = tables["outcomes"].to_dict("records")
    assert (row["n"], row["lr"], row["accuracy"]) == (SEEDS, 0.01, pytest.approx(0.85, abs=0.002))
    assert (row["steps"], row["reached"]) == (100.0, 0)  # censored at the budget
    assert (tables["steps"]["seed"] >= 0).all()


@pytest.mark.parametrize(("best", "further"), [(0.003, {0.001}), (0.01, set()), (0.03, {0.09})])
def test_a_choice_at_the_end_of_the_grid_adds_a_rate(tidy: Tidy, best: float, further: set[float]) -> None:
    rows = tidy(trained({"he": 0.95}, best))
    grids = list(training.SECOND(rows))
    assert {(case["scheme"], case["lr"]) for grid in grids for case in grid.cases()} == {("he", lr) for lr in further}


def test_it_runs_on_another_model() -> None:
    """A ResNet has no depth to be given; what asks for MLPs of the study's own is left out."""
    restricted = restrict(STUDY, "quick", models.target("resnet18"))
    asked = {(grid.fixed["part"], grid.fixed["model"]) for grid in restricted.grids}
    assert asked == {("training", "resnet18"), ("signal", "resnet18")}
    assert "initialization/spectrum" in restricted.not_applicable


def test_runs_that_were_asked_for_twice_count_once(tidy: Tidy) -> None:
    """Grids of several depths become one where the model has no depth; budgets are kept apart."""
    mine = {"model": "mine:net", "depth": None, "norm": None}
    table = STUDY.analyse(tidy([*trained(SAME, **mine, units=64), *trained(SAME, **mine, units=32)])).tables["outcomes"]
    assert {(row.condition, row.n) for row in table.itertuples()} == {("mine:net (100 steps)", SEEDS)}


@pytest.fixture
def nets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factories as a user has them: of no layer that schemes reach, of one, and of two."""
    norm, spectral = parametrizations.weight_norm, parametrizations.spectral_norm
    module = types.ModuleType("their_nets")
    for name, first, second in (("none", spectral, spectral), ("some", spectral, norm), ("both", norm, norm)):
        layers = nn.Flatten(), first(nn.Linear(64, 32)), nn.ReLU(), second(nn.Linear(32, 10))
        setattr(module, name, functools.partial(nn.Sequential, *layers))
    monkeypatch.setitem(sys.modules, "their_nets", module)


def run_on(name: str, part: Part = training.PART) -> list[Rows]:
    shape = {"model": f"their_nets:{name}", "part": part.name, "depth": None, "norm": None, "activation": None}
    return measure(part, Grid({"scheme": ("default", "he")}, {**shape, "lr": 0.03, "steps": 3, "units": 8}, 2))


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize("part", [training.PART, signal.PART], ids=lambda part: part.name)
def test_where_no_scheme_reaches_a_layer_nothing_is_run_and_no_claim_applies(part: Part, tidy: Tidy) -> None:
    rows = run_on("none", part)
    assert {(row.metric, row.value) for row in rows} == {("layers_reached", 0.0)}
    assert part.after("quick", tidy(rows)) == ()
    verdicts = [answer for answer in STUDY.analyse(tidy(rows)).verdicts if answer.status is Status.NOT_APPLICABLE]
    assert {answer.id for answer in verdicts} == {claim.id for claim in part.claims}
    reason = "In their_nets:none an initialization scheme reaches 0 of 2 weight layers: not 1, 3 (spectral_norm"
    assert all(answer.why.startswith(reason) for answer in verdicts)


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(("name", "reach"), [("some", "1 of 2 weight layers: not"), ("both", "2 of 2 weight layers.")])
def test_the_layers_that_schemes_reach_are_told(tidy: Tidy, name: str, reach: str) -> None:
    told = STUDY.analyse(tidy(run_on(name))).answers[-1].text
    assert told.startswith(f"In their_nets:{name} an initialization scheme reaches {reach}")
