"""What is special to the study: closed forms of what it measures, and its verdicts both ways on made-up rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from depthgauge import data, models, replicas, restriction, theory, timing
from depthgauge.models import activations
from depthgauge.seeding import Purpose, generator
from depthgauge.studies import activation
from depthgauge.studies.activation import field, shape, step
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Sentence, Status, Verdict

Tidy = Callable[..., pd.DataFrame]
HERE = Context("cpu")
PARTS = {part.name: part for part in activation.PARTS}
SEEDS = 8
LRS = (0.01, 0.1, 1.0)


class Answers:
    """What a part's analysis says of some rows."""

    def __init__(self, part: str, rows: pd.DataFrame) -> None:
        said = list(PARTS[part].analyse(rows))
        self.verdicts = {answer.id: answer for answer in said if isinstance(answer, Verdict)}
        self.tables = dict(answer for answer in said if isinstance(answer, tuple))
        self.sentences = [answer.text for answer in said if isinstance(answer, Sentence)]


def values(rows: Iterable[Rows]) -> dict[str, np.ndarray]:
    """Of one case: metric -> values."""
    return {row.metric: np.atleast_1d(row.value).astype(float) for row in rows}


def runs(part: str, ends: Callable[..., Mapping[str, float]], **varied: tuple[Any, ...]) -> Iterator[Rows]:
    """A training a (parameters, rate, seed), three seeds of which choose: `ends` with the middle rate, else chance."""
    fixed = {"part": part, "steps": 100, "target": 0.9, "width": 32}
    default = {"test_accuracy": 0.1, "train_accuracy": 0.5, "train_loss": 1.0, "steps_to_target": 100.0}
    for combination, lr, seed in itertools.product(itertools.product(*varied.values()), LRS, range(-3, SEEDS)):
        params = dict(zip(varied, combination, strict=True))
        case = Case.of({**fixed, **params, "lr": lr, "seed": seed})
        metrics = {**default, "reached": 0.0, "diverged": 0.0, **(ends(**params, seed=seed) if lr == LRS[1] else {})}
        for name, value in {**metrics, "validation_accuracy": metrics["test_accuracy"]}.items():
            yield case.rows(name, value)


# -- which functions ---------------------------------------------------------------------------------------------------


def test_a_study_of_one_s_own_activations_is_this_one_with_other_cases() -> None:
    mine = activation.over("relu", "torch:sin", name="mine")
    assert (mine.name, mine.claims) == ("mine", activation.STUDY.claims)
    for preset in activation.STUDY.presets:
        cases = [case for chunk in mine.chunks(preset) for case in chunk.cases]
        for part in ("training", "field", "batch_norm"):
            assert {case["activation"] for case in cases if case["part"] == part} == {"relu", "torch:sin"}
    with pytest.raises(ValueError, match="no activation 'sine'"):
        activation.over("sine")


# -- the theory table --------------------------------------------------------------------------------------------------


def field_case(**more: object) -> Case:
    return Case.of({"part": "field", "activation": "tanh", "init": "gain", "width": 16, "depth": 3, "seed": 0, **more})


def test_second_moments_are_those_of_plain_autograd() -> None:
    """One network of the part, rebuilt and differentiated by torch."""
    case = field_case()
    measured = values(PARTS["field"].run([case], HERE))
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
    np.testing.assert_allclose(measured["second_moment"], [float(g.square().mean()) for g in gradients], rtol=1e-12)


def test_the_first_layer_sees_exact_gaussians() -> None:
    """Orthogonal inputs: 16 x 16 independent N(0, 1); the mean square of tanh over 400 networks is E[tanh^2]."""
    rows = PARTS["field"].run([field_case(seed=seed) for seed in range(400)], HERE)
    measured = np.array([float(row.value) for row in rows if row.metric == "value2"])
    expected = theory.layer_moments("tanh", 1.0).value2
    assert abs(measured.mean() - expected) < 4 * measured.std() / math.sqrt(400)


def wavy(x: torch.Tensor) -> torch.Tensor:
    return x + torch.sin(x) ** 2


