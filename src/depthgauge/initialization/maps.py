"""The linear maps of a model: which layer holds how many, in which tensor, and their fans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class Stacked(nn.Linear):
    """Several linear maps of one input, computed as one: the gates of an LSTM, the q, k and v of attention."""

    def __init__(self, inputs: int, outputs: int, maps: int, *, bias: bool = True) -> None:
        super().__init__(inputs, maps * outputs, bias=bias)
        self.maps = maps


@dataclass(frozen=True)
class Layer:
    """What a weight layer holds.

    Attributes:
        name: the module's.
        module: the module.
        maps: its linear maps, (out, in, kernel...) each, as views of its weights without gradient.
        biases: its biases, likewise.
    """

    name: str
    module: nn.Module
    maps: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]


def fans(weight: Tensor) -> tuple[int, int]:
    """(fan-in, fan-out) of one map of shape (out, in, kernel...): the terms of a forward sum, and of a backward sum.

    For a convolution they hold at stride 1 and away from the border.
    """
    return weight[0].numel(), weight.shape[0] * weight[0, 0].numel()


def weighted(model: nn.Module, *, embeddings: bool = False) -> Iterator[Layer]:
    """Layers of linear maps, in order of registration; those that share a weight once.

    Linear layers, convolutions and transposed ones, torch's recurrent layers and cells, its attention. Embeddings are
    none, as one row is looked up and nothing is summed, but can be asked for.
    """
    seen: set[Tensor] = set()
    for name, module in model.named_modules():
        weights = [(module.weight, 1)] if embeddings and isinstance(module, nn.Embedding) else _weights(module)
        fresh = [weight for weight, _ in weights if weight not in seen]
        if not weights or not fresh:
            continue
        seen.update(fresh)
        maps = tuple(part for weight, count in weights for part in _split(module, weight, count))
        biases = tuple(
            parameter.detach()
            for own, parameter in module.named_parameters(recurse=False)
            if "bias" in own and parameter.dim() == 1
        )
        yield Layer(name, module, maps, biases)


def _weights(module: nn.Module) -> list[tuple[Tensor, int]]:
    """The weights of a layer, and how many maps lie in each."""
    if isinstance(module, nn.Linear):
        return [(module.weight, module.maps if isinstance(module, Stacked) else 1)]
    if isinstance(module, (*_CONVOLUTION, *_TRANSPOSED)):
        return [(module.weight, module.groups)]
    own = [(name, weight) for name, weight in module.named_parameters(recurse=False) if weight.dim() > 1]
    if isinstance(module, _RECURRENT):  # gates of `hidden_size` rows; a projection is one map
        return [(weight, 1 if "hr" in name else weight.shape[0] // module.hidden_size) for name, weight in own]
    if isinstance(module, nn.MultiheadAttention):
        return [(weight, 3 if name == "in_proj_weight" else 1) for name, weight in own if name.endswith("proj_weight")]
    return []


def _split(module: nn.Module, weight: Tensor, count: int) -> tuple[Tensor, ...]:
    parts = weight.detach().chunk(count)
    return tuple(part.transpose(0, 1) for part in parts) if isinstance(module, _TRANSPOSED) else parts


def blank(weight: Tensor) -> Tensor:
    """Memory for the values of a map: on the CPU, where all is drawn, in a type that can be computed in."""
    half = weight.dtype in (torch.float16, torch.bfloat16)
    return torch.empty(weight.shape, dtype=torch.float32 if half else weight.dtype)
