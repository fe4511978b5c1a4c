"""Batch normalization over ranks: the numbers of one device, whatever each rank has of the batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from depthgauge import parallel
from depthgauge.parallel import Group, ParallelError, SyncBatchNorm
from depthgauge.parallel.norm import _Normalized

SPLITS = {"even": (4, 4), "uneven": (5, 3), "one a rank": (1, 1), "an empty rank": (6, 0)}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, momentum=None)]
    made = nn.Sequential(*layers, nn.Flatten(), nn.Linear(20, 6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 2))
    nn.init.normal_(made[1].weight)
    nn.init.normal_(made[4].bias)
    return made.double()


def images(count: int) -> torch.Tensor:
    made = torch.randn(count, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return made + 100  # a mean that a sum of squares would not survive in float32


def passed(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs, gradients of their squares' sum, and buffers."""
    x = x.clone().requires_grad_()
    out = model(x)
    (out**2).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"out": out.detach(), "x": x.grad, **found, **{name: b.clone() for name, b in model.named_buffers()}}


def on_ranks(group: Group) -> dict[str, Any]:
    """Every check of one launch, by name."""
    answers: dict[str, Any] = {}
    for name, sizes in SPLITS.items():
        own = images(sum(sizes)).split(sizes)[group.rank]
        answers[name] = passed(SyncBatchNorm.convert(network()), own)
    model = SyncBatchNorm.convert(network())
    own = images(8)[group.rank * 4 :][:4]
    passed(model, own)
    answers["eval"] = model.eval()(own).detach()
    ddp = nn.parallel.DistributedDataParallel(SyncBatchNorm.convert(network()))
    (ddp(own) ** 2).sum().backward()
    answers["ddp"] = [parameter.grad for parameter in ddp.module.parameters()]
    half = SyncBatchNorm(4).to(torch.bfloat16)
    answers["half"] = half(images(8)[group.rank * 4 :][:4, :1].expand(-1, 4, -1, -1).bfloat16() - 100)
    answers["single"] = said(lambda: SyncBatchNorm(2)(torch.ones(1 - group.rank, 2)))
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(group.rank)).requires_grad_()
    answers["x"] = x.detach()
    answers["slope"] = torch.autograd.grad((_Normalized.apply(x, 1e-5, None)[0] ** 3).sum(), x)[0]
    answers["torch ddp"] = said(lambda: nn.parallel.DistributedDataParallel(nn.Sequential(nn.SyncBatchNorm(2))))
    answers["torch"] = said(lambda: nn.SyncBatchNorm(2)(torch.ones(4, 2)))
    return answers


def said(work: Any) -> str:
    try:
        work()
    except ValueError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def answers() -> tuple[dict[str, Any], ...]:
    outcome = parallel.launch(f"{__file__}:on_ranks", limit=40)
    assert outcome.well, outcome.why
    return outcome.answers


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_two_ranks_compute_what_one_device_does(answers: tuple[dict[str, Any], ...], split: str) -> None:
    """Outputs, gradients of inputs (by rank) and weights (their sum), and running statistics, in double precision."""
    one = passed(network(), images(sum(SPLITS[split])))
    first, second = (answer[split] for answer in answers)
    assert set(first) == set(one)
    parameters = {name for name, _ in network().named_parameters()}
    for name, whole in one.items():
        if name in {"out", "x"}:
            torch.testing.assert_close(torch.cat([first[name], second[name]]), whole, rtol=1e-9, atol=1e-9)
        elif name in parameters:
            torch.testing.assert_close(first[name] + second[name], whole, rtol=1e-9, atol=1e-9)
        else:
            torch.testing.assert_close(first[name], whole, rtol=1e-12, atol=1e-12)
            assert torch.equal(first[name], second[name])


