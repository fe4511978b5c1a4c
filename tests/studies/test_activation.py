"""The study on data whose answer is known: every part, every verdict both ways."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from depthgauge import data, models, replicas, restriction, theory
from depthgauge.models import slots
from depthgauge.parts import Answer
from depthgauge.reports import style
from depthgauge.seeding import Purpose, generator
from depthgauge.studies import activation
from depthgauge.studies.activation import cost, field, functions, kinks, linear, normalized, shape, trained, xor
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.timing import HostClock
from depthgauge.timing.clocks import Device
from depthgauge.verdict import Findings, Status, Verdict

Tidy = Callable[..., pd.DataFrame]
HERE = Context("cpu")
SEEDS = 8


def verdict(answer: Answer | Findings, claim: str) -> Verdict:
    (found,) = (verdict for verdict in answer.verdicts if verdict.id == claim)
    return found


def values(rows: Iterable[Rows]) -> dict[str, np.ndarray]:
    """Of one case: metric -> values."""
    return {row.metric: np.atleast_1d(row.value).astype(float) for row in rows}


# -- which functions ---------------------------------------------------------------------------------------------------


def test_every_elementwise_activation_of_torch_is_there_or_known_to_be_none() -> None:
    """Each class of torch.nn's activation module is compared, or mixes elements, or draws at random."""
    made = {type(functions.make(name)) for name in functions.names()} - {nn.Identity}
    every = {getattr(nn, name) for name in nn.modules.activation.__all__}
    assert made | slots._LEFT_OUT == every
    assert not made & slots._LEFT_OUT


def test_arguments_are_those_of_torch_s_own_example() -> None:
    for kind, arguments in functions.DOCUMENTED.values():
        example = f"nn.{kind.__name__}({', '.join(f'{argument:g}' for argument in arguments)})"
        assert example in inspect.getdoc(kind)


def square(x: torch.Tensor) -> torch.Tensor:
    return x * x


class Shifted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x - 1)


def test_any_callable_joins_by_where_it_is_defined() -> None:
    x = torch.linspace(-2, 2, 5)
    torch.testing.assert_close(functions.make("torch.nn.functional:softplus")(x), nn.functional.softplus(x))
    torch.testing.assert_close(functions.make("torch.nn:Tanh")(x), torch.tanh(x))
    assert functions.label("torch.nn.functional:softplus") == "softplus"
    with pytest.raises(ValueError, match="no activation 'rleu'"):
        functions.make("rleu")
    with pytest.raises(ValueError, match=r"'nowhere:phi' cannot be had: No module named 'nowhere'"):
        functions.make("nowhere:phi")
    with pytest.raises(ValueError, match="is a float"):
        functions.make("math:pi")


def test_a_study_of_one_s_own_activations_is_this_one_with_other_cases() -> None:
    mine = activation.over("relu", "torch:sin", name="mine")
    asked = {case.get("activation") for chunk in mine.chunks("quick") for case in chunk.cases}
    assert {"relu", "torch:sin"} <= asked
    assert "gelu" not in {
        case["activation"] for chunk in mine.chunks("quick") for case in chunk.cases if case["part"] == "training"
    }
    with pytest.raises(ValueError, match="no activation 'sine'"):
        activation.over("sine")


def test_kinks_are_where_a_slope_jumps_and_nowhere_else() -> None:
    """ELU and CELU have one slope at 0, SELU two; Softsign's is 1 on both sides."""
    known = {
        "relu": (0.0,), "relu6": (0.0, 6.0), "leaky_relu": (0.0,), "prelu": (0.0,), "selu": (0.0,), "threshold": (0.0,),
        "hardtanh": (-1.0, 1.0), "hardsigmoid": (-3.0, 3.0), "hardswish": (-3.0, 3.0), "hardshrink": (-0.5, 0.5),
        "softshrink": (-0.5, 0.5),
    }  # fmt: skip
    assert {name: functions.kinks(name) for name in functions.names() if functions.kinks(name)} == known


# -- the theory table --------------------------------------------------------------------------------------------------


def field_case(**more: object) -> Case:
    return Case.of({"part": "field", "activation": "tanh", "init": "gain", "width": 16, "depth": 3, "seed": 0, **more})


def test_second_moments_are_those_of_plain_autograd() -> None:
    """One network of the part, rebuilt and differentiated by torch."""
    case = field_case()
    found = values(field.run_field([case], HERE))
    gain = theory.gain("tanh").forward
    model = models.build("mlp", depth=3, width=16, activation="tanh", input_shape=(16,), classes=16).double()
    stack = replicas.stack(model, [case.random_seed("seed", "width", "depth", "init")], field.gaussian(gain))
    module = stack.module(0)
    x, cotangent = (
        torch.randn(1, 16, generator=generator(case.random_seed("width"), purpose), dtype=torch.float64)
        for purpose in (Purpose.INPUTS, Purpose.COTANGENT)
    )
    h, kept = x * 4 / x.norm() / gain, []
    for block in module.hidden:
        kept.append(block.linear(h))
        h = torch.tanh(kept[-1])
    kept.append(module.output(h))
    gradients = torch.autograd.grad((kept[-1] * cotangent).sum(), kept)
    expected = [float(g.square().mean()) for g in gradients]
    np.testing.assert_allclose(found["second_moment"], expected, rtol=1e-12)


