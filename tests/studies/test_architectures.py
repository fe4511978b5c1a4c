"""What passes through real architectures: the figures themselves, and every verdict both ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from depthgauge import data, models, probe
from depthgauge.reports import style
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.gradient_flow import architectures, weight_layers
from depthgauge.study import Case, Context, Rows, StudyError
from depthgauge.verdict import Status, Verdict

Tidy = Callable[..., pd.DataFrame]
HERE = Context("cpu")


def case_of(model: str, seed: int = 0, batch: int = 16, **varied: object) -> Case:
    return Case.of({"part": "architectures", "model": model, "batch": batch, "seed": seed, **varied})  # type: ignore[dict-item]


@dataclass(frozen=True)
class Answers:
    """What the analysis yielded, by kind; claims without the study's name."""

    verdicts: dict[str, Verdict]
    tables: dict[str, pd.DataFrame]
    sentences: list[str]


def analysed(frame: pd.DataFrame) -> Answers:
    answers = list(architectures.analyse(frame))
    verdicts = [answer for answer in answers if isinstance(answer, Verdict)]
    return Answers(
        {verdict.id.removeprefix("gradient_flow/"): verdict for verdict in verdicts},
        dict(answer for answer in answers if isinstance(answer, tuple)),
        [answer for answer in answers if isinstance(answer, str)],
    )


def verdict(answers: Answers, claim: str) -> Verdict:
    return answers.verdicts[claim]


# -- what is measured --------------------------------------------------------------------------------------------------


def test_moments_are_those_that_autograd_gives() -> None:
    case = case_of("mlp", norm="batch", residual=True)
    moments = {row.direction: row for row in architectures.run([case], HERE) if row.direction}
    sample, cotangent = (generator(case.random_seed("seed"), p) for p in (Purpose.SAMPLE, Purpose.COTANGENT))
    digits = data.load("mnist5k").train
    x, _ = digits[torch.randperm(len(digits), generator=sample)[:16]]
    model = models.build("mlp", preset="small", norm="batch", residual=True, seed=case.random_seed("model", "seed"))
    outputs: list[torch.Tensor] = []
    for _, layer in models.layers(model):
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    output = model(x)
    gradients = torch.autograd.grad(output, outputs, torch.randn(output.shape, generator=cotangent))
    assert moments["forward"].layer == [name for name, _ in models.layers(model)]
    for direction, tensors in (("forward", outputs), ("backward", gradients)):
        expected = [float(tensor.detach().double().square().mean()) for tensor in tensors]
        np.testing.assert_allclose(moments[direction].value, expected, rtol=1e-5)


def test_a_layer_that_is_called_at_every_step_is_followed_through_them() -> None:
    rows = list(architectures.run([case_of("rnn")], HERE))
    (forward,) = (row for row in rows if row.direction == "forward")
    steps = [f"layers.0.state:{step}" for step in range(1, 28)]
    assert forward.layer == ["layers.0.input", "layers.0.state", *steps, "output"]
    assert np.asarray(forward.layer_index).tolist() == list(range(1, 31))
    (elements,) = (row for row in rows if row.metric == "elements")
    assert np.asarray(elements.value).tolist() == [28 * 64, *[64] * 28, 10]


def test_infinity_and_nan_are_not_averaged_away() -> None:
    model = nn.Linear(2, 2, bias=False)
    with probe.track(model, directions=("activation",)) as record:
        model(torch.tensor([[math.inf, 1.0], [1.0, 1.0]]))
        frame = weight_layers.calls(record.to_frame())
    assert not np.isfinite(frame["second_moment"]).any()


# -- the user's own ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "architectures_of_mine.py").write_text(
        """
import torch
from torch import nn

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 3))
        self.example_input_array = torch.arange(6).reshape(2, 3)

    def forward(self, x):
        return self.body(x)

def small():
    return nn.Linear(3, 3)

class Numbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(28, 3)

    def forward(self, x):
        return self.body(x).argmax(-1), 3


class Weightless(nn.Flatten):
    pass
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_module_that_says_what_it_takes_gets_that(mine: None) -> None:
    rows = list(architectures.run([case_of("architectures_of_mine:Tokens")], HERE))
    (elements,) = (row for row in rows if row.metric == "elements")
    assert elements.layer == ["body.0", "body.1", "body.2"]
    assert np.asarray(elements.value).tolist() == [12, 12, 9]


def captioned(rows: pd.DataFrame) -> tuple[str, list[str]]:
    """The figure's caption, and the words below its last panel."""
    with style.drawing():
        [figure] = architectures.layers(analysed(rows).tables)
        axis = figure.canvas.axes[-1]  # type: ignore[attr-defined]  # a canvas is any object
        return figure.caption, [label.get_text() for label in axis.get_xticklabels()]


