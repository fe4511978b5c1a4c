"""Noise scales of replicas against those of each module alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from depthgauge import noise, replicas
from depthgauge.noise import stacks
from depthgauge.noise.ratio import NoiseError
from depthgauge.replicas.objective import Objective
from depthgauge.seeding import Purpose, generator

N = 30


def examples(*shape: int) -> tuple[Tensor, Tensor]:
    draws = generator(0, Purpose.INPUTS)
    return torch.randn(N, *shape, generator=draws, dtype=torch.float64), torch.randint(4, (N,), generator=draws)


def smooth(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.huber_loss(outputs.sum(1), targets.to(outputs.dtype))


MODELS = {
    "chain": lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5, bias=False), nn.ReLU(), nn.Linear(5, 4)),
    "flattened": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4)),
    "linear": lambda: nn.Linear(6, 4),
    "normalized": lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4)),
}


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", smooth])
@pytest.mark.parametrize("model", MODELS)
def test_replicas_are_as_each_module_alone(model: str, loss: replicas.Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_HELD", 2 * N * 20)  # two or three replicas a block
    stack = replicas.stack(MODELS[model]().double(), range(5))
    x, y = examples(6) if model != "flattened" else examples(2, 3)
    targets = functional.one_hot(y, 4).double() if loss == "mse" else y
    found = noise.of_replicas(stack, x, targets, loss)
    assert len(found) == 5
    for row, each in enumerate(found):
        truth = noise.scale(stack.module(row), lambda model, x, y: Objective(loss).single(model(x), y), x, targets)
        for name in ("signal", "noise", "value", "low", "high"):
            assert getattr(each, name) == pytest.approx(getattr(truth, name), rel=1e-8), name
        assert each.method == truth.method


def test_float32_is_as_float64_but_for_rounding() -> None:
    stack = replicas.stack(MODELS["chain"]().double(), range(4))
    narrow = replicas.Stack(
        stack.template.float(), {name: each.float() for name, each in stack.parameters.items()}, {}, stack.seeds
    )
    x, y = examples(6)
    wide = noise.of_replicas(stack, x, y, population=100)
    for a, b in zip(noise.of_replicas(narrow, x.float(), y, population=100), wide, strict=True):
        assert a.noise == pytest.approx(b.noise, rel=1e-5)
        assert a.signal == pytest.approx(b.signal, rel=1e-5, abs=1e-5 * b.noise / N)


def test_a_target_an_input() -> None:
    x, y = examples(6)
    with pytest.raises(NoiseError, match="30 inputs and 29 targets"):
        noise.of_replicas(replicas.stack(MODELS["linear"]().double(), range(2)), x, y[:-1])


@pytest.mark.parametrize("size", [1e-24, 1e12])
def test_the_unit_of_the_loss_does_not_matter(size: float) -> None:
    """Gradients are numbers of their format, and their products leave it."""
    stack = replicas.stack(MODELS["chain"](), range(2))
    x, y = (each.float() if each.is_floating_point() else each for each in examples(6))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return size * functional.cross_entropy(outputs, targets)

    expected = noise.of_replicas(stack, x, y)
    for row, found in enumerate(noise.of_replicas(stack, x, y, loss)):
        alone = noise.scale(stack.module(row), lambda model, x, y: loss(model(x), y), x, y)
        for each in (found, alone):
            assert each.value == pytest.approx(expected[row].value, rel=1e-3)
            assert each.high == pytest.approx(expected[row].high, rel=1e-3)


def test_float16_is_as_float32_but_for_rounding() -> None:
    stack = replicas.stack(MODELS["chain"]().half(), range(3))
    wide = replicas.Stack(stack.template.float(), {n: p.float() for n, p in stack.parameters.items()}, {}, stack.seeds)
    x, y = examples(6)
    for small, large in zip(
        noise.of_replicas(stack, x.half(), y), noise.of_replicas(wide, x.half().float(), y), strict=True
    ):
        assert small.value == pytest.approx(large.value, rel=0.1)


def test_outputs_that_hold_scores() -> None:
    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.linear(x)}

    x, y = (each.float() if each.is_floating_point() else each for each in examples(6))
    holds, plain = (replicas.stack(each, [0]) for each in (Holds(), nn.Linear(6, 4)))
    for name, tensor in holds.parameters.items():
        tensor.copy_(plain.parameters[name.removeprefix("linear.")])
    found, expected = (noise.of_replicas(each, x, y)[0] for each in (holds, plain))
    assert found.value == pytest.approx(expected.value, rel=1e-4)


def test_targets_that_the_loss_leaves_out_are_refused() -> None:
    x, y = examples(6)
    with pytest.raises(NoiseError, match="left out of the loss"):
        noise.of_replicas(replicas.stack(nn.Linear(6, 4), [0]), x.float(), y.masked_fill(y == 1, -100))


def test_buffers_whose_numbers_share_memory_are_put_back() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))
    model.register_buffer("shift", torch.ones(1).expand(4))
    x, y = examples(6)
    found = noise.scale(model, lambda model, x, y: functional.cross_entropy(model(x) + model.shift, y), x.float(), y)
    assert found.noise > 0
    assert torch.equal(model.shift, torch.ones(4))
