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
from depthgauge.studies.initialization import STUDY, outcomes, signal, spectrum, stacks, symmetry, training
from depthgauge.study import Case, Context, Grid, Rows, StudyError, Value
from depthgauge.verdict import Status, Verdict

Tidy = Callable[..., pd.DataFrame]
SEEDS = 8
HOLDS, FAILS, DEPENDS, OPEN = Status.HOLDS, Status.FAILS, Status.DEPENDS, Status.INCONCLUSIVE


def verdict(frame: pd.DataFrame, claim: str) -> Verdict:
    (answer,) = (answer for answer in STUDY.analyse(frame).verdicts if answer.id == claim)
    return answer


def measure(part: Part, grid: Grid) -> list[Rows]:
    return list(part.run(tuple(grid.cases()), Context()))


def noise(seed: int, *names: object) -> float:
    """Of mean 0 and variance 1, a function of its arguments alone."""
    return float(Case.of({"seed": seed, "names": repr(names)}).random_seed() % 10_007 / 10_007 - 0.5) * math.sqrt(12)


# -- signal ------------------------------------------------------------------------------------------------------------

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
    ("lsuv", "normed", "status"), [(0.0, 0.0, HOLDS), (0.3, -0.3, FAILS), (0.0, 0.3, DEPENDS), (0.1, 0.0, OPEN)]
)
def test_n11_asks_of_networks_whose_moments_are_held_layer_by_layer(
    tidy: Tidy, lsuv: float, normed: float, status: Status
) -> None:
    """Rates by LSUV and by layer norm; He's plain network, of rate 0.3, has no part in it."""

    def planted() -> Iterator[Rows]:
        for norm, scheme, rate in (("none", "lsuv", lsuv), ("layer", "he", normed), ("none", "he", 0.3)):
            for case in Grid({"scheme": (scheme,)}, {**SIGNAL, "norm": norm}, SEEDS).cases():
                for way, sign in (("forward", 1), ("backward", -1)):
                    line = sign * (rate + 1e-3 * noise(case.integer("seed"), way)) * np.arange(5)
                    whole = np.concatenate([[9.0], line, [-9.0]])  # neither the first layer nor the outputs are judged
                    yield case.rows("log_moment", whole, layer_index=np.arange(1, 8), direction=way)

    answer = verdict(tidy(planted()), "N11")
    assert answer.status is status
    assert ("not steady: he (layer norm, relu, forward)" in answer.why) is (status is DEPENDS)


def test_the_laws_of_plain_and_normalized_signals_are_theorys() -> None:
    named = {"model": "mlp", "norm": "batch", "activation": "relu", "scheme": "he", "units": 128}
    backward = signal._law(named, "backward", 0.0, 11)
    assert backward[0] - backward[-1] == pytest.approx(10 * math.log(theory.batch_norm_growth("relu", signal.BATCH)))
    assert not signal._law(named, "forward", 0.0, 11).any()
    plain = signal._law({**named, "norm": "no"}, "forward", 0.0, 11)
    assert np.diff(plain) == pytest.approx([theory.relu_log_gain(128, 2.0).mean] * 10)


# -- spectrum ----------------------------------------------------------------------------------------------------------


def test_spectra_of_orthogonal_networks_are_exact() -> None:
    """Linear: all ones. One ReLU layer: sqrt(2) or 0, as the rows of an orthogonal matrix are orthonormal."""
    fixed = {"part": "spectrum", "width": 24, "weights": "orthogonal"}
    rows = measure(spectrum.PART, Grid({"activation": ("identity", "relu", "tanh")}, fixed, 1))
    at = {(row.case["activation"], row.layer or row.metric, row.layer_index): float(row.value) for row in rows}
    assert at["identity", "squared_mean", 32] == pytest.approx(1.0, rel=1e-12)
    assert at["identity", "squared_variance", 32] < 1e-24
    assert at["identity", "1", 32] == pytest.approx(1.0, rel=1e-12)
    mean = at["relu", "squared_mean", 1]
    assert mean * 12 == pytest.approx(round(mean * 12))  # two for every active unit
    assert at["relu", "squared_variance", 1] == pytest.approx(mean * (2 - mean))
    assert at["tanh", "squared_mean", 1] == pytest.approx(1.0, abs=0.05)


def test_tanh_networks_are_critical() -> None:
    sigma_w, sigma_b, q = spectrum.critical("tanh")
    assert theory.chi("tanh", sigma_w, q) == pytest.approx(1.0, rel=1e-12)
    np.testing.assert_allclose(theory.variance_trajectory("tanh", sigma_w, sigma_b, q, 20), q, rtol=1e-9)