def test_the_caption_says_what_was_fed_and_the_axis_names_the_layers(mine: None, tidy: Tidy) -> None:
    rows = architectures.run([case_of("architectures_of_mine:Tokens", s) for s in range(2)], HERE)
    caption, words = captioned(tidy(list(rows)))
    assert words == ["body.0", "body.1", "body.2"]
    assert "as its factory makes it, fed example_input_array (int64 2 x 3); weight layers" in caption
    assert "digits" not in caption
    assert "rnn" not in caption
    ours, words = captioned(tidy([*network("rnn", 0.1), *network("vgg11", 0.1, norm="none")]))
    assert "at its small preset, fed real digits (1 x 28 x 28); weight layers" in ours
    assert words == ["in", "", "out"]
    assert "(rnn and lstm: the layer of the input, then that of the state step by step)" in ours


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (
            "small",
            r" does not take float32 16 x 1 x 28 x 28 \(RuntimeError: .*\); give its factory a parameter",
        ),
        ("Numbers", r".*it returns a tuple without any floating-point tensor"),
        ("Weightless", r", fed float32 16 x 1 x 28 x 28: the loss depends on no parameter that trains, .* had of it$"),
    ],
)
def test_a_module_that_cannot_be_asked_says_why(mine: None, factory: str, told: str) -> None:
    with pytest.raises(StudyError, match=f"architectures_of_mine:{factory}{told}"):
        list(architectures.run([case_of(f"architectures_of_mine:{factory}")], HERE))


# -- verdicts on networks whose gradients are given --------------------------------------------------------------------


def network(
    model: str,
    rate: float,
    *,
    seeds: int = 8,
    layers: int = 10,
    noise: float = 0.05,
    bump: float = 0.0,
    **varied: object,
) -> Iterator[Rows]:
    """Squared gradients that grow by e^rate a layer toward the input; each odd layer's is e^bump times larger."""
    for seed in range(seeds):
        case = case_of(model, seed, **varied)
        places = np.arange(1, layers + 1)
        draws = np.random.default_rng([seed, layers]).normal(0.0, noise, layers)
        names = [f"layer{place}" for place in places]
        logs = rate * (layers - places) + bump * (places % 2) + draws
        for direction, values in (("forward", np.ones(layers)), ("backward", np.exp(logs))):
            yield case.rows("second_moment", values, layer=names, layer_index=places, direction=direction)
        yield case.rows("elements", np.ones(layers), layer=names, layer_index=places)
        yield case.rows("fed", 32.0, layer="real digits (1 x 28 x 28)")


@pytest.mark.parametrize(
    ("rates", "status"),
    [((0.3, -0.3), Status.HOLDS), ((-2.0, 2.5), Status.FAILS), ((0.3, -2.0), Status.DEPENDS)],
)
def test_the_gradient_reaches_every_layer_or_not(tidy: Tidy, rates: tuple[float, float], status: Status) -> None:
    rows = [*network("rnn", rates[0]), *network("lstm", rates[1])]
    found = verdict(analysed(tidy(rows)), "architectures")
    assert found.status is status
    assert found.observed == sum(abs(rate) < 1 for rate in rates) / 2
    assert (found.n, found.counted) == (2, "architectures")


@pytest.mark.parametrize(("value", "word"), [(0.0, "0"), (math.inf, "inf"), (math.nan, "nan")])
def test_a_layer_without_a_finite_gradient_is_not_reached(tidy: Tidy, value: float, word: str) -> None:
    rows = list(network("rnn", 0.1))
    for row in rows:
        if row.direction == "backward":
            row.value[3] = value  # type: ignore[index]  # an array, as given above
    found = verdict(analysed(tidy(rows)), "architectures")
    assert found.status is Status.FAILS
    assert f"rnn ({word} at layer4)" in found.why


def skipping(tidy: Tidy, *bumps: tuple[str, float, float], seeds: int = 8) -> Verdict:
    rows = [
        row
        for model, plain, skip in bumps
        for bump, residual in ((plain, False), (skip, True))
        for row in network(model, 0.0, bump=bump, residual=residual, norm="none", seeds=seeds)
    ]
    return verdict(analysed(tidy(rows)), "skips")


def test_skip_connections_may_narrow_the_range_or_not(tidy: Tidy) -> None:
    held = skipping(tidy, ("resnet18", 6.0, 2.0), ("resnet34", 6.0, 2.0))
    assert held.status is Status.HOLDS
    assert held.observed == pytest.approx(-4.0 / math.log(10) / 2, abs=0.1)  # decades of the norm
    assert held.low is not None
    assert held.high is not None
    assert held.low < held.observed < held.high < 0
    assert skipping(tidy, ("resnet18", 2.0, 6.0)).status is Status.FAILS
    assert skipping(tidy, ("resnet18", 2.0, 6.0), ("resnet34", 6.0, 2.0)).status is Status.DEPENDS
    assert skipping(tidy, ("resnet18", 6.0, 2.0), seeds=4).status is Status.INCONCLUSIVE


