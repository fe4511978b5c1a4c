"""What passes through real architectures: what is fed, and every verdict both ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthgauge.reports import style
from depthgauge.studies.gradient_flow import architecture_figures, architectures
from depthgauge.study import Case, Context, Rows, StudyError
from depthgauge.verdict import Status

Analysed = Callable[..., Any]  # (part, rows) -> Answers
PART, HERE = architectures.PART, Context("cpu")


def case_of(model: str, seed: int = 0, batch: int = 16, **varied: object) -> Case:
    return Case.of({"part": "architectures", "model": model, "batch": batch, "seed": seed, **varied})  # type: ignore[dict-item]


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


def Embeds():
    return nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(4, 3))
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_module_that_says_what_it_takes_gets_that(mine: None) -> None:
    rows = list(PART.run([case_of("architectures_of_mine:Tokens")], HERE))
    (elements,) = (row for row in rows if row.metric == "elements")
    assert elements.layer == ["body.0", "body.1", "body.2"]
    assert np.asarray(elements.value).tolist() == [12, 12, 9]


def test_the_caption_says_what_was_fed_and_the_axis_names_the_layers(mine: None, analysed: Analysed) -> None:
    def captioned(rows: Iterable[Rows]) -> tuple[str, list[str]]:
        """The figure's caption, and the words below its last panel."""
        with style.drawing():
            [figure] = architecture_figures.layers(analysed(PART, rows).tables)
            axis = figure.canvas.axes[-1]  # type: ignore[attr-defined]  # a canvas is any object
            return figure.caption, [label.get_text() for label in axis.get_xticklabels()]

    caption, words = captioned(PART.run([case_of("architectures_of_mine:Tokens", s) for s in range(2)], HERE))
    assert words == ["body.0", "body.1", "body.2"]
    assert "as its factory makes it, fed example_input_array (int64 2 x 3); weight layers" in caption
    assert "digits" not in caption
    ours, words = captioned([*network("rnn", 0.1), *network("vgg11", 0.1, norm="none")])
    assert "at its small preset, fed real digits (1 x 28 x 28); weight layers" in ours
    assert words == ["in", "", "out"]
    assert "(rnn and lstm: the layer of the input, then that of the state step by step)" in ours


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("small", r" does not take float32 16 x 1 x 28 x 28 \(RuntimeError: .*\); give its factory a parameter"),
        ("Numbers", r".*it returns a tuple without any floating-point tensor"),
        (
            "Weightless",
            r", fed float32 16 x 1 x 28 x 28: the loss depends on no parameter that trains, .* has no gradient$",
        ),
    ],
)
def test_a_module_that_cannot_be_asked_says_why(mine: None, factory: str, told: str) -> None:
    with pytest.raises(StudyError, match=f"architectures_of_mine:{factory}{told}"):
        list(PART.run([case_of(f"architectures_of_mine:{factory}")], HERE))


def test_a_module_that_wants_tokens_is_told_of_the_option(mine: None) -> None:
    with pytest.raises(StudyError, match="or the command --tokens, for it wants token ids"):
        list(PART.run([case_of("architectures_of_mine:Embeds")], HERE))


# -- verdicts on networks whose gradients are given --------------------------------------------------------------------


def network(
    model: str, rate: float, *, seeds: int = 8, layers: int = 10, noise: float = 0.05, bump: float = 0.0,
    **varied: object,
) -> Iterator[Rows]:  # fmt: skip
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
def test_the_gradient_reaches_every_layer_or_not(
    analysed: Analysed, rates: tuple[float, float], status: Status
) -> None:
    rows = [*network("rnn", rates[0]), *network("lstm", rates[1])]
    found = analysed(PART, rows).verdicts["architectures"]
    assert found.status is status
    assert (found.n, found.counted) == (8, "seeds")  # 2 architectures are too few to count
    assert ("in brackets" in found.why) == any(abs(rate) > 1 for rate in rates)


def test_architectures_are_counted_where_they_are_enough(analysed: Analysed) -> None:
    models = ("rnn", "lstm", "vgg11", "lenet5", "nin", "alexnet")
    found = analysed(PART, [row for model in models for row in network(model, 0.1, layers=4)]).verdicts["architectures"]
    assert (found.status, found.n, found.observed, found.counted) == (Status.HOLDS, 6, 1.0, "architectures")
    own = analysed(PART, list(network("a.b:c", 0.1, layers=4, norm=None, residual=None)))
    assert (own.verdicts["architectures"].status, own.verdicts["architectures"].n) == (Status.HOLDS, 8)
    assert own.tables["architectures"]["form"].item() == "as its factory makes it"


def test_too_few_seeds_to_tell_is_said_so(analysed: Analysed) -> None:
    (line,) = [line for line in analysed(PART, skipping(("resnet18", *NARROWER), seeds=4)).sentences if "skip" in line]
    assert line.startswith("4 seeds are too few to tell whether skip connections narrow")
    (line,) = [line for line in analysed(PART, skipping(("resnet18", *NARROWER))).sentences if "Skip" in line]
    assert line.endswith("in resnet18 (no normalization) it is 0.87 decades narrower.")


def with_gradient(rows: Iterable[Rows], place: slice, value: float, **of: object) -> list[Rows]:
    """The rows, with another gradient at these layers of the cases that have these parameters."""
    every = list(rows)
    for row in every:
        if row.direction == "backward" and all(row.case[name] == wanted for name, wanted in of.items()):
            row.value[place] = value  # type: ignore[index]  # an array, as given above
    return every


