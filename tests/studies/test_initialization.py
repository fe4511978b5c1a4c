"""The study on data whose answer is known: every part, every verdict both ways."""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from depthgauge import data, models, theory
from depthgauge.factories import Target
from depthgauge.initialization import gaussian
from depthgauge.parts import Answer
from depthgauge.reports import style
from depthgauge.restriction import restrict
from depthgauge.seeding import Purpose, generator, seed_torch
from depthgauge.studies import initialization
from depthgauge.studies.initialization import signal, spectrum, stacks, symmetry, training
from depthgauge.study import Case, Context, Grid, Rows, StudyError
from depthgauge.verdict import Findings, Status, Verdict

Tidy = Callable[..., pd.DataFrame]
SEEDS = 8
HERE = Context("cpu")


def verdict(answer: Answer | Findings, claim: str) -> Verdict:
    (found,) = (verdict for verdict in answer.verdicts if verdict.id == claim)
    return found


def measure(run: Callable[[Sequence[Case], Context], Iterable[Rows]], grid: Grid) -> list[Rows]:
    return list(run(tuple(grid.cases()), HERE))


def noise(seed: int, *names: object) -> float:
    """N(0, 1), of its names alone."""
    return float(Case.of({"seed": seed, "names": repr(names)}).random_seed() % 10_007 / 10_007 - 0.5) * math.sqrt(12)


# -- signal: N11, signal -----------------------------------------------------------------------------------------------

SIGNAL = {"part": "signal", "model": "mlp", "depth": 6, "units": 64, "norm": "none", "activation": "relu"}
TOGETHER = {"together": ("scheme", "seed")}


@functools.cache
def small_signals() -> dict[tuple[str, str], np.ndarray]:
    """(scheme, direction) -> (layers,), of one seed; all layers but the last have 64 inputs and outputs."""
    grid = Grid({"scheme": ("lecun", "he", "orthogonal", "lsuv")}, fixed=SIGNAL, seeds=1, **TOGETHER)
    return {(row.case.text("scheme"), str(row.direction)): row.value for row in measure(signal.run_signal, grid)}


def test_schemes_of_one_seed_differ_by_their_scale_alone() -> None:
    """He's variance is twice LeCun's and the draws are the same: ln 2 a layer, exactly, as ReLU is homogeneous."""
    found = small_signals()
    layers = np.arange(1, 8)
    forward = found["he", "forward"] - found["lecun", "forward"]
    backward = found["he", "backward"] - found["lecun", "backward"]
    np.testing.assert_allclose(forward, layers * math.log(2), rtol=1e-5)  # weights are drawn in single precision
    np.testing.assert_allclose(backward, (7 - layers) * math.log(2), rtol=1e-5, atol=1e-12)


def test_signals_are_those_of_the_network() -> None:
    """By hand: the same draws, a forward pass with hooks, the gradient by autograd."""
    (case,) = Grid({"scheme": ("he",)}, fixed=SIGNAL, seeds=1).cases()
    seed = case.random_seed("seed")
    model = models.build("mlp", preset="small", input_shape=(1, 8, 8), depth=6, width=64).double()
    initialization.draw(model, generator(seed, Purpose.WEIGHTS), "he", "relu", torch.empty(0))
    seen: list[torch.Tensor] = []
    for _, module in models.layers(model):
        module.register_forward_hook(lambda _m, _i, z: (z.retain_grad(), seen.append(z))[1])
    outputs = model(data.load("digits").train.x[: signal.BATCH].double())
    outputs.backward(signal._functional(seed))
    by_hand = [float(z.detach().square().mean(1).log().mean()) for z in seen]
    np.testing.assert_allclose(small_signals()["he", "forward"], by_hand, rtol=1e-10)
    gradients = [float(z.grad.square().mean(1).log().mean()) for z in seen if z.grad is not None]
    np.testing.assert_allclose(small_signals()["he", "backward"], gradients, rtol=1e-10)