def test_the_first_layer_sees_exact_gaussians() -> None:
    """Orthogonal inputs: 16 x 16 independent N(0, 1); the mean square of tanh over 400 networks is E[tanh^2]."""
    cases = [field_case(seed=seed) for seed in range(400)]
    rows = [row for row in field.run_field(cases, HERE) if row.metric == "value2"]
    measured = np.array([float(row.value) for row in rows])
    expected = theory.layer_moments("tanh", 1.0).value2
    assert abs(measured.mean() - expected) < 4 * measured.std() / math.sqrt(400)


def test_an_activation_without_critical_weights_is_a_result() -> None:
    assert np.isnan(
        values(field.run_field([field_case(activation="softplus", init="critical")], HERE))["critical"]
    ).all()


def wavy(x: torch.Tensor) -> torch.Tensor:
    return x + torch.sin(x) ** 2


def test_an_activation_that_cannot_be_integrated_at_every_variance_has_the_rest(
    tidy: Tidy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x + sin(x)^2 (Ziyin et al. 2020) has no critical weights that could be found; all else is known."""
    monkeypatch.setattr(torch.nn.functional, "wavy", wavy, raising=False)  # somewhere that can be imported
    grid = Grid(
        {"activation": ("torch.nn.functional:wavy",), "init": tuple(field.WHERE)},
        fixed={"part": "field", "width": 16, "depth": 3}, seeds=6,
    )  # fmt: skip
    rows = [row for chunk in grid.chunks("activation") for row in activation.run(chunk.cases, HERE)]
    table = activation.analyse(tidy(rows)).tables["theory"]
    assert table["activation"].tolist() == ["wavy"]
    assert np.isnan(table["critical_sigma_w"]).all()
    assert np.isfinite(table[["forward_gain_measured", "growth_at_gain_measured"]]).all(axis=None)


def field_rows(
    off: Mapping[str, float], *, seeds: int = SEEDS, names: Iterable[str] = ("sigmoid", "relu")
) -> Iterator[Rows]:
    """Networks as theory has them, `off` in ln a layer (in ln of the moment) by initialization or moment."""
    for spec, init, seed in itertools.product(names, field.WHERE, range(seeds)):
        case = field_case(activation=spec, init=init, seed=seed, width=64, depth=10)
        noise = 1e-3 * (seed - (seeds - 1) / 2)
        rate = field.predicted_rate(spec, init, 64, 10) + off.get(init, 0.0) + noise
        yield case.rows(
            "second_moment", np.exp(rate * np.arange(10, -1, -1)), layer_index=np.arange(1, 12), direction="backward"
        )
        if init == "gain":
            for moment in ("value2", "slope2"):
                true = getattr(theory.layer_moments(spec, 1.0), moment)
                yield case.rows(moment, true * math.exp(off.get(moment, 0.0) + noise))


def test_theory_that_is_met_holds(tidy: Tidy) -> None:
    answer = field.analyse_field(tidy(field_rows({})))
    assert verdict(answer, "activation/theory").status is Status.HOLDS
    table = answer.tables["theory"].set_index("activation")
    assert table.loc["relu", "forward_gain_measured"] == pytest.approx(math.sqrt(2), rel=1e-5)
    assert table.loc["relu", "batch_norm_inf"] == pytest.approx(math.pi / (math.pi - 1))
    assert table.loc["sigmoid", "growth_at_gain_measured"] == pytest.approx(
        math.exp(field.predicted_rate("sigmoid", "gain", 64, 10)), rel=1e-9
    )


@pytest.mark.parametrize("off", [{"gain": 0.3}, {"default": -0.3}, {"value2": 0.3}])
def test_theory_that_is_missed_somewhere_depends(tidy: Tidy, off: Mapping[str, float]) -> None:
    found = verdict(field.analyse_field(tidy(field_rows(off))), "activation/theory")
    assert found.status is Status.DEPENDS
    assert abs(found.observed or 0.0) == pytest.approx(0.3, abs=1e-3)


def test_theory_that_is_missed_everywhere_fails(tidy: Tidy) -> None:
    off = dict.fromkeys([*field.WHERE, "value2", "slope2"], 0.5)
    assert verdict(field.analyse_field(tidy(field_rows(off))), "activation/theory").status is Status.FAILS


@pytest.mark.parametrize(
    ("off", "status"),
    [({}, Status.DEPENDS), ({"gain": 5.0, "default": 5.0}, Status.FAILS), ({"critical": -1.0}, Status.HOLDS)],
)
def test_n05_is_what_sigmoid_does_at_each_initialization(tidy: Tidy, off: Mapping[str, float], status: Status) -> None:
    assert verdict(field.analyse_field(tidy(field_rows(off))), "N05").status is status


# -- batch normalization -----------------------------------------------------------------------------------------------


def norm_rows(off: Callable[[str, int], float], seeds: int = SEEDS) -> Iterator[Rows]:
    for spec, batch, seed in itertools.product(("relu", "tanh"), (8, 32), range(seeds)):
        case = Case.of(
            {"part": "batch_norm", "activation": spec, "batch": batch, "width": 64, "depth": 6, "seed": seed}
        )
        rate = math.log(theory.batch_norm_growth(spec, batch)) + off(spec, batch) + 1e-3 * seed
        moments = np.exp(rate * np.arange(6, -1, -1))
        moments[0] = 1e9  # the first layer's inputs have passed no activation: it does not count
        yield case.rows("second_moment", moments, layer_index=np.arange(1, 8), direction="backward")


@pytest.mark.parametrize(
    ("off", "status"),
    [
        (lambda *_: 0.0, Status.HOLDS),
        (lambda *_: 0.4, Status.FAILS),
        (lambda _, batch: 0.4 * (batch == 8), Status.DEPENDS),
    ],
)
def test_growth_under_batch_normalization(tidy: Tidy, off: Callable[[str, int], float], status: Status) -> None:
    answer = normalized.analyse_normalized(tidy(norm_rows(off)))
    assert verdict(answer, "activation/batch_norm").status is status


def test_a_network_with_batch_normalization_is_measured_as_torch_trains_it() -> None:
    """Width 256, six layers, 12 networks of batch 16: the mean growth within 4 standard errors of theory."""
    grid = Grid(
        {"activation": ("relu",), "batch": (16,)}, fixed={"part": "batch_norm", "width": 256, "depth": 6}, seeds=12
    )
    logs = []
    for row in normalized.run_normalized(list(grid.cases()), HERE):
        moments = np.asarray(row.value)
        logs.append(math.log(moments[1] / moments[-1]) / 5)
    error = np.std(logs, ddof=1) / math.sqrt(12)
    assert abs(np.mean(logs) - math.log(theory.batch_norm_growth("relu", 16))) < 4 * error + 4 / 256
    assert error < 0.02


# -- training: the answer table, N09, lost units -----------------------------------------------------------------------

LRS = (0.01, 0.1, 1.0)


def training_rows(
    accuracy: Callable[[str, int, int], float],
    *,
    names: Iterable[str] = ("relu", "tanh", "gelu"),
    depths: Iterable[int] = (3, 10),
    seeds: int = SEEDS,
    init: str = "gain",
    dead: Callable[[str, int], float] = lambda *_: 0.0,
    diverged: float = 0.0,
) -> Iterator[Rows]:
    """Runs that end at `accuracy(name, depth, seed)` with the middle learning rate, and at chance with the others."""
    for name, depth, lr, seed in itertools.product(names, depths, LRS, range(-3, seeds)):
        case = Case.of(
            {
                "part": "training", "model": "mlp", "activation": name, "init": init, "depth": depth, "lr": lr,
                "seed": seed, "width": 32, "steps": 100, "data": "digits", "target": 0.9, "batch": 32, "momentum": 0.9,
            }
        )  # fmt: skip
        value = accuracy(name, depth, seed) if lr == LRS[1] else 0.1
        metrics = {
            "validation_accuracy": value, "test_accuracy": value, "train_accuracy": value, "train_loss": 1.0,
            "steps_to_target": 50.0 if value > 0.8 else 100.0, "reached": float(value > 0.8), "diverged": diverged,
        }  # fmt: skip
        for metric, number in metrics.items():
            yield case.rows(metric, number)
        for step in (0, 50, 100):
            yield case.rows("dead", dead(name, step) * (1 + 0.01 * seed), step=step)
            yield case.rows("saturated", 0.1, step=step)


def test_the_best_the_same_and_the_worse_are_told_apart(tidy: Tidy) -> None:
    def accuracy(name: str, _depth: int, seed: int) -> float:
        return {"relu": 0.9, "tanh": 0.897, "gelu": 0.7}[name] + 1e-3 * ((seed * 5) % 8)

    answer = trained.analyse_training(tidy(training_rows(accuracy)))
    table = answer.tables["answers"].set_index(["depth", "activation"])
    for depth in (3, 10):
        assert table.loc[depth, "answer"].to_dict() == {"relu": "picked", "tanh": "as good", "gelu": "out"}
        assert table.loc[(depth, "gelu"), "behind"] == pytest.approx(0.2)
    assert verdict(answer, "activation/same").status is Status.DEPENDS
    assert answer.sentences[0].startswith("At depth 3 validation picks relu")


@pytest.mark.parametrize(("behind", "status"), [(0.001, Status.HOLDS), (0.2, Status.FAILS)])
def test_all_the_same_or_all_behind(tidy: Tidy, behind: float, status: Status) -> None:
    def accuracy(name: str, _depth: int, seed: int) -> float:
        return 0.9 - behind * (name != "relu") + 1e-4 * ((seed * (3 + len(name))) % 8)

    assert verdict(trained.analyse_training(tidy(training_rows(accuracy))), "activation/same").status is status


def test_a_best_that_chance_chose_is_not_ahead() -> None:
    """Twelve activations that differ by chance alone are behind the best by nothing on average.

    Held against the winner of the seeds themselves they would all be behind, by the winner's luck: 1.63 standard errors
    of a mean (the largest of 12 normal values), here 0.0115. The mean of 30 experiments has a standard error of a
    thirtieth of 0.02 for the luck of the others' choice.
    """
    generator = np.random.default_rng(1)
    behind, luck = [], []
    for _ in range(30):
        draws = generator.normal(0.9, 0.02, (12, SEEDS))
        runs = pd.DataFrame(
            {
                "activation": f"f{i}", "seed": seed, "depth": 3, "test_accuracy": draws[i, seed],
                "validation_accuracy": draws[i, seed],
            }
            for i in range(12)
            for seed in range(SEEDS)
        )  # fmt: skip
        behind.append(trained._against_best(runs)["behind"].mean())
        luck.append(draws.mean(1).max() - draws.mean())
    error = np.std(behind, ddof=1) / math.sqrt(30)
    assert np.mean(luck) > 0.009
    assert np.mean(behind) < 4 * error < 0.008


@pytest.mark.parametrize(
    ("deep", "status"),
    [({}, Status.HOLDS), ({"relu": 0.2, "tanh": 0.2, "gelu": 0.2}, Status.FAILS), ({"gelu": 0.2}, Status.DEPENDS)],
)
def test_n09_asks_whether_the_deepest_networks_train(tidy: Tidy, deep: Mapping[str, float], status: Status) -> None:
    def accuracy(name: str, depth: int, seed: int) -> float:
        return (deep.get(name, 0.9) if depth == 10 else 0.9) + 1e-4 * seed

    rows = [*training_rows(accuracy), *training_rows(lambda *_: 0.1, names=("tanh",), depths=(10,), init="default")]
    found = verdict(trained.analyse_training(tidy(rows)), "N09")
    assert found.status is status
    assert "0 of 8 with tanh" in found.why


def test_a_network_that_diverged_has_not_trained(tidy: Tidy) -> None:
    found = verdict(trained.analyse_training(tidy(training_rows(lambda *_: 0.9, diverged=1.0))), "N09")
    assert found.status is Status.FAILS


@pytest.mark.parametrize(
    ("dead", "status"),
    [
        (lambda name, step: 0.2 * (name == "relu") * step / 100, Status.HOLDS),
        (lambda *_: 0.05, Status.FAILS),
        (lambda name, step: 0.2 * (name == "relu") * (1 - step / 100), Status.FAILS),
    ],
)
def test_units_die_if_more_are_dead_at_the_end(tidy: Tidy, dead: Callable[[str, int], float], status: Status) -> None:
    answer = trained.analyse_training(tidy(training_rows(lambda *_: 0.9, dead=dead)))
    assert verdict(answer, "activation/dying").status is status


def test_a_model_with_a_depth_of_its_own_is_analysed(tidy: Tidy) -> None:
    """As `--model` leaves it: the grids of all depths are one, and None is handed to the factory."""
    rows = [
        replace(row, case=Case.of({**dict(row.case.params), "depth": None, "width": None, "model": "resnet18"}))
        for row in training_rows(lambda name, *_: 0.7 if name == "gelu" else 0.9, depths=(10,))
    ]
    found = activation.analyse(tidy(rows))
    assert found.tables["training"]["depth"].tolist() == [0, 0, 0]
    assert verdict(found, "N09").status is Status.HOLDS
    assert found.answers[0].startswith("At the model's own depth validation picks relu")
    assert drawn(found) == ["answers", "ladder", "units"]


def test_training_and_steps_run_on_other_models() -> None:
    """One grid of each that hands a depth of the study's becomes one without, and its first case is trained."""
    left = restriction.restrict(activation.STUDY, "quick", models.target("resnet18"))
    parts = [(grid.fixed["part"], grid.fixed.get("init")) for grid in left.grids]
    assert parts == [("training", "gain"), ("training", "default"), ("step", None)]
    assert set(left.not_applicable) == {
        "N05", "N13", "N14", "N15", "N16", "activation/theory", "activation/batch_norm"
    }  # fmt: skip
    case = next(iter(left.grids[0].cases()))
    (brief,) = [Case.of({**dict(case.params), "steps": 2})]
    assert {"test_accuracy", "steps_to_target"} <= {row.metric for row in activation.run([brief], HERE)}


def test_censored_runs_are_counted_and_have_no_median(tidy: Tidy) -> None:
    cells = trained.analyse_training(tidy(training_rows(lambda *_: 0.6))).tables["training"]
    assert (cells["reached"] == 0).all()
    assert np.isinf(cells["median_steps"]).all()
    assert (cells["trained"] == SEEDS).all()


def test_weights_start_at_gain_1_and_go_on_at_the_activation_s() -> None:
    """16,384 weights a layer: standard deviations to half a percent, 3 standard errors being 1.7 %."""
    model = models.build("mlp", depth=2, width=128, activation="tanh", input_shape=(128,), classes=128)
    with torch.no_grad():
        trained.at_gain(2.0)(model, torch.Generator().manual_seed(0))
    stds = [
        float(weight.detach().std()) * math.sqrt(128) for name, weight in model.named_parameters() if "weight" in name
    ]
    assert stds == pytest.approx([1.0, 2.0, 2.0], rel=0.017)


# -- depth against width: N15 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 5, 16])
def test_widths_are_those_that_come_closest_to_the_size(depth: int) -> None:
    def size(width: int) -> int:
        model = models.build("mlp", depth=depth, width=width, input_shape=(784,), classes=10, device="meta")
        return sum(parameter.numel() for parameter in model.parameters())

    width = shape.width_for(100_000, depth, 784, 10)
    off = [abs(size(width + change) - 100_000) for change in (-1, 0, 1)]
    assert min(off) == off[1]


def shape_rows(
    accuracy: Mapping[int, float], steps: Mapping[int, float], *, names: Iterable[str] = ("relu",)
) -> Iterator[Rows]:
    for name, depth, lr, seed in itertools.product(names, accuracy, LRS, range(-3, SEEDS)):
        case = Case.of(
            {
                "part": "shape", "activation": name, "depth": depth, "width": 64 // depth, "lr": lr, "seed": seed,
                "steps": 100, "target": 0.9,
            }
        )  # fmt: skip
        value = accuracy[depth] + 1e-4 * ((seed * 3) % 8) if lr == LRS[1] else 0.1
        arrived = steps[depth] + seed % 3
        metrics = {
            "validation_accuracy": value, "test_accuracy": value, "train_accuracy": value, "train_loss": 1.0,
            "steps_to_target": min(arrived, 100.0), "reached": float(arrived < 100), "diverged": 0.0, "size": 1000.0,
        }  # fmt: skip
        yield from (case.rows(metric, number) for metric, number in metrics.items())


@pytest.mark.parametrize(
    ("accuracy", "steps", "status"),
    [
        ({1: 0.8, 4: 0.9}, {1: 60, 4: 30}, Status.HOLDS),
        ({1: 0.8, 4: 0.9}, {1: 30, 4: 60}, Status.FAILS),  # better, yet harder
        ({1: 0.9, 4: 0.8}, {1: 60, 4: 30}, Status.FAILS),  # easier, yet worse
        ({1: 0.9, 4: 0.901}, {1: 60, 4: 30}, Status.FAILS),  # no better
        ({1: 0.8, 4: 0.9, 8: 0.5}, {1: 60, 4: 30, 8: 200}, Status.DEPENDS),
    ],
)
def test_n15_says_easier_and_better(
    tidy: Tidy, accuracy: Mapping[int, float], steps: Mapping[int, float], status: Status
) -> None:
    assert verdict(shape.analyse_shape(tidy(shape_rows(accuracy, steps))), "N15").status is status


# -- without activation: N13 -------------------------------------------------------------------------------------------


def test_a_deep_network_without_activation_is_affine_and_of_its_inputs_rank() -> None:
    """Inputs of rank 3 in 8 dimensions, width 20: rank 3 after four layers. With ReLU: more, and not affine."""
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(200, 3, generator=generator), torch.zeros(200, 5)], 1)
    for name, rank in (("identity", 3), ("relu", 4)):
        model = models.build("mlp", depth=4, width=20, activation=name, input_shape=(8,), classes=5)
        found = linear.inspect(replicas.stack(model, [0, 1], trained.at_gain(1.4)), x)
        assert found["input_rank"] == [3, 3]
        if name == "identity":
            assert found["rank"] == [rank, rank]
            assert max(found["residual"]) < 1e-12
        else:
            assert min(found["rank"]) >= rank
            assert min(found["residual"]) > 1e-3


