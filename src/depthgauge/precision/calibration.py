"""Rates at which `compare` finds a difference where there is only rounding, and a small fault where there is one.

    rows = calibration.trials(1000, kind="order")          # two legal orders of the same sums: any difference is false
    rows = calibration.trials(1000, kind="fault", ulps=8)  # one weight changed by 8 ulps: no difference is a miss
    stats.coverage(int(rows["beyond"].sum()), len(rows), 0.01).effect       # the rate, with its exact interval

The modules are random: dense and convolutional, plain and residual, with and without normalization, one to four layers
of 8 to 512 features, on 1 to 64 examples.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from depthgauge.precision.cancelling import cancelling_pair
from depthgauge.precision.comparison import compare
from depthgauge.precision.parameters import judged
from depthgauge.seeding import Purpose, generator, numpy_generator, seed_torch

ORDERS = ("permuted", "reversed", "halves", "sequential", "batch")
"""Orders of a layer's sums: features permuted or reversed, two halves, term by term, the batch in two parts."""

ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.SiLU)


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        total: Tensor = x + self.branch(x)
        return total


def random_module(seed: int) -> tuple[nn.Module, Tensor]:
    """A module and a batch for it, in float32."""
    draw = numpy_generator(seed, Purpose.SAMPLE, "module")
    examples, convolution = int(2 ** draw.uniform(0, 6)), bool(draw.random() < 0.3)
    width = int(2 ** draw.uniform(3, 6 if convolution else 9))
    entry = int(2 ** draw.uniform(0, 3)) if convolution else int(2 ** draw.uniform(2, 9))
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed, Purpose.MODULES, "calibration")
        layers: list[nn.Module] = [_weights(convolution, entry, width)]
        for _ in range(int(draw.integers(0, 4))):
            block = [ACTIVATIONS[draw.integers(len(ACTIVATIONS))](), _weights(convolution, width, width)]
            if draw.random() < 0.3:
                block.insert(0, _norm(convolution, width, batch=bool(draw.random() < 0.5) and examples > 1))
            residual = draw.random() < 0.3
            layers += [Residual(nn.Sequential(*block))] if residual else block
        module = nn.Sequential(*layers)
    for weights in module.parameters():
        weights.data.mul_(2 ** draw.uniform(-1, 1))
    shape = (examples, entry, 8, 8) if convolution else (examples, entry)
    return module, torch.randn(shape, generator=generator(seed, Purpose.INPUTS)) * 2 ** draw.uniform(-2, 2)


def _weights(convolution: bool, entry: int, width: int) -> nn.Module:
    return nn.Conv2d(entry, width, 3, padding=1) if convolution else nn.Linear(entry, width)


def _norm(convolution: bool, width: int, *, batch: bool) -> nn.Module:
    if convolution:
        return nn.BatchNorm2d(width) if batch else nn.GroupNorm(1, width)
    return nn.BatchNorm1d(width) if batch else nn.LayerNorm(width)