def test_a_network_without_two_layers_in_between_has_no_rate(tidy: Tidy) -> None:
    """A depth of 2 are three weight layers; 3 are four."""
    shallow, enough = (Grid({"scheme": ("he",)}, fixed={**SIGNAL, "depth": depth}, seeds=2) for depth in (2, 3))
    with pytest.raises(StudyError, match=r"a rate a layer .* takes 4 weight layers; mlp has 3$"):
        measure(signal.run_signal, shallow)
    answer = signal.analyse_signal(tidy(measure(signal.run_signal, enough)))
    assert np.isfinite(answer.tables["signal_rates"]["rate"]).all()


@functools.cache
def law_of(norm: str, scheme: str, direction: str) -> np.ndarray:
    """Predicted at the 29 layers that are judged, from ln 1 at the first of them."""
    named = {"model": "mlp", "norm": norm, "activation": "relu", "scheme": scheme, "units": 128}
    return np.nan_to_num(signal._law(named, direction, 0.0, 29))


def planted_signals(shift: Mapping[tuple[str, str], float] | None = None, *, moving: float = 0.0) -> Iterator[Rows]:
    """Rates as predicted, plus `shift` by (scheme, direction) without norm, and `moving` where moments are held."""
    judged = np.arange(29)
    conditions = [("none", scheme) for scheme in ("default", "xavier", "he", "normal", "lsuv")] + [("layer", "he")]
    for norm, scheme in conditions:
        shape = {**SIGNAL, "depth": 30, "units": 128, "norm": norm}
        for case in Grid({"scheme": (scheme,)}, fixed=shape, seeds=SEEDS).cases():
            for direction in ("forward", "backward"):
                rate = 1e-3 * noise(case.integer("seed"), scheme, direction)
                rate += (shift or {}).get((scheme, direction), 0.0) if norm == "none" else 0.0
                rate += moving if norm != "none" or scheme == "lsuv" else 0.0
                line = law_of(norm, scheme, direction) + rate * (judged if direction == "forward" else judged[::-1])
                # The first layer and the outputs are not judged.
                whole = np.concatenate([[5.0], line, [-5.0]])
                yield case.rows("log_moment", whole, layer_index=np.arange(1, 32), direction=direction)


def test_signals_as_predicted(tidy: Tidy) -> None:
    answer = signal.analyse_signal(tidy(planted_signals()))
    assert verdict(answer, "initialization/signal").status is Status.HOLDS
    assert verdict(answer, "N11").status is Status.HOLDS
    he = answer.tables["signal_rates"].query("scheme == 'he' and norm == 'none'")
    assert he["predicted"].to_numpy() == pytest.approx([theory.relu_log_gain(128, 2.0).mean] * 2)


def test_signals_that_theory_does_not_predict(tidy: Tidy) -> None:
    off = {(scheme, way): 0.3 for scheme in ("default", "xavier", "he", "normal") for way in ("forward", "backward")}
    every = signal.analyse_signal(tidy(planted_signals(off, moving=0.3)))
    assert verdict(every, "initialization/signal").status is Status.FAILS
    one = verdict(signal.analyse_signal(tidy(planted_signals({("he", "forward"): 0.3}))), "initialization/signal")
    assert one.status is Status.DEPENDS
    assert "he forward" in one.why


def test_constrained_signals_that_move(tidy: Tidy) -> None:
    assert verdict(signal.analyse_signal(tidy(planted_signals(moving=0.3))), "N11").status is Status.FAILS
    part = verdict(signal.analyse_signal(tidy(planted_signals({("lsuv", "backward"): -0.3}))), "N11")
    assert part.status is Status.DEPENDS
    assert "not steady: LSUV backward" in part.why


def test_the_law_of_a_signal_under_batch_norm_is_theorys() -> None:
    named = {"model": "mlp", "norm": "batch", "activation": "relu", "scheme": "he", "units": 128}
    backward = signal._law(named, "backward", 0.0, 11)
    assert backward[0] - backward[-1] == pytest.approx(10 * math.log(theory.batch_norm_growth("relu", signal.BATCH)))
    assert not signal._law(named, "forward", 0.0, 11).any()