def linear_rows(gain: float, *, rank: float = 61.0, residual: float = 1e-14) -> Iterator[Rows]:
    for (name, depth), lr, seed in itertools.product(
        (("identity", 0), ("identity", 3), ("relu", 3)), LRS, range(-3, SEEDS)
    ):
        case = Case.of({"part": "linear", "activation": name, "depth": depth, "width": 128, "lr": lr, "seed": seed})
        value = 0.9 + (gain if name == "identity" and depth else 0.0) + 1e-4 * ((seed * (3 + depth)) % 8)
        bent = name == "relu"
        metrics = {
            "validation_accuracy": value, "test_accuracy": value, "train_accuracy": value, "train_loss": 1.0,
            "steps_to_target": 50.0, "reached": 1.0, "diverged": 0.0, "rank": 128.0 if bent else rank,
            "input_rank": 61.0, "residual": 0.3 if bent else residual,
        }  # fmt: skip
        yield from (case.rows(metric, number) for metric, number in metrics.items())


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        (linear_rows(0.0), Status.HOLDS),
        (linear_rows(0.1), Status.FAILS),
        (linear_rows(0.0, rank=90.0), Status.FAILS),
        (linear_rows(0.0, residual=1e-3), Status.FAILS),
    ],
)
def test_n13_asks_for_rank_affinity_and_accuracy(tidy: Tidy, rows: Iterator[Rows], status: Status) -> None:
    assert verdict(linear.analyse_linear(tidy(rows)), "N13").status is status