def reordered(module: nn.Module, order: str, seed: int = 0) -> nn.Module:
    """A copy whose dense and convolutional layers add up the same products in another order."""
    other = copy.deepcopy(module)
    for number, layer in enumerate(other.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            place = torch.randperm(layer.weight.shape[1], generator=generator(seed, Purpose.ORDER, number))
            layer.forward = types.MethodType(_forward(order, place), layer)  # type: ignore[method-assign]  # of this copy alone
    return other


def _forward(order: str, permutation: Tensor) -> Callable[[Any, Tensor], Tensor]:
    def apply(layer: Any, x: Tensor, features: Any, bias: Tensor | None) -> Tensor:
        weight = layer.weight[:, features]
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(x[..., features], weight, bias)
        convolved: Tensor = layer._conv_forward(x[:, features], weight, bias)
        return convolved

    def forward(layer: Any, x: Tensor) -> Tensor:
        count = len(permutation)
        features = torch.arange(count)
        if order == "permuted":
            return apply(layer, x, permutation, layer.bias)
        if order == "reversed":
            return apply(layer, x, features.flip(0), layer.bias)
        if order == "batch" and len(x) > 1:
            k = len(x) // 3 + 1
            return torch.cat([apply(layer, part, features, layer.bias) for part in (x[:k], x[k:])])
        parts = torch.split(features, 1 if order == "sequential" and count <= 64 else -(-count // 2))
        total = apply(layer, x, parts[0], None)
        for part in parts[1:]:
            total = total + apply(layer, x, part, None)
        bias = layer.bias if isinstance(layer, nn.Linear) else layer.bias[:, None, None]
        return total + bias

    return forward


def faulty(module: nn.Module, ulps: float, seed: int = 0) -> tuple[nn.Module, str]:
    """A copy, one weight of which is changed by so many units in its last place; and its layer's name."""
    other, draw = copy.deepcopy(module), numpy_generator(seed, Purpose.SAMPLE, "fault")
    layers = [(name, each) for name, each in other.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)]
    name, layer = layers[draw.integers(len(layers))]
    weights = layer.weight.data.view(-1)
    place = int(draw.integers(len(weights)))
    value = weights[place]
    spacing = torch.ldexp(torch.tensor(torch.finfo(value.dtype).eps), torch.frexp(value.float())[1] - 1)
    weights[place] += (ulps * spacing).to(value.dtype)
    return other, name


def trials(
    n: int, kind: Literal["order", "fault", "dtype", "cancelling"], *, ulps: float = 8.0,
    dtype: torch.dtype = torch.float32, start: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Compare n random modules with a copy, one a row.

    Args:
        n: number of modules.
        kind: `order`: the copy adds up in another order; `fault`: one weight is changed besides; `dtype`: it has
            another dtype; `cancelling`: the modules have a layer whose operators cancel, and the copy another order,
            batch or dtype (see `cancelling`).
        ulps: size of the fault.
        dtype: of both, or of the copy alone, the module having float32.
        start: seed of the first module.

    Returns:
        `seed`, `order`, `dtype`, `examples`, `terms` (of the sums of the faulty layer, else of the longest),
        `beyond` (a difference was found) and `found` (first at the layer of the fault), `results_beyond` and
        `results_found` (parameters not compared), `size` (the largest of the results in units of the band), and of that
        row `layer_kind`, `direction` and `tensor`.
    """
    return pd.DataFrame([_trial(seed, kind, ulps, dtype) for seed in range(start, start + n)])


def _trial(seed: int, kind: str, ulps: float, dtype: torch.dtype) -> dict[str, Any]:
    if kind == "cancelling":
        module, other, x, order = cancelling_pair(seed)
        name = ""
    else:
        module, x = random_module(seed)
        order = ORDERS[seed % len(ORDERS)]
        other, name = copy.deepcopy(module).to(dtype), ""
    if kind == "fault":
        other, name = faulty(other, ulps, seed)
    if kind in {"order", "fault"}:
        module, other = module.to(dtype), reordered(other, order, seed)
    result = compare(module, other, x, seed=seed, parameters=False)
    frame = result.to_frame()
    worst = frame.iloc[int(frame["size"].to_numpy().argmax())]
    dtypes = {dtype, *(each.dtype for each in other.parameters())}
    format_info = max((torch.finfo(each) for each in dtypes), key=lambda info: info.eps)
    own = judged(module, other, format_info.eps, format_info.smallest_normal * format_info.eps)
    differ = {layer for layer, _, each in own if each and each.size > 1}
    first = {result.first} if result.first is not None else set()
    named = {**dict(other.named_modules()), **dict(module.named_modules())}
    terms = {key: each.weight[0].numel() for key, each in named.items() if isinstance(each, nn.Linear | nn.Conv2d)}
    return {
        "seed": seed, "order": order, "dtype": str(dtype).removeprefix("torch."), "examples": len(x),
        "terms": terms.get(name, max(terms.values(), default=x.shape[-1])), "beyond": bool(first | differ),
        "found": first | differ == {name},
        "results_beyond": bool(first), "results_found": first == {name}, "size": float(worst["size"]),
        "layer_kind": type(named[worst["layer"]]).__name__, "direction": worst["direction"], "tensor": worst["tensor"],
    }  # fmt: skip
