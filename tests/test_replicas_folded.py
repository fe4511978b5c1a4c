"""Folded tensors: every operation gives each replica what it gives it alone; which models are run by them."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from depthgauge import models, replicas
from depthgauge.replicas import mapped
from depthgauge.replicas.folded import Folded, rows

R = 3
# What a model may do with values of these shapes, each drawn a replica.
SHAPES = {
    "x": (4, 5), "y": (5,), "s": (2, 4, 6), "image": (2, 4, 6, 6), "color": (2, 3, 6, 6), "one": (1,),
    "w": (7, 5), "b": (7,), "filters": (6, 4, 3, 3), "few": (6, 3, 3, 3), "half": (4, 2, 3, 3), "c": (4,),
    "table": (9, 5), "q": (2, 2, 4, 6), "v": (6, 5),
}  # fmt: skip
MASK = torch.arange(5) % 2 == 1
LOWER = torch.ones(4, 4).bool().tril()
IDS = torch.tensor([[0, 3], [8, 8]])
OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "elementwise": lambda x, y: (2 * x + y).relu() / (1 + x.square()) - functional.gelu(y) * 0.5,
    "channels": lambda image: functional.max_pool2d(image, 2).tanh() + functional.avg_pool2d(image, 2) * 0.5,
    "channels and features": lambda image, c: functional.avg_pool2d(image, 2) * c[:, None, None],
    "alone": lambda x: x + torch.ones(3, 4, 5, dtype=x.dtype),
    "masked": lambda x: x.masked_fill(MASK, -2.0).softmax(-1).log_softmax(0),
    "masked by a value": lambda x: x.masked_fill(MASK, torch.tensor(2.0)),
    "linear": lambda x, w: functional.linear(x, w).relu(), "affine": lambda x, w, b: functional.linear(x, w, b).relu(),
    "linear of steps": lambda s, v: functional.linear(s, v.t()), "vector": lambda y, w: functional.linear(y, -w),
    "products": lambda q: q @ q.transpose(-1, -2), "with a matrix": lambda s, v: s @ v, "dot": lambda y: y @ y,
    "convolution": lambda image, filters: functional.conv2d(image, filters, padding=1, stride=2),
    "groups": lambda image, half: functional.conv2d(image, half, groups=2),
    "few channels": lambda color, few: functional.conv2d(color, few, padding="same"),
    "one image": lambda image, filters: functional.conv2d(image[0], filters),
    "pooled": lambda image: functional.adaptive_avg_pool2d(image, 1).flatten(1),
    "pooled alone": lambda image: functional.max_pool2d(image[0], 2),
    "batch norm": lambda image, c: functional.batch_norm(image, None, None, c, c, training=True),
    "batch norm of features": lambda x, y: functional.batch_norm(x, y.detach(), y.detach().exp(), y, y),
    "batch norm of a signal": lambda s, c: functional.batch_norm(s, None, None, c, training=True),
    "shared statistics": lambda x: functional.batch_norm(x, torch.zeros(5).double(), torch.ones(5).double()),
    "group norm": lambda image, c: functional.group_norm(image, 2, c, c),
    "shared group norm": lambda image: functional.group_norm(image, 2, torch.ones(4).double()),
    "layer norm": lambda x, y: functional.layer_norm(x, (5,), y, y),
    "layer norm without bias": lambda x, y: functional.layer_norm(x, (5,), y),
    "bare layer norm": lambda x: functional.layer_norm(x, (5,)),
    "shared layer norm": lambda x: functional.layer_norm(x, (5,), torch.ones(5).double()),
    "rms norm": lambda x, y: functional.rms_norm(x, (5,), y, 1e-5),
    "shared rms norm": lambda x: functional.rms_norm(x, (5,), torch.ones(5).double()),
    "embedding": lambda table: functional.embedding(IDS, table),
    "own indices": lambda x, table: functional.embedding(x.argmax(1), table),
    "padded embedding": lambda table: functional.embedding(IDS, table, padding_idx=0),
    "attention": lambda q: functional.scaled_dot_product_attention(q, q, q.sin(), is_causal=True),
    "masked attention": lambda q: functional.scaled_dot_product_attention(q, q, q, attn_mask=LOWER),
    "shapes": lambda s: s.transpose(1, 2).flatten(1).unflatten(1, (6, 4)).permute(1, 0, 2).reshape(6, -1),
    "by tuples": lambda s: s.permute((1, 0, 2)).reshape((4, -1)).contiguous().view(2, 24),
    "parts": lambda s: torch.cat([*s.chunk(2, -1), s.split(3, dim=-1)[0], s[:, :, -3:]], -1).squeeze(0),
    "steps": lambda s: torch.stack([step.exp() for step in s.unbind(1)] + list(s.transpose(0, 1)), 1),
    "places": lambda s: s[..., None, 0] + s[:, torch.tensor([0, 2]), 1:2] .sum(),
    "means": lambda s: s.mean((0, -1)) + s.sum(1, keepdim=True).mean() + s.sum(dtype=torch.float64) + s.mean(-1)[0],
    "joined with what is shared": lambda x: torch.cat([x, torch.ones(4, 1).double()], 1),
    "stacked with what is shared": lambda x: torch.stack([x, torch.ones(4, 5).double()]),
    "no rule": lambda x: torch.cumsum(x, 0).T + x.shape[0] + x.dim() + len(x),
    "a keyword": lambda x, y: torch.add(x, other=y),
    "nothing dropped": lambda x: functional.dropout(x, 0.5, training=False),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_replica_gets_what_it_gets_alone(name: str) -> None:
    operation = OPERATIONS[name]
    wanted = inspect.signature(operation).parameters
    values = [torch.randn(R, *SHAPES[each], dtype=torch.float64, requires_grad=True) for each in wanted]
    together = rows(operation(*map(Folded, values)))
    alone = torch.stack([operation(*own) for own in zip(*values, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(alone)
    gradients = [torch.autograd.grad(each, values, cotangent, allow_unused=True) for each in (together, alone)]
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


def test_what_depends_on_values_and_what_draws_is_refused() -> None:
    x = Folded(torch.ones(R, 4))
    assert repr(x) == "Folded((4,), replicas=3)"
    for refused in (lambda: bool(x.sum() > 0), lambda: functional.dropout(x, 0.5), x.tolist):
        with pytest.raises((RuntimeError, ValueError)):
            refused()
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(NotImplementedError, match="does not see the replicas"):
        torch.relu(x)


def small(name: str, **settings: object) -> Callable[[], nn.Module]:
    return lambda: models.build(name, preset="small", **settings)


def trained(build: Callable[[], nn.Module], strategy: str, **settings: object) -> replicas.Run:
    x = torch.randn(12, 1, 28, 28, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(12) % 10
    stack = replicas.stack(build().double(), [3, 4])
    return replicas.train(
        stack, x, y, replicas.SGD(0.05, momentum=0.9), batch=4, steps=3, strategy=strategy, **settings
    )


@pytest.mark.parametrize(
    "build", [small("resnet18"), small("transformer"), small("transformer", fused=True, norm="rms"), small("lenet5")]
)
def test_networks_train_as_they_do_alone(build: Callable[[], nn.Module]) -> None:
    watch = [1] if any(isinstance(module, nn.Conv2d) for module in build().modules()) else []
    together, alone = (trained(build, strategy, watch=watch) for strategy in ("vmap", "loop"))
    np.testing.assert_allclose(together.loss, alone.loss, rtol=1e-9)
    for name, tensor in {**alone.stack.parameters, **alone.stack.buffers}.items():
        ours = {**together.stack.parameters, **together.stack.buffers}[name]
        assert ours.is_contiguous()
        assert (ours - tensor).double().norm() <= 1e-9 * max(1.0, float(tensor.double().norm()))
    for step in watch:
        np.testing.assert_allclose(together.signals[step].backward, alone.signals[step].backward, rtol=1e-7)


def test_running_statistics_stay_where_nothing_is_trained() -> None:
    stack = replicas.stack(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), range(8))
    before, x = stack.clone(), torch.randn(6, 3)
    found = [replicas.evaluate(stack, x, torch.arange(6) % 2, strategy=each).loss for each in ("vmap", "loop")]
    np.testing.assert_allclose(*found, rtol=1e-6)
    assert replicas.strategy(stack, x, batch=6) == "vmap"
    assert all(torch.equal(tensor, before.buffers[name]) for name, tensor in stack.buffers.items())
    assert not any(isinstance(each, Folded) for each in (*stack.template.parameters(), *stack.template.buffers()))


def test_a_mean_over_all_steps_moves_statistics_in_the_loop() -> None:
    """Its factor is 1 / steps, a number of Python that no folded tensor gives."""
    stack = replicas.stack(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None)), range(8))
    assert replicas.strategy(stack, torch.randn(6, 3), batch=6) == "loop"
    assert not mapped.batchable(stack.part(slice(0, 2)), torch.randn(2, 2, 3))


@pytest.mark.parametrize(
    ("build", "count", "batch", "expected"),
    [
        (small("plain_cnn"), 8, 16, "vmap"),
        (small("plain_cnn"), 1, 16, "loop"),
        (small("plain_cnn"), 8, 128, "loop"),  # no two replicas' activations fit into a block
        (small("plain_cnn", width=24), 8, 16, "loop"),  # convolutions that separate calls are as fast for
        (small("resnet18"), 8, 16, "vmap"),
        (small("resnet18", width=32), 8, 16, "loop"),  # nor do weights and momentum
        (small("transformer"), 8, 16, "vmap"),
        (small("transformer"), 3, 16, "loop"),
        (small("transformer"), 8, 64, "loop"),
        (lambda: nn.Sequential(nn.Conv1d(28, 4, 3), nn.Flatten(), nn.Linear(104, 10)), 8, 16, "loop"),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding_mode="circular", padding=1), nn.Flatten()), 8, 16, "loop"),
    ],
)
def test_the_rule_follows_shapes(build: Callable[[], nn.Module], count: int, batch: int, expected: str) -> None:
    model = build()
    shape = (28, 28) if isinstance(next(model.modules()), nn.Sequential) and model[0].weight.dim() == 3 else (1, 28, 28)
    assert replicas.strategy(replicas.stack(model, range(count)), torch.zeros(batch, *shape), batch=batch) == expected