# -- XOR: N16 ----------------------------------------------------------------------------------------------------------


def test_the_perceptron_is_trained_by_rosenblatt_s_rule() -> None:
    """One pass over one misjudged example moves the weights by lr times its sign times the input."""
    weight = torch.zeros(1, 2, requires_grad=True)
    x, sign = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0]])
    xor.perceptron_loss(x @ weight.T - 0.5, sign).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, -x)


def xor_rows(rate: Callable[[str, int], float], linear_best: float = 0.75) -> Iterator[Rows]:
    combinations = [("identity", 0), *itertools.product(("identity", "relu", "tanh"), (2, 8))]
    for (name, width), lr, seed in itertools.product(combinations, LRS, range(20)):
        case = Case.of({"part": "xor", "activation": name, "width": width, "lr": lr, "seed": seed})
        solved = name != "identity" and lr == LRS[1] and seed < 20 * rate(name, width)
        yield case.rows("accuracy", 1.0 if solved else linear_best if name == "identity" else 0.75)


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        (xor_rows(lambda *_: 1.0), Status.HOLDS),
        (xor_rows(lambda *_: 1.0, linear_best=1.0), Status.FAILS),
        (xor_rows(lambda *_: 0.1), Status.FAILS),
        (xor_rows(lambda _, width: 0.1 if width == 2 else 1.0), Status.DEPENDS),
    ],
)
def test_n16_has_two_halves(tidy: Tidy, rows: Iterator[Rows], status: Status) -> None:
    assert verdict(xor.analyse_xor(tidy(rows)), "N16").status is status


