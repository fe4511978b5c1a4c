"""Whether a backward pass costs what a forward pass costs (N30).

    pytest --benchmark benchmarks/test_first_layer.py

Backward, a linear or convolutional layer makes two products of forward's size: one for the weights' gradient, one for
the input's. The first layer's input wants no gradient, which saves one. So the operations of backward over those of
forward are 2 less the first layer's share of forward: 1 for a single layer, near 2 for a deep network whose first layer
is small. The time follows, more or less. Both passes are timed in turns; `extra_info` has the ratios with their
intervals.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from depthgauge import stats, timing
from depthgauge.operations import counting
from depthgauge.seeding import Purpose, generator

WIDTH, BATCH, BLOCKS = 512, 64, 24


def network(depth: int, inputs: int) -> nn.Module:
    """Linear layers and ReLU, the first of so many inputs."""
    widths = [inputs, *[WIDTH] * depth]
    layers = [part for n_in, n_out in pairwise(widths) for part in (nn.Linear(n_in, n_out, bias=False), nn.ReLU())]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("wanted", [False, True], ids=["data", "wanting_a_gradient"])
@pytest.mark.parametrize(("depth", "inputs"), [(1, 512), (2, 512), (8, 512), (8, 32), (3, 4096)])
def test_backward_against_forward(
    benchmark: BenchmarkFixture, depth: int, inputs: int, wanted: bool, device: str
) -> None:
    model = network(depth, inputs).to(device)
    x = torch.randn(BATCH, inputs, generator=generator(0, Purpose.INPUTS)).to(device).requires_grad_(wanted)
    asked = [*model.parameters(), *([x] if wanted else [])]
    out = model(x)
    ones = torch.ones_like(out)
    clock = timing.clock(device)

    def forward() -> object:
        return model(x)

    def backward() -> object:
        return torch.autograd.grad(out, asked, ones, retain_graph=True)

    with counting() as there:
        forward()
    with counting() as back:
        backward()
    first, every = inputs * WIDTH, inputs * WIDTH + (depth - 1) * WIDTH**2
    ratio = sum(each.flops for each in back) / sum(each.flops for each in there)
    assert ratio == pytest.approx(2 if wanted else 2 - first / every)

    seconds: dict[str, list[list[float]]] = {"forward": [], "backward": []}

    def block() -> None:
        """Forward, backward, backward, forward."""
        there, back = clock.time(forward, 4), clock.time(backward, 4)
        again, last = clock.time(backward, 4), clock.time(forward, 4)
        seconds["forward"].append([there, last])
        seconds["backward"].append([back, again])

    benchmark.group = f"backward and forward, {device}"
    benchmark.pedantic(block, rounds=BLOCKS, warmup_rounds=2)
    if benchmark.stats is None:  # with --benchmark-disable
        return
    times = stats.time_ratio(seconds["backward"][-BLOCKS:], seconds["forward"][-BLOCKS:]).effect
    benchmark.extra_info.update(
        layers=depth, inputs=inputs, input_gradient=wanted, flops_ratio=ratio,
        time_ratio=times.value, low=times.low, high=times.high, blocks=times.n,
    )  # fmt: skip