def test_the_table_of_gains_shows_what_torchs_costs() -> None:
    gains = signal._gains().set_index("activation")
    assert gains.loc["relu", "kept_a_layer_with_torchs"] == pytest.approx(1.0)
    assert gains.loc["tanh", "kept_a_layer_with_torchs"] == pytest.approx((5 / 3 / theory.gain("tanh").forward) ** 2)
    assert math.isnan(gains.loc["gelu", "calculate_gain"])


# -- spectrum ----------------------------------------------------------------------------------------------------------

SPECTRUM = {"part": "spectrum", "width": 24}


def test_spectra_of_orthogonal_networks_are_exact() -> None:
    """Linear: all ones. One ReLU layer: sqrt(2) or 0, as the rows of an orthogonal matrix are orthonormal."""
    grid = Grid({"activation": ("identity", "relu", "tanh")}, fixed={**SPECTRUM, "weights": "orthogonal"}, seeds=1)
    rows = {
        (row.case.text("activation"), row.metric, row.layer_index, row.layer): row.value
        for row in measure(spectrum.run_spectrum, grid)
    }
    assert rows["identity", "squared_mean", 32, None] == pytest.approx(1.0, rel=1e-12)
    assert rows["identity", "squared_variance", 32, None] < 1e-24
    assert rows["identity", "singular_value", 32, "1"] == pytest.approx(1.0, rel=1e-12)
    mean = rows["relu", "squared_mean", 1, None]
    assert mean * 24 / 2 == pytest.approx(round(mean * 24 / 2))  # two for every active unit
    assert rows["relu", "squared_variance", 1, None] == pytest.approx(mean * (2 - mean))
    assert rows["tanh", "squared_mean", 1, None] == pytest.approx(1.0, abs=0.05)


def test_tanh_networks_are_critical() -> None:
    sigma_w, sigma_b, q = spectrum.critical("tanh")
    assert theory.chi("tanh", sigma_w, q) == pytest.approx(1.0, rel=1e-12)
    trajectory = theory.variance_trajectory("tanh", sigma_w, sigma_b, q, 20)
    np.testing.assert_allclose(trajectory, q, rtol=1e-9)


def planted_spectra(factor: float = 1.0, *, spread: float = 1.0) -> Iterator[Rows]:
    """Moments as predicted, times `factor`; orthogonal linear and tanh networks of that spread."""
    grid = Grid(
        {"activation": ("identity", "relu", "tanh"), "weights": ("gaussian", "orthogonal")},
        fixed={"part": "spectrum", "width": 128}, seeds=SEEDS,
    )  # fmt: skip
    for case in grid.cases():
        activation, weights = case.text("activation"), case.text("weights")
        for depth in spectrum.DEPTHS:
            law = spectrum.predicted(activation, weights, 128, depth)
            wobble = factor * (1 + 0.01 * noise(case.integer("seed"), depth))
            yield case.rows("squared_mean", law.mean * wobble, layer_index=depth)
            yield case.rows(
                "squared_variance", (law.variance or factor - 1) * wobble + 1e-9 * wobble, layer_index=depth
            )
            wide = spread if weights == "orthogonal" and activation != "relu" else 100.0
            for share in spectrum.QUANTILES:
                yield case.rows(
                    "singular_value", 1.0 if share > 0.5 else 1 / wide, layer_index=depth, layer=f"{share:g}"
                )


def test_spectra_as_predicted(tidy: Tidy) -> None:
    answer = spectrum.analyse_spectrum(tidy(planted_spectra()))
    assert verdict(answer, "initialization/spectrum").status is Status.HOLDS
    assert verdict(answer, "initialization/isometry").status is Status.HOLDS