def test_no_line_gets_four_corners_and_a_hidden_layer_does() -> None:
    fixed = {"part": "xor", "steps": 300, "momentum": 0.9, "lr": 0.3}
    best = {}
    for width in (0, 8):
        cases = list(Grid({"activation": ("tanh",), "width": (width,)}, fixed=fixed, seeds=6).cases())
        best[width] = max(float(row.value) for row in xor.run_xor(cases, HERE))
    assert best[0] <= xor.LINEAR_BEST
    assert best[8] == 1.0


# -- kinks: N14 --------------------------------------------------------------------------------------------------------


def kink_case(**more: object) -> Case:
    return Case.of(
        {
            "part": "kinks", "activation": "hardtanh", "format": "bfloat16", "layer_kind": "dense", "width": 64,
            "examples": 200, "seed": 0, **more,
        }
    )  # fmt: skip


def test_landing_on_a_kink_has_the_chance_that_rounding_gives_it() -> None:
    """12,800 outputs a network, about 0.3 % on +-1 in bfloat16; 20 networks: within 4 standard errors of the mean."""
    landed, expected = [], []
    for seed in range(20):
        found = values(kinks.run_kinks([kink_case(seed=seed)], HERE))
        landed.append(found["landed"].sum())
        expected.append(found["expected"].sum())
    assert 1e-3 < np.mean(expected) < 1e-2
    difference = np.array(landed) - np.array(expected)
    assert abs(difference.mean()) < 4 * difference.std(ddof=1) / math.sqrt(20)