@pytest.mark.slow
def test_ddp_averages_what_the_ranks_have(answers: tuple[dict[str, Any], ...]) -> None:
    one = network()
    (one(images(8)) ** 2).sum().backward()
    for answer in answers:
        for ours, parameter in zip(answer["ddp"], one.parameters(), strict=True):
            torch.testing.assert_close(2 * ours, parameter.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_in_eval_running_statistics_are_used(answers: tuple[dict[str, Any], ...]) -> None:
    one = network()
    one(images(8))
    whole = one.eval()(images(8)).detach()
    torch.testing.assert_close(torch.cat([answer["eval"] for answer in answers]), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_bfloat16_is_normalized_in_float32(answers: tuple[dict[str, Any], ...]) -> None:
    x = images(8)[:, :1].expand(-1, 4, -1, -1).bfloat16() - 100
    whole = nn.BatchNorm2d(4)(x.float())
    ours = torch.cat([answer["half"] for answer in answers])
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), whole, rtol=2**-8, atol=2**-8)


@pytest.mark.slow
def test_one_value_a_channel_in_all_ranks_is_an_error_in_all(answers: tuple[dict[str, Any], ...]) -> None:
    assert all("all ranks have 1" in answer["single"] for answer in answers)


@pytest.mark.slow
def test_the_slope_is_that_of_finite_differences(answers: tuple[dict[str, Any], ...]) -> None:
    """Of the sum over both ranks of what each does with its normalized values."""
    whole = torch.cat([answer["x"] for answer in answers])

    def total(x: torch.Tensor) -> float:
        z = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
        return float((z**3).sum())

    step = 1e-6
    for place in range(whole.numel()):
        up, down = whole.clone().flatten(), whole.clone().flatten()
        up[place] += step
        down[place] -= step
        slope = (total(up.view_as(whole)) - total(down.view_as(whole))) / (2 * step)
        ours = torch.cat([answer["slope"] for answer in answers]).flatten()[place]
        assert abs(slope - float(ours)) < 1e-6


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch's own takes CUDA")
def test_torchs_own_takes_no_cpu(answers: tuple[dict[str, Any], ...]) -> None:
    """The reason for this one; where torch learns it, the page and the report are to be changed."""
    assert all("only work with GPU" in answer["torch ddp"] for answer in answers)
    assert all("to be on GPU" in answer["torch"] for answer in answers)


# -- without ranks -----------------------------------------------------------------------------------------------------


def test_alone_it_is_plain_batch_normalization() -> None:
    ours, plain = SyncBatchNorm(3), nn.BatchNorm1d(3)
    x = torch.randn(5, 3)
    assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.running_var, plain.running_var)
    assert torch.equal(ours.eval()(x), plain.eval()(x))


def test_conversion_keeps_parameters_and_places() -> None:
    shared = nn.BatchNorm1d(3)
    shared.weight.requires_grad_(False)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.SyncBatchNorm(3)), "c": nn.LayerNorm(3)}).eval()
    before, state = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    converted = SyncBatchNorm.convert(model)
    assert converted is model
    assert model["a"] is model["b"][0]
    assert {type(layer) for layer in (model["a"], model["b"][1])} == {SyncBatchNorm}
    assert type(model["c"]) is nn.LayerNorm
    assert not model["a"].training
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert list(state) == list(model.state_dict())
    once = model["a"]
    assert SyncBatchNorm.convert(model)["a"] is once
    assert type(SyncBatchNorm.convert(shared)) is SyncBatchNorm


class Rectified(nn.BatchNorm1d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input).relu()


@pytest.mark.parametrize(
    ("layer", "why"), [(Rectified(3), "1 is a Rectified"), (nn.LazyBatchNorm1d(), "run one batch through it first")]
)
def test_what_cannot_be_replaced_is_named(layer: nn.Module, why: str) -> None:
    with pytest.raises(ParallelError, match=why):
        SyncBatchNorm.convert(nn.Sequential(nn.Linear(3, 3), layer))


def test_one_input_dimension_is_too_few() -> None:
    with pytest.raises(ValueError, match=r"\(N, 3, ...\) was expected"):
        SyncBatchNorm(3)(torch.ones(3))