def test_spectra_that_theory_does_not_predict(tidy: Tidy) -> None:
    answer = spectrum.analyse_spectrum(tidy(planted_spectra(2.0, spread=50.0)))
    assert verdict(answer, "initialization/spectrum").status is Status.FAILS
    assert verdict(answer, "initialization/isometry").status is Status.DEPENDS


# -- residual stacks ---------------------------------------------------------------------------------------------------


def test_growth_is_that_of_the_sums() -> None:
    """One block: with s = 1 and with s = 1/sqrt(1) the same; two blocks of pre order by hand."""
    grid = Grid(
        {"branch": ("1", "1/sqrt(L)")},
        fixed={"part": "stacks", "order": "pre", "norm": "none", "blocks": 1, "width": 16},
        seeds=1,
    )
    one, other = (row.value for row in measure(stacks.run_stacks, grid))
    np.testing.assert_array_equal(one, other)
    (case,) = Grid(
        {"branch": ("1",)}, fixed={"part": "stacks", "order": "pre", "norm": "none", "blocks": 2, "width": 16}, seeds=1
    ).cases()
    (row,) = stacks.run_stacks([case], HERE)
    seed = case.random_seed("seed", "width")
    model = models.build(
        "mlp",
        input_shape=(16,),
        width=16,
        depth=3,
        classes=2,
        bias=False,
        seed=seed,
        residual=True,
        order="pre",
        init=gaussian(2**0.5),
    ).double()
    x = torch.randn(stacks.INPUTS, 16, generator=generator(seed, Purpose.INPUTS), dtype=torch.float64)
    sums = []
    with torch.no_grad():
        for number in range(3):
            weight = model.hidden[number].linear.weight
            x = x @ weight.T if number == 0 else x + x.relu() @ weight.T
            sums.append(float(x.square().mean(1).log().mean()))
    np.testing.assert_allclose(row.value, np.array(sums) - sums[0], atol=1e-12)


def planted_stacks(rate: float = 0.0, only: str | None = None) -> Iterator[Rows]:
    """Growth as predicted, plus `rate` a block."""
    for (order, norm), kind in stacks.ORDERS.items():
        grid = Grid(
            {"branch": tuple(stacks.EXPONENTS)},
            fixed={"part": "stacks", "order": order, "norm": norm, "blocks": 8, "width": 128},
            seeds=SEEDS,
        )
        for case in grid.cases():
            scale = 8.0 ** stacks.EXPONENTS[case.text("branch")]
            law = np.log(theory.residual_trajectory("relu", stacks.SIGMA_W, scale, 8, order=kind, q_0=2.0))
            more = rate if only in (None, kind) else 0.0
            line = law - law[0] + np.arange(9) * (more + 1e-3 * noise(case.integer("seed"), kind))
            yield case.rows("log_growth", line, layer_index=np.arange(9))


@pytest.mark.parametrize(
    ("rate", "only", "status"),
    [(0.0, None, Status.HOLDS), (0.2, None, Status.FAILS), (0.2, "post", Status.DEPENDS)],
)
def test_growth_of_residual_stacks(tidy: Tidy, rate: float, only: str | None, status: Status) -> None:
    assert verdict(stacks.analyse_stacks(tidy(planted_stacks(rate, only))), "initialization/residual").status is status


# -- symmetry ----------------------------------------------------------------------------------------------------------

SYMMETRY = {"part": "symmetry", "depth": 2, "width": 8, "steps": 40, "lr": 0.03}


def test_units_that_start_the_same_stay_the_same() -> None:
    rows = measure(symmetry.run_symmetry, Grid({"scheme": ("zeros", "constant", "he")}, fixed=SYMMETRY, seeds=2))
    apart = {
        scheme: max(float(np.max(row.value)) for row in rows if row.metric == "apart" and row.case["scheme"] == scheme)
        for scheme in ("zeros", "constant", "he")
    }
    assert apart["zeros"] == 0.0
    assert apart["constant"] < symmetry.SAME
    assert apart["he"] > 0.5


