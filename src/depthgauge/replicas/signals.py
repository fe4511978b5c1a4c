"""Signals through the weight layers of a stack, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthgauge.replicas import mapped
from depthgauge.replicas.chain import Chain
from depthgauge.replicas.stack import Stack

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Signals:
    """The signals through the L weight layers of R replicas, for one batch of B inputs.

    A layer's signal is its output z (in a plain network the pre-activation) of n elements an example, or the gradient
    with respect to it. Moments are taken in float64; what the model's own dtype sent to zero or infinity stays so.

    Attributes:
        layers: names of the layers, in the order they are called; a repeated call is `name:1`, `name:2`, ...; where
            replicas are watched in training, figures of a layer that one of them did not call are NaN.
        sizes: (L,) elements n of one example's output.
        forward: (L, R, B) second moment, the mean of z^2 over the n elements.
        forward_mean: (L, R, B) signed mean of z.
        forward_overlap: (L, R, B, B) mean of z_a z_b over the elements, for every two inputs; B = 0 if not asked for.
        backward: (L, R, B) second moment of the gradient; likewise `backward_mean` and `backward_overlap`. L = 0
            without a cotangent.
    """

    layers: tuple[str, ...]
    sizes: tuple[int, ...]
    forward: Floats
    forward_mean: Floats
    forward_overlap: Floats
    backward: Floats
    backward_mean: Floats
    backward_overlap: Floats

    @property
    def correlation(self) -> Floats:
        """(L, R, B, B) cosine between two inputs' z; NaN where one of them is zero."""
        root = np.sqrt(self.forward)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.forward_overlap / (root[..., :, None] * root[..., None, :]))


def measure(
    stack: Stack,
    chain: Chain | None,
    inputs: Tensor,
    cotangent: Callable[[Tensor], Tensor] | None,
    *,
    together: bool,
    overlap: bool,
) -> Signals:
    """Signals of a block of replicas.

    Args:
        stack: the block; nothing of it changes, running statistics included.
        chain: the model as a chain, None if it is none.
        inputs: (R, B, ...).
        cotangent: outputs (R, B, ...) -> the gradient with respect to them; None measures forward only.
        together: whether vmap may call a model that is no chain.
        overlap: whether to measure overlaps.
    """
    if chain is None:
        names, values, gradients = mapped.tapped(stack, inputs, cotangent, together=together)
    else:
        parameters = list(stack.parameters.values())
        done = chain.forward(parameters, inputs, keep=True)
        names = tuple(layer.name for layer in chain.layers)
        values = [stage[1] for stage in done.stages]
        gradients = []
        if cotangent is not None:
            chain.backward(parameters, done, cotangent(done.outputs), watch=lambda _, g: gradients.append(g))
            gradients.reverse()
    shape = inputs.shape[:2]
    forward, backward = _moments(values, shape, overlap), _moments(gradients, shape, overlap)
    return Signals(names, tuple(value[0, 0].numel() for value in values), *forward, *backward)


def _moments(signals: Sequence[Tensor], shape: torch.Size, overlap: bool) -> tuple[Floats, Floats, Floats]:
    count = shape[1] if overlap else 0
    columns: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for signal in signals:
        flat = signal.flatten(2).double()
        columns[0].append(flat.square().mean(2))
        columns[1].append(flat.mean(2))
        columns[2].append(flat @ flat.transpose(1, 2) / flat.shape[2] if overlap else flat.new_empty(len(flat), 0, 0))
    if not signals:
        return np.empty((0, *shape)), np.empty((0, *shape)), np.empty((0, shape[0], count, count))
    first, second, third = (torch.stack(column).cpu().numpy() for column in columns)
    return first, second, third


def join(parts: Sequence[Signals]) -> Signals:
    """The signals of neighbouring blocks as those of one; NaN where a block did not call a layer that others did."""
    sizes = {layer: size for part in parts for layer, size in zip(part.layers, part.sizes, strict=True)}
    arrays = [field.name for field in fields(Signals) if field.name not in {"layers", "sizes"}]
    columns = [[_placed(getattr(part, name), part.layers, list(sizes)) for part in parts] for name in arrays]
    return Signals(tuple(sizes), tuple(sizes.values()), *(np.concatenate(column, axis=1) for column in columns))


def _placed(moments: Floats, names: Sequence[str], layers: Sequence[str]) -> Floats:
    if not len(moments):  # without a cotangent there is no gradient, of any layer
        return moments
    everywhere = np.full((len(layers), *moments.shape[1:]), np.nan)
    everywhere[[layers.index(layer) for layer in names]] = moments
    return everywhere