def test_an_activation_that_cannot_be_integrated_at_every_variance_has_the_rest(
    tidy: Tidy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x + sin(x)^2 (Ziyin et al. 2020) has no critical weights that could be found; all else is known."""
    monkeypatch.setattr(torch.nn.functional, "wavy", wavy, raising=False)  # somewhere that can be imported
    named = {"activation": "torch.nn.functional:wavy"}
    cases = [field_case(**named, init=init, seed=seed) for init in field.INITS for seed in range(6)]
    rows = [row for start in (0, 6, 12) for row in PARTS["field"].run(cases[start : start + 6], HERE)]
    table = Answers("field", tidy(rows)).tables["theory"]
    assert table["activation"].tolist() == ["wavy"]
    assert np.isnan(table["critical_sigma_w"]).all()
    assert np.isfinite(table[["forward_gain_measured", "growth_at_gain_measured"]]).all(axis=None)


def field_rows(off: Mapping[str, float], names: Iterable[str] = ("sigmoid", "relu")) -> Iterator[Rows]:
    """Networks as theory has them, `off` in ln a layer (in ln of the moment) by initialization or moment."""
    for spec, init, seed in itertools.product(names, field.INITS, range(SEEDS)):
        case = field_case(activation=spec, init=init, seed=seed, width=64, depth=10)
        noise = 1e-3 * (seed - (SEEDS - 1) / 2)
        rate = field.predicted_rate(spec, init, 64, 10) + off.get(init, 0.0) + noise
        moments = np.exp(rate * np.arange(10, -1, -1))
        moments[0] = 1e9  # the first layer is fed inputs, not activations: it does not count
        yield case.rows("second_moment", moments, layer_index=np.arange(1, 12), direction="backward")
        for moment in ("value2", "slope2") if init == "gain" else ():
            true = getattr(theory.layer_moments(spec, 1.0), moment)
            yield case.rows(moment, true * math.exp(off.get(moment, 0.0) + noise))


@pytest.mark.parametrize(
    ("off", "status", "n05"), [({}, Status.HOLDS, Status.DEPENDS), ({"value2": 0.3}, Status.DEPENDS, Status.DEPENDS),
        ({"gain": 5.0, "default": 5.0}, Status.DEPENDS, Status.FAILS),
        ({"critical": -1.0}, Status.DEPENDS, Status.HOLDS),
        (dict.fromkeys([*field.INITS, "value2", "slope2"], 0.5), Status.FAILS, Status.DEPENDS)],
)  # fmt: skip
def test_theory_is_met_or_missed_and_sigmoid_s_gradient_vanishes_or_not(
    tidy: Tidy, off: Mapping[str, float], status: Status, n05: Status
) -> None:
    answers = Answers("field", tidy(field_rows(off)))
    assert answers.verdicts["activation/theory"].status is status
    assert answers.verdicts["N05"].status is n05
    if not off:
        table = answers.tables["theory"].set_index("activation")
        assert table.loc["relu", "forward_gain_measured"] == pytest.approx(math.sqrt(2), rel=1e-5)
        assert table.loc["relu", "batch_norm_inf"] == pytest.approx(math.pi / (math.pi - 1))


@pytest.mark.parametrize("value", [math.nan, 0.0])
def test_a_moment_that_is_no_number_is_not_left_out(tidy: Tidy, value: float) -> None:
    rows = [
        replace(row, value=value) if (row.metric, row.case["seed"]) == ("value2", 0) else row
        for row in field_rows({}, ("relu",))
    ]
    table = Answers("field", tidy(rows)).tables["deviations"].set_index("quantity")
    assert table.loc["E[phi(z)^2]", ["n", "answer"]].tolist() == [SEEDS, "inconclusive"]
    assert table.loc["E[phi'(z)^2]", "answer"] in ("equivalent", "different, inside the margin")


@pytest.mark.parametrize(
    ("off", "status"), [(lambda *_: 0.0, Status.HOLDS), (lambda *_: 0.4, Status.FAILS),
        (lambda _, batch: 0.4 * (batch == 8), Status.DEPENDS)],
)  # fmt: skip
def test_growth_under_batch_normalization(tidy: Tidy, off: Callable[[str, int], float], status: Status) -> None:
    rows = []
    for spec, batch, seed in itertools.product(("relu", "tanh"), (8, 32), range(SEEDS)):
        case = Case.of({"part": "batch_norm", "activation": spec, "batch": batch, "seed": seed})
        rate = math.log(theory.batch_norm_growth(spec, batch)) + off(spec, batch) + 1e-3 * seed
        moments = np.exp(rate * np.arange(6, -1, -1))
        moments[0] = 1e9
        rows.append(case.rows("second_moment", moments, layer_index=np.arange(1, 8), direction="backward"))
    assert Answers("batch_norm", tidy(rows)).verdicts["activation/batch_norm"].status is status


def test_a_network_with_batch_normalization_is_measured_as_torch_trains_it() -> None:
    """Width 256, six layers, 12 networks of batch 16: the mean growth within 4 standard errors of theory."""
    grid = Grid({"activation": ("relu",), "batch": (16,)}, {"part": "batch_norm", "width": 256, "depth": 6}, seeds=12)
    moments = [np.asarray(row.value) for row in PARTS["batch_norm"].run(list(grid.cases()), HERE)]
    logs = [math.log(moment[1] / moment[-1]) / 5 for moment in moments]
    error = np.std(logs, ddof=1) / math.sqrt(12)
    assert abs(np.mean(logs) - math.log(theory.batch_norm_growth("relu", 16))) < 4 * error + 4 / 256
    assert error < 0.02


# -- training ----------------------------------------------------------------------------------------------------------


def training_rows(
    accuracy: Callable[[str, int, int], float], *, names: tuple[str, ...] = ("relu", "tanh", "gelu"),
    depths: tuple[int | None, ...] = (3, 10), inits: tuple[str, ...] = ("gain",), diverged: float = 0.0,
    dead: Callable[[str, int], float] = lambda *_: 0.0,
) -> Iterator[Rows]:  # fmt: skip
    def ends(activation: str, depth: int, seed: int, **_: object) -> Mapping[str, float]:
        value = accuracy(activation, depth, seed)
        reached = value > 0.8
        steps = 50.0 if reached else 100.0
        return {"test_accuracy": value, "steps_to_target": steps, "reached": float(reached), "diverged": diverged}

    for row in runs("training", ends, activation=names, init=inits, depth=depths, model=("mlp",)):
        yield row
        if row.metric == "validation_accuracy":
            name, seed = row.case.text("activation"), row.case.integer("seed")
            yield from (row.case.rows("dead", dead(name, at) * (1 + 0.01 * seed), step=at) for at in (0, 50, 100))


@pytest.mark.parametrize(
    ("tanh", "gelu", "status"),
    [(0.897, 0.7, Status.DEPENDS), (0.899, 0.898, Status.HOLDS), (0.7, 0.7, Status.FAILS)],
)
def test_the_best_the_same_and_the_worse_are_told_apart(tidy: Tidy, tanh: float, gelu: float, status: Status) -> None:
    ends = {"relu": 0.9, "tanh": tanh, "gelu": gelu}
    rows = training_rows(lambda name, _, seed: ends[name] + 1e-4 * (seed * (3 + len(name)) % 8))
    answers = Answers("training", tidy(rows))
    table = answers.tables["answers"].set_index(["depth", "activation"])
    assert table["value"].tolist() == pytest.approx(2 * [0.9 - tanh, 0.9 - gelu], abs=1e-3)
    assert set(table["n"]) == {SEEDS}
    assert answers.verdicts["activation/same"].status is status
    assert set(table["picked"]) == {"relu"}
    behind = sum(end < 0.88 for end in (tanh, gelu))
    assert any(
        f"Of 2 other activations {behind} at depth 3, {behind} at depth 10 end more" in s for s in answers.sentences
    )
    assert answers.sentences[0].startswith("At depth 10 a relu network ends at 90% test accuracy, one with") == (
        behind > 0
    )


def test_a_better_rate_outside_the_grid_leaves_all_open_and_asks_for_one_more(tidy: Tidy) -> None:
    """The largest rate wins clearly: nothing is concluded of it, and the second stage goes on beyond it."""
    every = tidy(training_rows(lambda name, *_: 0.9 if name == "relu" else 0.6, names=("relu", "tanh"), depths=(3,)))
    rows = every[every["lr"] != LRS[2]]
    assert Answers("training", every).verdicts["activation/same"].status is Status.FAILS
    assert Answers("training", rows).verdicts["activation/same"].status is Status.INCONCLUSIVE
    assert PARTS["training"].after("tiny", every) == ()
    further = PARTS["training"].after("tiny", rows)
    assert [(grid.varied, grid.fixed["activation"], grid.seeds, grid.selection) for grid in further] == [
        ({"lr": (0.3,)}, name, SEEDS, 3) for name in ("relu", "tanh")
    ]
    assert further[0].claims == ("N09", "activation/same", "activation/dying")


def test_the_best_is_picked_by_runs_that_are_not_reported(tidy: Tidy) -> None:
    """GELU is best in the runs that choose, ReLU in those that are reported."""
    rows = training_rows(lambda name, _, seed: 0.9 if name == ("gelu" if seed < 0 else "relu") else 0.8)
    table = Answers("training", tidy(rows)).tables["answers"]
    assert set(table["picked"]) == {"gelu"}
    assert table.set_index("activation").loc["relu", "value"].tolist() == pytest.approx([-0.1, -0.1])


@pytest.mark.parametrize(
    ("deep", "status"),
    [({}, Status.HOLDS), (dict.fromkeys(("relu", "tanh"), 0.2), Status.FAILS), ({"tanh": 0.2}, Status.DEPENDS)],
)
def test_n09_asks_whether_the_deepest_networks_train(tidy: Tidy, deep: Mapping[str, float], status: Status) -> None:
    def accuracy(name: str, depth: int, seed: int) -> float:
        return (deep.get(name, 0.9) if depth == 10 else 0.9) + 1e-4 * seed

    answers = Answers("training", tidy(training_rows(accuracy)))
    assert answers.verdicts["N09"].status is status
    assert f"relu in {0 if 'relu' in deep else 8} of 8" in answers.verdicts["N09"].why
    diverged = Answers("training", tidy(training_rows(accuracy, diverged=1.0)))
    assert diverged.verdicts["N09"].status is Status.FAILS


@pytest.mark.parametrize(
    ("dead", "status"), [(lambda name, step: 0.2 * (name == "relu") * step / 100, Status.HOLDS),
        (lambda *_: 0.05, Status.FAILS), (lambda name, step: 0.2 * (name == "relu") * (1 - step / 100), Status.FAILS)],
)  # fmt: skip
def test_units_die_if_more_are_dead_at_the_end(tidy: Tidy, dead: Callable[[str, int], float], status: Status) -> None:
    answers = Answers("training", tidy(training_rows(lambda *_: 0.9, dead=dead)))
    assert answers.verdicts["activation/dying"].status is status


def test_a_model_with_a_depth_of_its_own_is_analysed(tidy: Tidy) -> None:
    """As `--model` leaves it: the grids of all depths are one, and None is handed to the factory."""
    rows = tidy(training_rows(lambda name, *_: 0.7 if name == "gelu" else 0.9, depths=(None,)))
    answers = Answers("training", rows)
    assert answers.tables["training"]["depth"].tolist() == [0, 0, 0]
    assert answers.verdicts["N09"].status is Status.HOLDS
    assert answers.sentences[0].startswith(
        "At the model's own depth a relu network ends at 90% test accuracy, one with"
    )


def test_training_and_steps_run_on_other_models() -> None:
    """One grid of each that hands a depth of the study's becomes one without, and its first case is trained."""
    left = restriction.restrict(activation.STUDY, "quick", models.target("resnet18"))
    parts = [(grid.fixed["part"], grid.fixed.get("init")) for grid in left.grids]
    assert parts == [("training", "gain"), ("training", "default"), ("step", None)]
    assert {"N05", "N13", "N14", "N15", "N16", "activation/theory"} < set(left.not_applicable)
    brief = Case.of({**dict(next(iter(left.grids[0].cases())).params), "steps": 2})
    assert {"test_accuracy", "steps_to_target"} <= {row.metric for row in activation.STUDY.run([brief], HERE)}


# -- depth against width, without activation, XOR ----------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 5, 16])
def test_widths_are_those_that_come_closest_to_the_size(depth: int) -> None:
    def size(width: int) -> int:
        model = models.build("mlp", depth=depth, width=width, input_shape=(784,), classes=10, device="meta")
        return sum(parameter.numel() for parameter in model.parameters())

    width = shape.width_for(100_000, depth, 784, 10)
    off = [abs(size(width + change) - 100_000) for change in (-1, 0, 1)]
    assert min(off) == off[1]


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
    def ends(depth: int, seed: int, **_: object) -> Mapping[str, float]:
        value, arrived = accuracy[depth] + 1e-4 * ((seed * 3) % 8), steps[depth] + seed % 3
        reached = float(arrived < 100)
        return {"test_accuracy": value, "steps_to_target": min(arrived, 100.0), "reached": reached, "size": 1000.0}

    rows = tidy(runs("shape", ends, activation=("relu",), depth=tuple(accuracy)))
    assert Answers("shape", rows).verdicts["N15"].status is status


@pytest.mark.parametrize(("gain", "status"), [(0.0, Status.HOLDS), (0.1, Status.FAILS), (-0.1, Status.FAILS)])
def test_n13_can_fail_by_accuracy(tidy: Tidy, gain: float, status: Status) -> None:
    def ends(activation: str, depth: int, seed: int, **_: object) -> Mapping[str, float]:
        value = 0.8 + gain * (activation == "identity" and depth > 0) + 1e-4 * ((seed * (3 + depth)) % 8)
        return {"test_accuracy": value, "rank": 61.0, "input_rank": 61.0, "residual": 1e-14}

    rows = tidy(runs("linear", ends, activation=("identity", "relu"), depth=(0, 3)))
    assert Answers("linear", rows).verdicts["N13"].status is status


def xor_rows(rate: Callable[[str, int], float]) -> Iterator[Rows]:
    combinations = [("identity", 0), *itertools.product(("identity", "relu", "tanh"), (2, 8))]
    for (name, width), lr, seed in itertools.product(combinations, LRS, range(-5, 20)):
        case = Case.of({"part": "xor", "activation": name, "width": width, "lr": lr, "seed": seed})
        solved = name != "identity" and lr == LRS[1] and seed < 20 * rate(name, width)
        yield case.rows("accuracy", 1.0 if solved else 0.75)


@pytest.mark.parametrize(
    ("rate", "status"), [(lambda *_: 1.0, Status.HOLDS), (lambda *_: 0.1, Status.FAILS),
        (lambda _, width: 0.1 if width == 2 else 1.0, Status.DEPENDS), (lambda *_: 0.6, Status.INCONCLUSIVE)],
)  # fmt: skip
def test_n16_is_what_a_hidden_layer_learns(tidy: Tidy, rate: Callable[[str, int], float], status: Status) -> None:
    verdict = Answers("xor", tidy(xor_rows(rate))).verdicts["N16"]
    assert verdict.status is status
    assert "linear models had at most 3 right" in verdict.why


@pytest.mark.parametrize(
    ("narrow", "wide", "told"),
    [
        (0.5, 1.0, "2 relu units learn XOR in 10 of 20 runs, 8 in 20 of 20;"),
        (1.0, 0.5, "8 relu units learn XOR in 10 of 20 runs;"),
    ],
)
def test_a_layer_is_set_beside_a_wider_one(tidy: Tidy, narrow: float, wide: float, told: str) -> None:
    (line,) = Answers("xor", tidy(xor_rows(lambda _, width: narrow if width == 2 else wide))).sentences
    assert line == f"{told} a perceptron cannot."


def test_no_line_gets_four_corners_and_a_hidden_layer_does() -> None:
    fixed = {"part": "xor", "steps": 300, "momentum": 0.9, "lr": 0.3}
    best = {}
    for width in (0, 8):
        cases = list(Grid({"activation": ("tanh",), "width": (width,)}, fixed=fixed, seeds=6).cases())
        best[width] = max(float(row.value) for row in PARTS["xor"].run(cases, HERE))
    assert best[0] <= 0.75
    assert best[8] == 1.0


# -- kinks -------------------------------------------------------------------------------------------------------------


def kink_case(**more: object) -> Case:
    common = {"part": "kinks", "activation": "hardtanh", "format": "bfloat16", "layer_kind": "dense"}
    return Case.of({**common, "width": 64, "examples": 200, "seed": 0, **more})


def test_landing_on_a_kink_has_the_chance_that_rounding_gives_it() -> None:
    """12,800 outputs a network, about 0.3 % on +-1 in bfloat16; 20 networks: within 4 standard errors of the mean."""
    draws = [values(PARTS["kinks"].run([kink_case(seed=seed)], HERE)) for seed in range(20)]
    landed, expected = (np.array([draw[name].sum() for draw in draws]) for name in ("landed", "expected"))
    assert 1e-3 < expected.mean() < 1e-2
    difference = landed - expected
    assert abs(difference.mean()) < 4 * difference.std(ddof=1) / math.sqrt(20)


def test_a_background_of_zero_is_landed_on_for_certain() -> None:
    """Where a 3 x 3 patch is empty its output is 0 in every format: counted from the images alone."""
    images = data.load("mnist5k").train.x[:50]
    empty = float((nn.functional.max_pool2d(images - images.min(), 3, stride=1) == 0).double().mean())
    measured = values(PARTS["kinks"].run([kink_case(activation="relu", layer_kind="blank", examples=50)], HERE))
    assert measured["landed"][0] == pytest.approx(empty, abs=1e-4)
    assert measured["expected"][0] == pytest.approx(empty, abs=1e-6)


@pytest.mark.parametrize(
    ("share", "status"), [(lambda _: 0.0, Status.HOLDS), (lambda _: 0.1, Status.FAILS),
        (lambda fmt: 0.1 * (fmt == "bfloat16"), Status.DEPENDS)],
)  # fmt: skip
def test_n14_is_a_share_of_at_most_one_in_a_thousand(tidy: Tidy, share: Callable[[str], float], status: Status) -> None:
    """Of two activations with the same kinks, which are one condition."""
    rows = []
    for name, fmt, seed in itertools.product(("hardshrink", "softshrink"), ("float32", "bfloat16"), range(6)):
        case = kink_case(activation=name, format=fmt, seed=seed)
        landed = [share(fmt) * (1 + 0.01 * seed), 0.0]
        rows += [case.rows(metric, landed, layer=["-0.5", "0.5"]) for metric in ("landed", "expected")]
        rows.append(case.rows("outputs", 1e5))
    answers = Answers("kinks", tidy(rows))
    assert answers.verdicts["N14"].status is status
    assert answers.tables["kinks"]["activation"].tolist() == ["hardshrink, softshrink"] * 2


# -- cost --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "jitter", "status"), [  # at the last the machine resolves nothing
        (lambda *_: 1.3, 1e-3, Status.HOLDS), (lambda *_: 1.0, 1e-3, Status.FAILS),
        (lambda model, _: 1.3 if model == "mlp" else 1.0, 1e-3, Status.DEPENDS),
        (lambda *_: 1.3, 1.0, Status.INCONCLUSIVE)],
)  # fmt: skip
def test_n12_is_what_a_step_takes_longer(
    tidy: Tidy, ratio: Callable[[str, str], float], jitter: float, status: Status
) -> None:
    """Steps of 1 ms with ReLU, `ratio` times that with the others; pairs differ by `jitter`."""
    rows, noises = [], np.random.default_rng(0)
    for model, name in itertools.product(("mlp", "plain_cnn"), ("relu", "tanh", "gelu")):
        case = Case.of({"part": "step", "model": model, "activation": name, "batch": 16, "blocks": 15})
        noise = np.exp(jitter * noises.standard_normal((15, 2, 2)))
        noise[:, 0] *= 1.0 if name == "relu" else ratio(model, name)
        rows += timing.rows_of(case, 1e-3 * noise, "step")
    assert Answers("step", tidy(rows)).verdicts["N12"].status is status


def test_an_exponential_is_one_in_the_formula() -> None:
    assert set(activations.names()) >= step.EXPONENTIAL
    assert not step.EXPONENTIAL & {"relu", "identity", "hardtanh", "softsign", "leaky_relu"}
