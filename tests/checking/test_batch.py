"""Is the batch size right: noise scales, repeated and sorted batches, batch normalization over a few examples."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from depthgauge.checking import Answer, check
from depthgauge.checking.questions import batch as question
from depthgauge.checking.questions.batch import loader, norms
from depthgauge.workload import Training


def examples(count: int = 640, *, order: str = "shuffled") -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    classes = torch.randint(5, (count,), generator=draws)
    if order == "sorted":
        classes = classes.sort().values
    centres = 2 * torch.randn(5, 8, generator=draws)
    return centres[classes] + torch.randn(count, 8, generator=draws), classes


def cut(size: int, count: int = 640, **options: Any) -> list[tuple[Tensor, Tensor]]:
    x, y = examples(count, **options)
    return list(zip(x.split(size), y.split(size), strict=True))


def net(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU(), nn.Linear(16, 5)
    )  # fmt: skip


def asked(model: nn.Module, batches: Iterable[Any], **options: Any) -> Answer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return check(model, batches, optimizer=optimizer, only=["batch"], **options).answers["batch"]


def kinds_of(answer: Answer) -> list[str]:
    return [finding.kind for finding in answer.findings]


def test_the_noise_scale_of_a_regression_is_the_closed_form() -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(512, 4, generator=draws)
    y = x.sum(1, keepdim=True) + 0.5 * torch.randn(512, 1, generator=draws)
    model = nn.Linear(4, 1, bias=False)
    nn.init.constant_(model.weight, 1.3)
    batches = list(zip(x.split(32), y.split(32), strict=True))
    answer = check(
        model, batches, loss=lambda model, batch: functional.mse_loss(model(batch[0]), batch[1]), only=["batch"]
    ).answers["batch"]
    exact = ((4 + 1) * 0.36 + 4 * 0.25) / 0.36  # tr(Sigma) / |G|^2, docs/noise.md
    assert answer.low < exact < answer.high < 2 * exact
    assert not answer.findings
    table = answer.tables["batches"].set_index("batch")
    assert table.loc[64, "relative_steps"] == pytest.approx((1 + answer.value / 64) / (1 + answer.value / 32))
    assert f"{table.loc[64, 'relative_steps']:.2f} times the steps" in answer.says


def test_shuffled_batches_are_fine_and_sorted_ones_are_found() -> None:
    assert not kinds_of(asked(net(), cut(32)))
    answer = asked(net(), cut(32, order="sorted"))
    assert kinds_of(answer) == ["sorted", "not_measured"]
    assert answer.says == answer.findings[0].text, "the noise scale of sorted batches is none"
    assert answer.status == "broken"
    assert answer.where == ("batches",)
    assert "shuffle=True" in answer.advice


def test_sorted_batches_are_found_where_the_first_sixteen_hold_one_class() -> None:
    assert "sorted" in kinds_of(asked(net(), cut(4, order="sorted")))


def test_equal_batches_are_found_and_a_whole_graph_is_not() -> None:
    first = cut(32)[0]
    answer = asked(net(), [tuple(each.clone() for each in first) for _ in range(6)])
    assert "same_batch" in kinds_of(answer)
    assert not list(loader.read([(torch.zeros(7, 3), torch.zeros(2, 12))] * 4, None))  # no dimension of examples
    assert not list(loader.read([first], None))  # all the data there are


def test_batch_normalization_over_two_examples_is_a_fault_and_over_four_a_property() -> None:
    answer = asked(net(norm=True), cut(2))
    assert "norm_batch" in kinds_of(answer)
    assert answer.status == "broken"
    assert answer.where == ("1",)
    assert kinds_of(asked(net(norm=True), cut(4))) == ["small_norm_batch"]
    assert not kinds_of(asked(net(norm=True), cut(32)))
    frozen = net(norm=True).eval()
    assert not [kind for kind in kinds_of(asked(frozen, cut(2))) if "norm" in kind]


def test_a_last_batch_of_one_example_is_found_with_batch_normalization() -> None:
    data = TensorDataset(*examples(97))
    assert "last_batch" in kinds_of(asked(net(norm=True), DataLoader(data, batch_size=16)))
    assert "last_batch" not in kinds_of(asked(net(norm=True), DataLoader(data, batch_size=16, drop_last=True)))
    assert "last_batch" not in kinds_of(asked(net(), DataLoader(data, batch_size=16)))


@pytest.mark.parametrize(("places", "where"), [(4, ()), (1, ("1",))])
def test_one_image_has_a_variance_where_it_has_places(places: int, where: tuple[str, ...]) -> None:
    images = torch.randn(33, 2, 3 * places, 3 * places)
    drawn = DataLoader(TensorDataset(images, torch.randint(2, (33,))), batch_size=16)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    found = list(norms.read(Training(model, drawn), next(iter(drawn)), drawn))
    assert [each.where for each in found] == [("batches", *where)] * bool(where)
    if not where:
        model(images[32:])  # which it does not refuse


def test_a_batch_far_above_the_noise_scale_is_an_opportunity() -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2048, 3, generator=draws)
    model = nn.Linear(3, 1)
    batches = list(zip(x.split(512), (x @ torch.ones(3, 1) + 9).split(512), strict=True))
    answer = check(
        model, batches, loss=lambda model, batch: functional.mse_loss(model(batch[0]), batch[1]), only=["batch"]
    ).answers["batch"]
    assert kinds_of(answer) == ["large_batch"]
    assert answer.status == "fine", "the noise scale grows as a training goes on"
    assert answer.high < 51


def test_a_data_set_within_one_batch_is_told() -> None:
    answer = asked(net(), DataLoader(TensorDataset(*examples(40)), batch_size=64))
    assert "small_set" in kinds_of(answer)


def test_what_has_no_noise_scale_is_undecided_and_says_why() -> None:
    model = net()
    stream = itertools.repeat((torch.zeros(3, 8), torch.tensor(0.0)))
    answer = check(model, stream, loss=lambda model, batch: model(batch[0]).square().sum(), only=["batch"]).answers[
        "batch"
    ]
    assert answer.status == "undecided"
    assert "no dimension of examples" in answer.says
    answer = asked(net(), cut(2, 8))
    assert answer.status == "undecided"
    assert "16 examples" in answer.says


def test_the_training_is_left_as_it_was() -> None:
    model = net(norm=True).train()
    optimizer = torch.optim.Adam(model.parameters())
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    check(model, cut(16), optimizer=optimizer, only=["batch"])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not optimizer.state
    assert torch.equal(random, torch.get_rng_state())
    assert not any(each._forward_pre_hooks for each in model.modules())


def test_the_figure_marks_the_present_batch() -> None:
    answer = asked(net(), cut(32))
    canvas = question.QUESTION.draw(answer)
    assert canvas is not None
    marks = {line.get_label(): line.get_xdata() for line in canvas.axes[0].lines}
    assert list(marks["present batch"]) == [32, 32]  # type: ignore[call-overload] # numbers
    assert math.isclose(float(marks["noise scale"][0]), answer.value)  # type: ignore[index] # as above