@pytest.mark.parametrize(("tanh", "relu", "status"), [(1.1, 50.0, HOLDS), (50.0, 50.0, DEPENDS), (1.1, 1.1, DEPENDS)])
def test_isometry(tidy: Tidy, tanh: float, relu: float, status: Status) -> None:
    """Spans of the singular values of orthogonal tanh and ReLU networks; orthogonal linear ones are isometries."""
    spans = {("tanh", "orthogonal"): tanh, ("relu", "orthogonal"): relu, ("identity", "orthogonal"): 1.0}

    def planted() -> Iterator[Rows]:
        varied = {"activation": ("identity", "relu", "tanh"), "weights": ("gaussian", "orthogonal")}
        for case in Grid(varied, {"part": "spectrum", "width": 128}, SEEDS).cases():
            span = spans.get((case.text("activation"), case.text("weights")), 100.0)
            for depth in spectrum.DEPTHS:
                for name, singular in (("0.05", 1 / span), ("0.5", 1.0), ("0.95", 1.0)):
                    yield case.rows("singular_value", singular, layer_index=depth, layer=name)
                yield from (case.rows(f"squared_{name}", 1.0, layer_index=depth) for name in ("mean", "variance"))

    answer = verdict(tidy(planted()), "initialization/isometry")
    assert (answer.status, answer.observed) == (status, pytest.approx(tanh))


# -- residual stacks ---------------------------------------------------------------------------------------------------


def test_growth_is_that_of_the_sums() -> None:
    """Two blocks of pre order by hand; with one block the factors 1 and 1/sqrt(1) are the same."""
    fixed = {"part": "stacks", "order": "pre", "norm": "none", "width": 16}
    one, same = measure(stacks.PART, Grid({"branch": ("1", "1/sqrt(L)")}, {**fixed, "blocks": 1}, 1))
    np.testing.assert_array_equal(one.value, same.value)
    (row,) = measure(stacks.PART, Grid({"branch": ("1",)}, {**fixed, "blocks": 2}, 1))
    seed = row.case.random_seed("seed", "width")
    model = models.build(
        "mlp", input_shape=(16,), width=16, depth=3, classes=2, bias=False, seed=seed, residual=True, order="pre",
        init=gaussian(2**0.5),
    ).double()  # fmt: skip
    x = torch.randn(stacks.INPUTS, 16, generator=generator(seed, Purpose.INPUTS), dtype=torch.float64)
    sums = []
    for number in range(3):
        weight = model.hidden[number].linear.weight.detach()
        x = x @ weight.T if number == 0 else x + x.relu() @ weight.T
        sums.append(float(x.square().mean(1).log().mean()))
    np.testing.assert_allclose(row.value, np.array(sums) - sums[0], atol=1e-12)


# -- symmetry ----------------------------------------------------------------------------------------------------------

SYMMETRY = Grid(
    {"scheme": ("zeros", "constant", "he")}, {"part": "symmetry", "depth": 2, "width": 8, "steps": 40, "lr": 0.03}, 6,
    ("scheme", "seed"),
)  # fmt: skip


def test_units_that_start_the_same_stay_the_same(tidy: Tidy) -> None:
    findings = STUDY.analyse(tidy(measure(symmetry.PART, SYMMETRY)))
    apart = findings.tables["schemes"].set_index("scheme")["furthest_apart"]
    assert apart["zeros"] == 0
    assert apart["constant"] < symmetry.SAME
    assert apart["he"] > 0.5


@pytest.mark.parametrize(("apart", "status"), [(0.0, HOLDS), (1e-6, HOLDS), (0.5, FAILS)])
def test_symmetry(tidy: Tidy, apart: float, status: Status) -> None:
    """He's weights, far apart, have no part in it."""

    def planted() -> Iterator[Rows]:
        for case in SYMMETRY.cases():
            yield case.rows("test_accuracy", 0.2)
            far = 1.0 if case["scheme"] == "he" else apart
            yield case.rows("apart", far, layer="hidden.0.linear", layer_index=1)

    answer = verdict(tidy(planted()), "initialization/symmetry")
    assert (answer.status, answer.n) == (status, 12)


# -- training ----------------------------------------------------------------------------------------------------------

RATES = (0.003, 0.01, 0.03)
MLP = {"model": "mlp", "depth": 10, "units": 64, "norm": "none"}
SAME = {"he": 0.95, "xavier": 0.951, "orthogonal": 0.949, "zeros": 0.1}
OTHER = {"he": 0.95, "xavier": 0.85, "orthogonal": 0.9, "zeros": 0.1}