def planted_symmetry(apart: Mapping[str, float]) -> Iterator[Rows]:
    for case in Grid({"scheme": ("zeros", "constant", "he")}, fixed=SYMMETRY, seeds=6).cases():
        yield case.rows("test_accuracy", 0.2 + 0.01 * case.integer("seed"))
        yield case.rows("apart", apart[case.text("scheme")], layer="hidden.0.linear", layer_index=1)


@pytest.mark.parametrize(
    ("constant", "zeros", "status"),
    [(1e-6, 0.0, Status.HOLDS), (0.5, 0.5, Status.FAILS), (0.5, 0.0, Status.DEPENDS)],
)
def test_symmetry(tidy: Tidy, constant: float, zeros: float, status: Status) -> None:
    rows = planted_symmetry({"zeros": zeros, "constant": constant, "he": 1.0})
    assert verdict(symmetry.analyse_symmetry(tidy(rows)), "initialization/symmetry").status is status


# -- training: N09, N10, crossover, Fixup ------------------------------------------------------------------------------

RATES = (0.01, 0.1)
MLP = {"model": "mlp", "depth": 10, "units": 64, "norm": "none"}
NORMED = {**MLP, "norm": "layer"}


def trained(
    accuracy: Mapping[str, float], shape: Mapping[str, object] = MLP, *, spread: float = 0.001, reached: float = 1.0
) -> Iterator[Rows]:
    """Every scheme with its test accuracy at the better rate, which is 0.01, and 0.1 less at the other."""
    grid = Grid(
        {"scheme": tuple(accuracy), "lr": RATES},
        fixed={"part": "training", "steps": 100, **shape},
        seeds=SEEDS,
        selection=3,
    )
    for case in grid.cases():
        scheme, better = case.text("scheme"), case["lr"] == RATES[0]
        found = accuracy[scheme] + spread * noise(case.integer("seed"), scheme) - (0.0 if better else 0.1)
        arrived = reached if found >= training.TRAINED else 0.0
        ends = {
            "validation_accuracy": found, "test_accuracy": found, "train_accuracy": found, "train_loss": 1.0,
            "diverged": 0.0, "reached": arrived, "steps_to_target": 40.0 if arrived else 100.0,
        }  # fmt: skip
        for metric, value in ends.items():
            yield case.rows(metric, value)


SAME = {"he": 0.95, "xavier": 0.951, "orthogonal": 0.949, "zeros": 0.1}
OTHER = {"he": 0.95, "xavier": 0.85, "orthogonal": 0.9, "zeros": 0.1}


def both(first: Mapping[str, float], second: Mapping[str, float]) -> list[Rows]:
    return [*trained(first), *trained(second, NORMED)]


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        (both(SAME, SAME), Status.HOLDS),
        (both(OTHER, OTHER), Status.FAILS),
        (both(OTHER, SAME), Status.DEPENDS),
        ([*trained(SAME, spread=0.05)], Status.INCONCLUSIVE),
    ],
    ids=["same", "different", "with normalization", "noisy"],
)
def test_whether_initialization_decides_what_is_reached(tidy: Tidy, rows: list[Rows], status: Status) -> None:
    """N10: zeros are no normal initialization, and do not count."""
    answer = training.analyse_training(tidy(rows))
    assert verdict(answer, "N10").status is status
    assert "zeros" not in set(answer.tables["equivalence"]["scheme"])


def test_where_it_stops_is_told(tidy: Tidy) -> None:
    why = verdict(training.analyse_training(tidy(both(OTHER, SAME))), "N10").why
    assert "the same within 1 percentage point: 10-layer MLP (layer norm);" in why
    assert "not the same: 10-layer MLP (no norm);" in why


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        (both(SAME, SAME), Status.HOLDS),
        (both({"he": 0.2, "xavier": 0.9}, {"he": 0.1, "xavier": 0.9}), Status.FAILS),
        (both({"he": 0.2, "xavier": 0.9}, SAME), Status.DEPENDS),
    ],
)
def test_whether_sensible_weights_train(tidy: Tidy, rows: list[Rows], status: Status) -> None:
    """N09 asks of those scaled to the activation alone; Xavier's are not, for ReLU."""
    assert verdict(training.analyse_training(tidy(rows)), "N09").status is status


