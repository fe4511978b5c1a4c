"""Recurrent networks, unrolled in the open: one linear map for the input, one for the state, in every layer.

Written out instead of taken from nn.RNN and nn.LSTM, so that the activation can be exchanged, and each step of each
layer can be probed and batched over replicas. With one bias a gate, which is all that the equations have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from depthgauge.initialization import Stacked
from depthgauge.models.sequence import Reader, answer
from depthgauge.models.slots import Activation, Slots


def _as_torch(layer: nn.Module, width: int) -> None:
    """Uniform in +-1/sqrt(width) for every weight and bias, which is PyTorch's default for recurrent layers."""
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)


class RNNLayer(nn.Module):
    """`h_t = act(W x_t + U h_{t-1} + b)` (Elman 1990)."""

    def __init__(self, slots: Slots, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.input = nn.Linear(inputs, width)
        self.state = nn.Linear(width, width, bias=False)
        self.activation = slots.activation()
        _as_torch(self, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, inputs) -> (N, T, width), every state from a first state of zero."""
        h = x.new_zeros(len(x), self.width)
        states = []
        for step in self.input(x).unbind(1):
            h = self.activation(step + self.state(h))
            states.append(h)
        return torch.stack(states, dim=1)


class LSTMLayer(nn.Module):
    """`c_t = f_t c_{t-1} + i_t act(g_t)`, `h_t = o_t act(c_t)` (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

    Gates i, f, g, o lie in that order, as in nn.LSTM; those that open and close stay logistic.
    """

    def __init__(self, slots: Slots, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.input = Stacked(inputs, width, 4)
        self.state = Stacked(width, width, 4, bias=False)
        self.activation = slots.activation()
        _as_torch(self, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, inputs) -> (N, T, width), every output from first state and cell of zero."""
        h = c = x.new_zeros(len(x), self.width)
        states = []
        for step in self.input(x).unbind(1):
            i, f, g, o = (step + self.state(h)).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * self.activation(g)
            h = o.sigmoid() * self.activation(c)
            states.append(h)
        return torch.stack(states, dim=1)


class Recurrent(nn.Module):
    """Stacked recurrent layers under a linear output, at the last step or at each."""

    def __init__(
        self,
        layer: type[RNNLayer] | type[LSTMLayer],
        slots: Slots,
        reader: Reader,
        classes: int,
        *,
        depth: int,
        width: int,
        each_step: bool,
    ) -> None:
        super().__init__()
        self.each_step = each_step
        self.reader = reader
        self.layers = nn.Sequential(
            *(layer(slots, self.reader.features if i == 0 else width, width) for i in range(depth))
        )
        self.output = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T), (N, T, F) or (N, 1, T, F) -> (N, classes), or (N, T, classes) with `each_step`."""
        out: torch.Tensor = self.output(answer(self.layers(self.reader(x)), each_step=self.each_step))
        return out


def rnn(
    *,
    input_shape: Sequence[int] = (784, 1),
    classes: int = 10,
    activation: Activation = "tanh",
    depth: int = 1,
    width: int = 100,
    vocabulary: int | None = None,
    each_step: bool = False,
) -> Recurrent:
    """Plain recurrent network, `depth` layers of `width` units; images are read row by row, as (1, rows, columns)."""
    slots, reader = Slots.over("tokens", activation=activation), Reader(input_shape, vocabulary, width)
    return Recurrent(RNNLayer, slots, reader, classes, depth=depth, width=width, each_step=each_step)


def lstm(
    *,
    input_shape: Sequence[int] = (784, 1),
    classes: int = 10,
    activation: Activation = "tanh",
    depth: int = 1,
    width: int = 100,
    vocabulary: int | None = None,
    each_step: bool = False,
) -> Recurrent:
    """Long short-term memory with forget gates, `depth` layers of `width` units; `activation` of candidate and cell."""
    slots, reader = Slots.over("tokens", activation=activation), Reader(input_shape, vocabulary, width)
    return Recurrent(LSTMLayer, slots, reader, classes, depth=depth, width=width, each_step=each_step)