def trained(
    accuracy: Mapping[str, float], shape: Mapping[str, Value] = MLP, *, best: float = 0.01, spread: float = 0.001,
    reported_best: float | None = None, reached: float = 1.0,
) -> Iterator[Rows]:  # fmt: skip
    """Every scheme with its accuracy at the best rate, 0.1 less at every step from it; seeds below 0 choose."""
    fixed = {"part": "training", "steps": 100, "sweep": " ".join(map(str, shape.values())), **shape}
    for case in Grid({"scheme": tuple(accuracy), "lr": RATES}, fixed, SEEDS, selection=3).cases():
        scheme, seed = case.text("scheme"), case.integer("seed")
        peak = best if seed < 0 or reported_best is None else reported_best
        off = abs(RATES.index(case.number("lr")) - RATES.index(peak))
        end = accuracy[scheme] + spread * noise(seed, scheme) - 0.1 * off
        arrived = reached if end >= outcomes.TRAINED else 0.0
        ends = {
            "validation_accuracy": end, "test_accuracy": end, "train_accuracy": end, "train_loss": 1.0,
            "diverged": 0.0, "reached": arrived, "steps_to_target": 40.0 if arrived else 100.0,
        }  # fmt: skip
        yield from (case.rows(metric, value) for metric, value in ends.items())


def both(first: Mapping[str, float], second: Mapping[str, float]) -> list[Rows]:
    return [*trained(first), *trained(second, {**MLP, "norm": "layer"})]


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        (both(SAME, SAME), HOLDS),
        (both(OTHER, OTHER), FAILS),
        (both(OTHER, SAME), DEPENDS),
        ([*trained(SAME, spread=0.05)], OPEN),
        ([*trained(OTHER, best=0.03)], OPEN),
    ],
    ids=["same", "different", "with normalization", "noisy", "a better rate may lie outside"],
)
def test_n10_compares_normal_schemes_with_hes(tidy: Tidy, rows: list[Rows], status: Status) -> None:
    frame = tidy(rows)
    answer = verdict(frame, "N10")
    assert answer.status is status
    if status is DEPENDS:
        assert "within 1% of He's weights end xavier in a 10-layer MLP (layer norm)" in answer.why
        assert "further from them end xavier in a 10-layer MLP (no norm)" in answer.why
    assert set(STUDY.analyse(frame).tables["equivalence"]["scheme"]) == {"xavier", "orthogonal"}  # zeros are not normal


@pytest.mark.parametrize(
    ("he", "lsuv", "best", "status"),
    [
        (0.9, 0.9, 0.01, HOLDS),
        (0.2, 0.2, 0.01, FAILS),
        (0.9, 0.2, 0.01, DEPENDS),
        (0.2, 0.2, 0.03, OPEN),  # they may train at a rate that was not tried
        (0.9, 0.9, 0.03, HOLDS),
    ],
)
def test_n09_asks_in_how_many_architectures_sensible_weights_train(
    tidy: Tidy, he: float, lsuv: float, best: float, status: Status
) -> None:
    """Seven decide between two schemes; Xavier's weights are none of those scaled to the activation."""
    accuracy = {"he": he, "lsuv": lsuv, "xavier": 0.2}
    rows = [row for depth in range(1, 8) for row in trained(accuracy, {**MLP, "depth": depth}, best=best)]
    answer = verdict(tidy(rows), "N09")
    assert (answer.status, answer.n) == (status, 7)
    assert f"he trains in {7 * (he > 0.5)} of 7 architectures" in answer.why


def test_the_seeds_that_choose_a_rate_are_not_reported(tidy: Tidy) -> None:
    """They choose 0.01, where the others, whose best rate is 0.03, end 0.1 lower."""
    tables = STUDY.analyse(tidy(trained({"he": 0.95}, reported_best=0.03, reached=0.0))).tables
    (row,) = tables["outcomes"].to_dict("records")
    assert (row["n"], row["lr"], row["value"]) == (SEEDS, 0.01, 1.0)
    assert row["accuracy"] == pytest.approx(0.85, abs=0.002)
    assert (row["steps"], row["reached"]) == (100.0, 0)  # censored at the budget
    assert (tables["steps"]["seed"] >= 0).all()


@pytest.mark.parametrize(("best", "further"), [(0.003, {0.001}), (0.01, set()), (0.03, {0.09})])
def test_a_choice_at_the_end_of_the_grid_adds_a_rate(tidy: Tidy, best: float, further: set[float]) -> None:
    network = training.Condition("mlp", ("he", "xavier"), RATES, SEEDS, 100, {"depth": 10, "units": 64, "norm": "none"})
    rows = tidy(trained({"he": 0.95}, {"model": "mlp", **network.shape}, best=best))
    cases = [case for grid in training.further_rates(rows, (network,)) for case in grid.cases()]
    assert {case["lr"] for case in cases} == further
    assert {case["scheme"] for case in cases} == ({"he"} if further else set())