def test_the_rate_is_the_other_seeds_and_late_runs_are_censored(tidy: Tidy) -> None:
    answer = training.analyse_training(tidy([*trained({"he": 0.95, "xavier": 0.8}, reached=0.0)]))
    outcomes = answer.tables["outcomes"].set_index("scheme")
    assert outcomes.loc["he", "lr"] == RATES[0]
    assert outcomes.loc["he", "accuracy"] == pytest.approx(0.95, abs=5 * 0.001)
    assert outcomes.loc["he", "steps"] == 100.0  # never reached: the whole budget, as censored
    assert outcomes.loc["he", "reached"] == 0
    assert not answer.tables["steps"]["reached"].any()


def convolutional(**accuracy: float) -> Iterator[Rows]:
    """`xavier22=0.9`: test accuracy by scheme and depth."""
    for depth in (22, 30):
        shape = {"model": "plain_cnn", "depth": depth, "norm": "none"}
        yield from trained({scheme: accuracy[f"{scheme}{depth}"] for scheme in ("he", "xavier")}, shape)


@pytest.mark.parametrize(
    ("accuracy", "status"),
    [
        ({"xavier22": 0.9, "he22": 0.9, "xavier30": 0.1, "he30": 0.9}, Status.HOLDS),
        ({"xavier22": 0.1, "he22": 0.9, "xavier30": 0.1, "he30": 0.9}, Status.FAILS),
        ({"xavier22": 0.9, "he22": 0.9, "xavier30": 0.9, "he30": 0.9}, Status.FAILS),
    ],
)
def test_where_xavier_stops_and_he_goes_on(tidy: Tidy, accuracy: dict[str, float], status: Status) -> None:
    found = verdict(training.analyse_training(tidy(convolutional(**accuracy))), "initialization/crossover")
    assert found.status is status
    assert f"xavier at 22 layers {accuracy['xavier22'] > 0.5:.0%} of 8 runs" in found.why
    deepest = [depth for depth in (22, 30) if accuracy[f"xavier{depth}"] > 0.5]
    assert (f"{max(deepest)} layers from xavier" if deepest else "none from xavier") in found.why


@pytest.mark.parametrize(("fixup", "status"), [(0.9, Status.HOLDS), (0.95, Status.HOLDS), (0.7, Status.FAILS)])
def test_fixup_against_batch_norm(tidy: Tidy, fixup: float, status: Status) -> None:
    shape = {"model": "resnet18", "stem": "cifar"}
    rows = [
        *trained({"he": 0.9}, {**shape, "norm": "batch"}),
        *trained({"he": 0.5, "fixup": fixup}, {**shape, "norm": "none"}),
    ]
    assert verdict(training.analyse_training(tidy(rows)), "initialization/fixup").status is status


@pytest.mark.parametrize(
    "shape",
    [
        {"model": "mlp", "depth": 2, "units": 8, "norm": "batch"},
        {"model": "plain_cnn", "depth": 4, "norm": "none"},
        {"model": "transformer", "depth": 1, "norm": "layer", "order": "post"},
    ],
    ids=lambda shape: shape["model"],
)
def test_every_kind_of_network_is_trained(tidy: Tidy, shape: dict[str, object]) -> None:
    grid = Grid(
        {"scheme": ("default", "lsuv"), "lr": (0.01,)},
        fixed={"part": "training", "steps": 2, **shape},
        seeds=2,
        selection=1,
    )
    outcomes = training.analyse_training(tidy(measure(training.run_training, grid))).tables["outcomes"]
    assert outcomes["n"].tolist() == [2, 2]
    assert outcomes["accuracy"].between(0, 1).all()