def test_a_background_of_zero_is_landed_on_for_certain() -> None:
    """Where a 3 x 3 patch is empty its output is 0 in every format: counted from the images alone."""
    images = data.load("mnist5k").train.x[:50]
    blank = images - images.min()
    empty = nn.functional.max_pool2d(blank, 3, stride=1) == 0
    found = values(kinks.run_kinks([kink_case(activation="relu", layer_kind="blank", examples=50)], HERE))
    assert found["landed"][0] == pytest.approx(float(empty.double().mean()), abs=1e-4)
    assert found["expected"][0] == pytest.approx(float(empty.double().mean()), abs=1e-6)


def kink_rows(share: Callable[[str], float], seeds: int = SEEDS) -> Iterator[Rows]:
    for fmt, seed in itertools.product(("float32", "bfloat16"), range(seeds)):
        case = kink_case(format=fmt, seed=seed)
        value = share(fmt) * (1 + 0.01 * seed)
        yield case.rows("landed", [value, 0.0], layer=["-1", "1"])
        yield case.rows("expected", [value, 0.0], layer=["-1", "1"])
        yield case.rows("outputs", 1e5)


@pytest.mark.parametrize(
    ("share", "status"),
    [
        (lambda _: 0.0, Status.HOLDS),
        (lambda _: 0.1, Status.FAILS),
        (lambda fmt: 0.1 * (fmt == "bfloat16"), Status.DEPENDS),
    ],
)
def test_n14_is_a_share_of_at_most_one_in_a_thousand(tidy: Tidy, share: Callable[[str], float], status: Status) -> None:
    answer = kinks.analyse_kinks(tidy(kink_rows(share)))
    assert verdict(answer, "N14").status is status


def test_without_a_hit_the_share_is_bounded_by_three_over_the_number(tidy: Tidy) -> None:
    table = kinks.analyse_kinks(tidy(kink_rows(lambda _: 0.0))).tables["kinks"]
    assert table["high"].tolist() == pytest.approx([3 / (SEEDS * 1e5)] * 2)