@pytest.mark.parametrize(("value", "word"), [(0.0, "0"), (math.inf, "inf"), (math.nan, "nan")])
def test_a_layer_without_a_finite_gradient_is_not_reached(analysed: Analysed, value: float, word: str) -> None:
    found = analysed(PART, with_gradient(network("rnn", 0.1), slice(3, 4), value)).verdicts["architectures"]
    assert found.status is Status.FAILS
    assert f"rnn ({word} at layer4)" in found.why


def test_a_norm_is_told_of_the_layer_that_has_it(analysed: Analysed) -> None:
    """Of nine seeds four are furthest at the first layer, at 1e-6; each other one at another layer, without any."""
    rows = list(network("rnn", 0.0))
    for row in rows:
        if row.direction == "backward":
            seed = row.case.integer("seed")
            row.value[seed + 2 if seed < 5 else 0] = 0.0 if seed < 5 else 1e-12  # type: ignore[index]  # an array
    found = analysed(PART, rows)
    (row,) = found.tables["architectures"].itertuples()
    assert row.furthest == -math.inf
    assert row.where in [f"layer{place}" for place in range(3, 8)]
    assert f"rnn (0 at {row.where})" in found.verdicts["architectures"].why
    assert row.without_gradient == 5


def test_what_batch_normalization_turns_is_counted_among_the_decided(analysed: Analysed) -> None:
    rows = [*network("vgg11", 0.4, norm="batch", seeds=4), *network("vgg11", -1.8, norm="none", seeds=4)]
    assert any(
        line.endswith("in 0 of 1 architectures without skip connections; 1 of 1 is undecided.")
        for line in analysed(PART, rows).sentences
    )


def skipping(*bumps: tuple[str, float, float], seeds: int = 8) -> list[Rows]:
    """Models whose range is given without skip connections, and with them."""
    return [
        row
        for model, *both in bumps
        for bump, residual in zip(both, (False, True), strict=True)
        for row in network(model, 0.0, bump=bump, residual=residual, norm="none", seeds=seeds)
    ]


NARROWER, WIDER = (6.0, 2.0), (2.0, 6.0)


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        (lambda: skipping(("resnet18", *NARROWER), ("resnet34", *NARROWER)), Status.HOLDS),
        (lambda: skipping(("resnet18", *WIDER)), Status.FAILS),
        (lambda: skipping(("resnet18", *WIDER), ("resnet34", *NARROWER)), Status.DEPENDS),
        (lambda: skipping(("resnet18", *NARROWER), seeds=4), Status.INCONCLUSIVE),
    ],
)
def test_skip_connections_may_narrow_the_range_or_not(
    analysed: Analysed, rows: Callable[[], list[Rows]], status: Status
) -> None:
    found = analysed(PART, rows()).verdicts["skips"]
    assert found.status is status
    if status is Status.HOLDS:
        assert found.observed == pytest.approx(-4.0 / math.log(10) / 2, abs=0.1)  # decades of the norm
        assert found.low < found.observed < found.high < 0


def test_a_layer_that_no_gradient_reaches_is_answered_by_the_same_test(analysed: Analysed) -> None:
    """Its range is infinite."""
    rows = skipping(("resnet18", *NARROWER), ("resnet34", *NARROWER))
    found = analysed(PART, with_gradient(rows, slice(3, 4), 0.0, model="resnet34", residual=False))
    assert found.verdicts["skips"].status is Status.HOLDS
    assert found.verdicts["skips"].condition == "resnet18 (no normalization)"  # the finite one
    table = found.tables["skips"].set_index("model")
    assert table.loc["resnet34", "value"] == -math.inf
    assert set(table["answer"]) == {"different"}


def test_layers_that_only_one_of_the_two_has_do_not_count(analysed: Analysed) -> None:
    """A projection on the shortcut: it is there with skip connections alone."""
    plain = network("resnet18", 0.0, layers=10, residual=False, norm="none")
    more = network("resnet18", 0.0, layers=13, residual=True, norm="none")
    rows = with_gradient([*plain, *more], slice(10, None), 1e12, residual=True)
    assert analysed(PART, rows).verdicts["skips"].observed == pytest.approx(0.0, abs=0.1)


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
    analysed: Analysed, normalized: float, plain: float, status: Status
) -> None:
    rows = [*network("vgg11", normalized, norm="batch"), *network("vgg11", plain, norm="none")]
    found = analysed(PART, rows).verdicts["batch_norm"]
    assert found.status is status
    assert found.observed == pytest.approx(normalized, abs=0.02)
    assert f"{math.log(math.pi / (math.pi - 1)):.3f} (Yang et al. 2019" in found.method


def test_a_network_with_skip_connections_says_nothing_of_batch_normalization_alone(analysed: Analysed) -> None:
    rows = [row for norm in ("batch", "none") for row in network("mlp", 0.1, norm=norm, residual=True)]
    assert not analysed(PART, rows).verdicts


def test_a_users_network_in_all_four_forms_is_not_shown_in_two_of_them_again(analysed: Analysed) -> None:
    forms = [{"norm": norm, "residual": skips} for norm in ("none", "batch") for skips in (False, True)]
    forms += [{"norm": "batch", "residual": None}, {"norm": None, "residual": None}]
    rows = [row for form in forms for row in network("a.b:c", 0.2, **form)]
    assert len(analysed(PART, rows).tables["architectures"]) == 5


def test_one_layer_has_no_rate(analysed: Analysed) -> None:
    answer = analysed(PART, network("perceptron", 0.0, layers=1))
    assert answer.tables["architectures"]["backward"].isna().all()
    assert not answer.verdicts
    assert not answer.sentences