def test_each_seed_draws_anew_and_schemes_share_their_draws() -> None:
    model = models.build("mlp", depth=2, width=8)

    def drawn(seed: int, scheme: str) -> torch.Tensor:
        seed_torch(seed, Purpose.MODULES)
        initialization.draw(model, generator(seed, Purpose.WEIGHTS), scheme, "relu", torch.empty(0))
        return model.hidden[1].linear.weight.detach().clone()

    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(drawn(0, "default"), drawn(1, "default"))
        torch.testing.assert_close(drawn(0, "he"), math.sqrt(2) * drawn(0, "xavier"))
        orthogonal = drawn(0, "orthogonal")
    torch.testing.assert_close(orthogonal @ orthogonal.T, 2 * torch.eye(8), rtol=0, atol=1e-5)


# -- the whole study ---------------------------------------------------------------------------------------------------


def test_a_frame_without_rows_leaves_every_claim_open() -> None:
    found = initialization.analyse(pd.DataFrame({"status": [], "part": []}))
    assert [verdict.id for verdict in found.verdicts] == [claim.id for claim in initialization.CLAIMS]
    assert {verdict.status for verdict in found.verdicts} == {Status.NOT_MEASURED}
    assert list(initialization.plot(found)) == []


def test_everything_is_drawn_with_axes_and_words(tidy: Tidy) -> None:
    rows = [
        *both(OTHER, SAME),
        *planted_signals(),
        *planted_spectra(),
        *planted_stacks(),
        *planted_symmetry({"zeros": 0.0, "constant": 0.0, "he": 1.0}),
    ]
    found = initialization.analyse(tidy(rows))
    assert found.answers
    with style.drawing():
        drawn = list(initialization.plot(found))
        assert [figure.name for figure in drawn] == [
            "steps_ladder", "learning_rates", "signal_fan", "jacobian_spectrum", "residual_growth",
        ]  # fmt: skip
        for figure in drawn:
            assert figure.title
            assert figure.caption.endswith(".")
            assert isinstance(figure.canvas, matplotlib.figure.Figure)


def test_the_sizes_that_quick_declares() -> None:
    """Every MLP with 8 seeds, which Holm's first step over five comparisons asks for."""
    chunks = initialization.STUDY.chunks("quick")
    cases = [case for chunk in chunks for case in chunk.cases]
    by_part = {part: [case for case in cases if case["part"] == part] for part in initialization.PARTS}
    assert {case["depth"] for case in by_part["training"] if case["norm"] == "none"} == {3, 10, 30}
    assert len(by_part["training"]) == (8 + 5 + 5 + 5) * 3 * 8
    assert max(len(chunk.cases) for chunk in chunks) <= 96
    assert not any(case["model"] != "mlp" for case in by_part["training"])


def test_standard_has_every_architecture_and_depth_that_is_asked_about() -> None:
    cases = [
        case for chunk in initialization.STUDY.chunks("standard") for case in chunk.cases if case["part"] == "training"
    ]
    asked = {(case["model"], case.get("depth"), case.get("norm"), case.get("order")) for case in cases}
    assert {("plain_cnn", depth, "none", None) for depth in (10, 22, 30)} <= asked
    assert {("resnet18", None, norm, None) for norm in ("none", "batch")} <= asked
    assert {("transformer", None, "layer", order) for order in ("pre", "post")} <= asked


def test_it_runs_on_another_model() -> None:
    """A ResNet has no depth to be given; what asks for MLPs of the study's own is left out."""
    restricted = restrict(initialization.STUDY, "quick", models.target("resnet18"))
    assert {grid.fixed["part"] for grid in restricted.grids} == {"training", "signal"}
    assert {grid.fixed["model"] for grid in restricted.grids} == {"resnet18"}
    assert "initialization/spectrum" in restricted.not_applicable
    mine = restrict(initialization.STUDY, "quick", Target("mine:net", frozenset()))
    assert all(grid.fixed["depth"] is None for grid in mine.grids)