@pytest.mark.parametrize(
    ("xavier22", "xavier30", "best", "status"),
    [
        (0.9, 0.1, 0.01, HOLDS),
        (0.1, 0.1, 0.01, DEPENDS),
        (0.9, 0.9, 0.01, DEPENDS),
        (0.9, 0.1, 0.03, OPEN),  # at another rate Xavier's might train
    ],
)
def test_crossover(tidy: Tidy, xavier22: float, xavier30: float, best: float, status: Status) -> None:
    plain = {"model": "plain_cnn", "norm": "none"}
    rows = [
        *trained({"he": 0.9, "xavier": xavier22}, {**plain, "depth": 22}),
        *trained({"he": 0.9, "xavier": xavier30}, {**plain, "depth": 30}, best=best),
    ]
    answer = verdict(tidy(rows), "initialization/crossover")
    assert answer.status is status
    assert f"xavier at 22 layers {SEEDS * (xavier22 > 0.5)} of 8" in answer.why


@pytest.mark.parametrize(
    ("fixup", "best", "status"), [(0.9, 0.01, HOLDS), (0.95, 0.01, HOLDS), (0.7, 0.01, FAILS), (0.7, 0.03, OPEN)]
)
def test_fixup_against_batch_norm(tidy: Tidy, fixup: float, best: float, status: Status) -> None:
    """Better than with normalization is as good."""
    residual = {"model": "resnet18", "stem": "cifar"}
    rows = [
        *trained({"he": 0.9}, {**residual, "norm": "batch"}),
        *trained({"he": 0.5, "fixup": fixup}, {**residual, "norm": "none"}, best=best),
    ]
    assert verdict(tidy(rows), "initialization/fixup").status is status


# -- a model of the user's own -----------------------------------------------------------------------------------------


def test_it_runs_on_another_model() -> None:
    """A ResNet has no depth to be given; what asks for MLPs of the study's own is left out."""
    restricted = restrict(STUDY, "quick", models.target("resnet18"))
    assert {grid.fixed["part"] for grid in restricted.grids} == {"training", "signal"}
    assert {grid.fixed["model"] for grid in restricted.grids} == {"resnet18"}
    assert "initialization/spectrum" in restricted.not_applicable


def test_runs_that_were_asked_for_twice_count_once(tidy: Tidy) -> None:
    """Grids of several depths become one where the model has no depth; budgets are kept apart."""
    shape: dict[str, Value] = {"model": "mine:net", "depth": None, "norm": None}
    rows = [*trained(SAME, {**shape, "units": 64}), *trained(SAME, {**shape, "units": 32})]
    table = STUDY.analyse(tidy(rows)).tables["outcomes"]
    assert set(table["condition"]) == {"mine:net (100 steps)"}
    assert (table["n"] == SEEDS).all()


@pytest.fixture
def nets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factories as a user has them: of no layer that schemes reach, of one, and of two."""

    def net(first: Callable[[nn.Module], nn.Module], second: Callable[[nn.Module], nn.Module]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), first(nn.Linear(64, 32)), nn.ReLU(), second(nn.Linear(32, 10)))

    module = types.ModuleType("their_nets")
    norm, spectral = parametrizations.weight_norm, parametrizations.spectral_norm
    pairs = {"none": (spectral, spectral), "some": (spectral, norm), "both": (norm, norm)}
    vars(module).update({name: functools.partial(net, *pair) for name, pair in pairs.items()})
    monkeypatch.setitem(sys.modules, "their_nets", module)


def run_on(name: str, part: Part = training.PART) -> list[Rows]:
    """Of two seeds and two schemes."""
    shape = {"model": f"their_nets:{name}", "part": part.name, "depth": None, "norm": None, "activation": None}
    grid = Grid({"scheme": ("default", "he")}, {**shape, "lr": 0.03, "steps": 3, "units": 8}, 2, ("scheme", "seed"))
    return measure(part, grid)


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize("part", [training.PART, signal.PART], ids=lambda part: part.name)
def test_where_no_scheme_reaches_a_layer_nothing_is_run_and_no_claim_applies(part: Part, tidy: Tidy) -> None:
    rows = run_on("none", part)
    assert {(row.metric, row.value) for row in rows} == {("layers_reached", 0.0)}
    assert part.after("quick", tidy(rows)) == ()
    for claim in part.claims:
        answer = verdict(tidy(rows), claim.id)
        assert answer.status is Status.NOT_APPLICABLE
        assert answer.why == (
            "Of their_nets:none a scheme reaches 0 of 2 weight layers: not 1, 3 (spectral_norm makes other weights of "
            "those it is given)"
        )


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(
    ("name", "reach"),
    [("some", "1 of 2 weight layers: not 1 (spectral_norm makes other weights of those it is given)."),
     ("both", "2 of 2 weight layers.")],
)  # fmt: skip
def test_the_layers_that_schemes_reach_are_told(tidy: Tidy, name: str, reach: str) -> None:
    assert STUDY.analyse(tidy(run_on(name))).answers[0] == f"Of their_nets:{name} a scheme reaches {reach}"