def test_a_layer_that_no_gradient_reaches_makes_the_range_infinite_and_is_answered_by_the_same_test(tidy: Tidy) -> None:
    rows = [
        row
        for model in ("resnet18", "resnet34")
        for bump, residual in ((6.0, False), (2.0, True))
        for row in network(model, 0.0, bump=bump, residual=residual, norm="none", seeds=8)
    ]
    for row in rows:
        if row.case["model"] == "resnet34" and not row.case["residual"] and row.direction == "backward":
            row.value[3] = 0.0  # type: ignore[index]  # an array, as given above
    answer = analysed(tidy(rows))
    held = verdict(answer, "skips")
    assert held.status is Status.HOLDS
    assert held.observed == pytest.approx(-4.0 / math.log(10) / 2, abs=0.1)  # of resnet18, the finite one
    table = answer.tables["skips"].set_index("model")
    assert table.loc["resnet34", "value"] == -math.inf
    assert set(table["answer"]) == {"different"}


def test_layers_that_only_one_of_the_two_has_do_not_count(tidy: Tidy) -> None:
    """A projection on the shortcut: it is there with skip connections alone."""
    plain = network("resnet18", 0.0, layers=10, residual=False, norm="none")
    more = network("resnet18", 0.0, layers=13, bump=0.0, residual=True, norm="none")
    rows = [*plain, *more]
    for row in rows:
        if row.case["residual"] and row.direction == "backward":
            row.value[10:] = 1e12  # type: ignore[index]  # an array, as given above
    found = verdict(analysed(tidy(rows)), "skips")
    assert found.observed == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize(
    ("normalized", "plain", "status"),
    [
        (0.38, -1.8, Status.HOLDS),
        (-0.3, -1.8, Status.FAILS),
        (0.38, 0.5, Status.FAILS),
        (0.0, -1.8, Status.INCONCLUSIVE),
    ],
)
def test_batch_normalization_may_turn_the_gradient_around_or_not(
    tidy: Tidy, normalized: float, plain: float, status: Status
) -> None:
    rows = [*network("vgg11", normalized, norm="batch"), *network("vgg11", plain, norm="none")]
    answer = analysed(tidy(rows))
    found = verdict(answer, "batch_norm")
    assert found.status is status
    assert found.observed == pytest.approx(normalized, abs=0.02)
    assert f"{math.log(math.pi / (math.pi - 1)):.3f} (Yang et al. 2019" in found.method


def test_a_network_with_skip_connections_says_nothing_of_batch_normalization_alone(tidy: Tidy) -> None:
    rows = [row for norm in ("batch", "none") for row in network("mlp", 0.1, norm=norm, residual=True)]
    assert not analysed(tidy(rows)).verdicts


# -- what a network is -------------------------------------------------------------------------------------------------


def test_what_a_case_leaves_to_a_model_of_ours_is_its_default() -> None:
    def made(*key: object) -> tuple[str, str, bool]:
        found = weight_layers.Network.of(*key)  # type: ignore[arg-type]
        return found.norm, found.skips, found.as_built

    assert made("resnet18", "batch", True) == ("batch", "with", True)
    assert made("resnet18", "batch", False) == ("batch", "without", False)
    assert made("vgg11", "none", None) == ("none", "none", True)
    assert made("transformer", None, True) == ("layer", "with", True)
    assert made("a.b:c", None, None) == ("own", "own", True)
    assert made("a.b:c", "none", None) == ("none", "own", False)


def test_a_users_network_in_all_four_forms_is_not_shown_in_two_of_them_again(tidy: Tidy) -> None:
    forms = [{"norm": norm, "residual": skips} for norm in ("none", "batch") for skips in (False, True)]
    forms += [{"norm": "batch", "residual": None}, {"norm": None, "residual": None}]
    rows = [row for form in forms for row in network("a.b:c", 0.2, **form)]
    answer = analysed(tidy(rows))
    assert len(answer.tables["architectures"]) == 5
    with style.drawing():
        for draw in (architectures.layers, architectures.growths):
            for figure in draw(answer.tables):
                assert style.png(figure.canvas)


def test_one_layer_has_no_rate(tidy: Tidy) -> None:
    answer = analysed(tidy(network("perceptron", 0.0, layers=1)))
    assert answer.tables["architectures"]["backward"].isna().all()
    assert not answer.verdicts
    assert not answer.sentences