def test_runs_of_another_model_that_were_asked_for_twice_count_once(tidy: Tidy) -> None:
    """Grids of several depths become one where the model has no depth; budgets are kept apart."""
    shape = {"model": "mine:net", "depth": None, "norm": None}
    rows = [*trained(SAME, {**shape, "units": 64}), *trained(SAME, {**shape, "units": 32})]
    outcomes = training.analyse_training(tidy(rows)).tables["outcomes"]
    assert set(outcomes["condition"]) == {"mine:net (100 steps)"}
    assert (outcomes["n"] == SEEDS).all()


# -- what schemes reach of a model -------------------------------------------------------------------------------------


def bound(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1])


@pytest.fixture
def nets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factories as a user has them: of no layer that schemes reach, of one, and of two."""
    module = types.ModuleType("their_nets")
    sizes = (64, 32), (32, 10)
    norm, spectral = parametrizations.weight_norm, parametrizations.spectral_norm
    vars(module).update(
        none=lambda: bound(*(spectral(nn.Linear(*size)) for size in sizes)),
        some=lambda: bound(spectral(nn.Linear(*sizes[0])), norm(nn.Linear(*sizes[1]))),
        both=lambda: bound(*(norm(nn.Linear(*size)) for size in sizes)),
        old=lambda: bound(*(nn.utils.weight_norm(nn.Linear(*size)) for size in sizes)),
    )
    monkeypatch.setitem(sys.modules, "their_nets", module)


def asked(name: str, part: str = "training", **varied: tuple[object, ...]) -> list[Rows]:
    shape = {"model": f"their_nets:{name}", "part": part, "depth": None, "norm": None, "activation": None}
    budget = {"lr": 0.03, "steps": 3, "units": 8}
    grid = Grid({"scheme": ("default", "he"), **varied}, fixed={**shape, **budget}, seeds=2, **TOGETHER)
    return measure(training.run_training if part == "training" else signal.run_signal, grid)


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize("part", ["training", "signal"])
def test_a_model_that_no_scheme_reaches_is_not_trained_and_its_claims_do_not_apply(part: str, tidy: Tidy) -> None:
    rows = asked("none", part)
    assert {(row.metric, row.value) for row in rows} == {("layers_reached", 0.0)}
    found = initialization.analyse(tidy(rows))
    for claim in initialization.ASKED[part]:
        told = verdict(found, claim)
        assert told.status is Status.NOT_APPLICABLE
        assert told.why == (
            "Of their_nets:none a scheme reaches 0 of 2 weight layers: not 1, 3 (spectral_norm makes other weights of "
            "those it is given)"
        )


@pytest.mark.usefixtures("nets")
def test_what_is_reached_in_part_is_told(tidy: Tidy) -> None:
    found = initialization.analyse(tidy(asked("some")))
    assert found.answers[0] == (
        "Of their_nets:some a scheme reaches 1 of 2 weight layers: not 1 (spectral_norm makes other weights of those "
        "it is given)."
    )
    assert verdict(found, "N09").status is not Status.NOT_APPLICABLE
    whole = initialization.analyse(tidy(asked("both")))
    assert whole.answers[0] == "Of their_nets:both a scheme reaches 2 of 2 weight layers."


@pytest.mark.usefixtures("nets")
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["both", "old"])
def test_networks_behind_a_parametrization_differ_by_seed_and_scheme(name: str) -> None:
    losses = [float(row.value) for row in asked(name) if row.metric == "train_loss"]
    assert len(set(losses)) == len(losses) == 4


@pytest.mark.usefixtures("nets")
def test_defaults_behind_a_parametrization_keep_their_second_moment() -> None:
    layer = parametrizations.weight_norm(nn.Linear(200, 300))
    before = layer.weight.detach().clone()
    initialization.draw(layer, torch.Generator().manual_seed(1), "default", "relu", torch.zeros(1))
    assert not torch.allclose(layer.weight, before)
    spread = 5 * math.sqrt(2 / before.numel())
    assert layer.weight.detach().square().mean().item() == pytest.approx(1 / (3 * 200), rel=spread)
