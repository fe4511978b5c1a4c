"""Two pieces of work in turns, on a clock of its own time; and what a module keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from depthgauge.timing import HostClock, in_turns, saved_by, saved_bytes
from depthgauge.timing.clocks import Device


def test_turns_are_a_b_b_a_and_durations_are_those_of_one_call() -> None:
    """A takes 2 ms, b takes 3 ms, and the order is written down."""
    order: list[str] = []
    time = [0.0]

    def work(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            time[0] += seconds

        return run

    clock = HostClock(Device("cpu", now=lambda: time[0]))
    seconds = in_turns(clock, work("a", 2e-3), work("b", 3e-3), 4)
    np.testing.assert_allclose(seconds[:, 0], 2e-3, rtol=1e-9)
    np.testing.assert_allclose(seconds[:, 1], 3e-3, rtol=1e-9)
    assert order[-16:] == list("abba" * 4)


@pytest.mark.parametrize(
    ("module", "elements"), [(nn.ReLU(), 1), (nn.Identity(), 0), (nn.GELU(), 1), (nn.Tanh(), 1)], ids=str
)
def test_saved_bytes_are_those_of_what_autograd_keeps(module: nn.Module, elements: int) -> None:
    assert saved_bytes(module, torch.randn(1000)) == elements * 4000


def test_memory_counts_once_and_whole_whatever_the_view() -> None:
    weight, few = torch.randn(100, 100, requires_grad=True), torch.randn(10, requires_grad=True)
    row, whole = torch.randn(1, 100), torch.randn(100, 100)
    assert saved_by(lambda: row.expand(100, 100) * weight) == 4 * 100
    assert saved_by(lambda: whole.view(-1)[:10] * few) == 4 * 100**2
    assert saved_by(lambda: ((whole * weight).sum(), whole.view(-1)[:10] * few)) == 4 * 100**2
    assert saved_by(lambda: whole[50:] * weight[50:], [whole[:1]]) == 0
    assert saved_by(lambda: torch.sparse.mm(whole[:, :10].to_sparse(), weight[:10])) == (8 + 8 + 4) * 1000
    assert saved_by(lambda: weight * torch.tensor(2.0)) == 0  # scalars do not count


def test_weights_need_not_count_among_what_is_saved() -> None:
    layer, x = nn.Linear(10, 20), torch.randn(5, 10)
    assert saved_by(lambda: layer(x)) == 4 * 5 * 10  # its input; the weights only where the input has a gradient
    x.requires_grad_()
    assert saved_by(lambda: layer(x)) == 4 * (5 * 10 + 10 * 20)
    assert saved_by(lambda: layer(x), layer.parameters()) == 4 * 5 * 10