# -- cost: N12 ---------------------------------------------------------------------------------------------------------


def test_turns_are_a_b_b_a_and_durations_are_those_of_one_call() -> None:
    """A clock of its own time: a takes 2 ms, b takes 3 ms, and the order is written down."""
    order: list[str] = []
    time = [0.0]

    def work(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            time[0] += seconds

        return run

    clock = HostClock(Device("cpu", now=lambda: time[0]))
    found = cost.in_turns(clock, work("a", 2e-3), work("b", 3e-3), 4)
    np.testing.assert_allclose(found[:, 0], 2e-3, rtol=1e-9)
    np.testing.assert_allclose(found[:, 1], 3e-3, rtol=1e-9)
    assert order[-16:] == list("abba" * 4)


@pytest.mark.parametrize(("name", "elements"), [("relu", 1), ("identity", 0), ("gelu", 1), ("tanh", 1)])
def test_saved_bytes_are_those_of_what_autograd_keeps(name: str, elements: int) -> None:
    x = torch.randn(1000)
    assert cost.saved_bytes(functions.make(name), x) == elements * 4000


def step_rows(ratio: Callable[[str, str], float], blocks: int = 15, jitter: float = 1e-3) -> Iterator[Rows]:
    """Steps of 1 ms with ReLU, `ratio` times that with the others; pairs differ by `jitter`."""
    generator = np.random.default_rng(0)
    for model, name in itertools.product(("mlp", "plain_cnn"), ("relu", "tanh", "gelu")):
        case = Case.of({"part": "step", "model": model, "activation": name, "batch": 16, "blocks": blocks})
        noise = np.exp(jitter * generator.standard_normal((2, 2 * blocks)))
        steps = np.repeat(np.arange(blocks), 2)
        factor = 1.0 if name == "relu" else ratio(model, name)
        yield case.rows("seconds", 1e-3 * factor * noise[0], direction="step", step=steps)
        yield case.rows("reference_seconds", 1e-3 * noise[1], direction="step", step=steps)


@pytest.mark.parametrize(
    ("ratio", "jitter", "status"),
    [
        (lambda *_: 1.3, 1e-3, Status.HOLDS),
        (lambda *_: 1.0, 1e-3, Status.FAILS),
        (lambda model, _: 1.3 if model == "mlp" else 1.0, 1e-3, Status.DEPENDS),
        (lambda *_: 1.3, 1.0, Status.INCONCLUSIVE),  # the machine resolves nothing
    ],
)
def test_n12_is_what_a_step_takes_longer(
    tidy: Tidy, ratio: Callable[[str, str], float], jitter: float, status: Status
) -> None:
    answer = cost.analyse_step(tidy(step_rows(ratio, jitter=jitter)))
    assert verdict(answer, "N12").status is status


def test_names_are_moved_apart_and_stay_inside() -> None:
    placed = cost._apart(np.array([0.1, 0.11, 0.5, 0.99, 0.99]), 0.1)
    assert np.all(np.diff(placed) >= 0.1 - 1e-12)
    assert placed[2] == 0.5
    assert placed[-1] <= 1.0


def test_an_exponential_is_one_in_the_formula() -> None:
    assert set(functions.names()) >= functions.EXPONENTIAL
    assert not functions.EXPONENTIAL & {"relu", "identity", "hardtanh", "softsign", "leaky_relu"}


# -- the study as a whole ----------------------------------------------------------------------------------------------

SGD = {"data": "digits", "batch": 32, "momentum": 0.9, "steps": 25, "target": 0.9}
TINY = {
    "training": Grid(
        {"activation": ("relu", "tanh"), "depth": (1, 2), "lr": (0.01, 0.1)},
        fixed={**SGD, "part": "training", "model": "mlp", "init": "gain", "width": 8},
        seeds=6, together=("lr", "seed"),
    ),
    "shape": Grid(
        {"activation": ("relu",), "depth": (1, 2), "lr": (0.01, 0.1)}, fixed={**SGD, "part": "shape", "width": 8},
        seeds=6, together=("lr", "seed"),
    ),
    "step": Grid(
        {"model": ("mlp",), "activation": ("relu", "tanh")}, fixed={"part": "step", "batch": 2, "blocks": 8},
        together=("activation",),
    ),
    "elementwise": Grid(
        {"activation": ("copy", "relu", "tanh"), "format": ("float32",)},
        fixed={"part": "elementwise", "log2_elements": 8, "blocks": 8}, together=("activation",),
    ),
    "field": Grid(
        {"activation": ("relu", "sigmoid", "softplus"), "init": tuple(field.WHERE)},
        fixed={"part": "field", "width": 16, "depth": 4}, seeds=6,
    ),
    "batch_norm": Grid(
        {"activation": ("relu", "tanh"), "batch": (8, 16)}, fixed={"part": "batch_norm", "width": 16, "depth": 3},
        seeds=6,
    ),
    "kinks": Grid(
        {"activation": ("relu",), "format": ("float32", "bfloat16"), "layer_kind": ("dense", "blank")},
        fixed={"part": "kinks", "width": 32, "examples": 20}, seeds=6, together=("activation", "seed"),
    ),
    "linear": Grid(
        {"activation": ("identity",), "depth": (0, 2), "lr": (0.01, 0.1)}, fixed={**SGD, "part": "linear", "width": 16},
        seeds=6, together=("lr", "seed"),
    ),
    "xor": Grid(
        {"activation": ("identity", "tanh"), "width": (2, 4), "lr": (0.1,)},
        fixed={"part": "xor", "steps": 20, "momentum": 0.9}, seeds=6, together=("lr", "seed"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> dict[str, list[Rows]]:
    return {
        part: [row for chunk in grid.chunks("activation") for row in activation.run(chunk.cases, HERE)]
        for part, grid in TINY.items()
    }


@pytest.fixture(scope="module")
def findings(tidy: Tidy, tiny: dict[str, list[Rows]]) -> Findings:
    return activation.analyse(tidy(row for rows in tiny.values() for row in rows))


def test_every_part_has_its_grids_in_every_preset() -> None:
    assert set(TINY) == set(activation.PARTS)
    for preset in activation.STUDY.presets:
        chunks = activation.STUDY.chunks(preset)
        assert {chunk.cases[0]["part"] for chunk in chunks} == set(activation.PARTS)
        for chunk in chunks:
            assert chunk.exclusive is (chunk.cases[0]["part"] in {"step", "elementwise"})


def test_every_activation_is_compared_beyond_quick() -> None:
    for preset in ("standard", "full"):
        for part in ("training", "field"):
            cases = [case for chunk in activation.STUDY.chunks(preset) for case in chunk.cases if case["part"] == part]
            assert {case["activation"] for case in cases} == set(functions.names())


def test_equal_cases_give_equal_rows(tiny: dict[str, list[Rows]]) -> None:
    """All but what reads the clock."""
    for part, grid in TINY.items():
        if part in {"step", "elementwise"}:
            continue
        chunk = next(iter(grid.chunks("activation")))
        again = list(activation.run(chunk.cases, HERE))
        for row, before in zip(again, tiny[part], strict=False):
            assert (row.case, row.metric) == (before.case, before.metric)
            np.testing.assert_array_equal(row.value, before.value)


def test_all_claims_have_a_verdict(findings: Findings) -> None:
    assert [one.id for one in findings.verdicts] == [claim.id for claim in activation.CLAIMS]
    for one in findings.verdicts:
        assert one.why
        assert one.method
        if one.status not in {Status.INCONCLUSIVE, Status.NOT_APPLICABLE}:
            assert one.observed is not None
            assert one.n >= 1
    assert set(findings.shown) <= set(findings.tables)


def drawn(findings: Findings) -> list[str]:
    """Names of the figures; each is drawn to its file's bytes, warnings as errors."""
    names = []
    with style.drawing():
        for figure in activation.plot(findings):
            assert isinstance(figure.canvas, matplotlib.figure.Figure)
            assert style.png(figure.canvas).startswith(b"\x89PNG")
            assert figure.title
            assert figure.caption
            names.append(figure.name)
    return names


def test_every_figure_is_drawn(findings: Findings) -> None:
    names = drawn(findings)
    assert len(set(names)) == len(names)
    assert {"answers", "ladder", "scatter", "theory", "batch_norm", "kinks", "elementwise", "shape", "xor"} <= set(
        names
    )


@pytest.mark.parametrize("part", TINY)
def test_one_part_alone_is_analysed_and_drawn(tidy: Tidy, tiny: dict[str, list[Rows]], part: str) -> None:
    drawn(activation.analyse(tidy(tiny[part])))


@pytest.mark.parametrize("part", TINY)
def test_cases_that_failed_spoil_no_other(tidy: Tidy, tiny: dict[str, list[Rows]], part: str) -> None:
    """The first case of the part failed, then half of them, then all."""
    cases = tuple(TINY[part].cases())
    for gone in (cases[:1], cases[: len(cases) // 2], cases):
        kept = [row for row in tiny[part] if row.case not in gone]
        failed = dict(zip(gone, itertools.cycle(("error", "timeout", "lost")), strict=False))
        found = activation.analyse(tidy(kept, failed))
        assert len(found.verdicts) == len(activation.CLAIMS)
        drawn(found)
    assert {one.status for one in found.verdicts} == {Status.NOT_MEASURED}


def test_networks_that_died_are_results(tidy: Tidy, tiny: dict[str, list[Rows]]) -> None:
    """A gradient of zero, infinity or NaN in one network of the part: a verdict, and no error."""
    for value in (0.0, math.inf, math.nan):
        for part in ("field", "batch_norm"):
            rows = [
                replace(row, value=np.full(np.shape(row.value), value))
                if row.case["seed"] == 0 and row.metric == "second_moment" and row.case["activation"] == "relu"
                else row
                for row in tiny[part]
            ]
            drawn(activation.analyse(tidy(rows)))
