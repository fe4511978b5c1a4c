"""A network as a line of blocks, and its accuracy after blocks are deleted or exchanged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from depthgauge import data
from depthgauge.models.mlp import MLP
from depthgauge.models.resnet import ResNet
from depthgauge.studies.stabilizers import nets

ANEW = "deleted, statistics anew"
DRAWS = 8  # sets of blocks deleted together, for each number of them


class Line(nn.Module):
    """A network as a line of blocks, some of which may be deleted.

    Attributes:
        free: places of the blocks whose output has the shape of their input.
        order: places of the blocks that are passed, in this order.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, MLP | ResNet)
        ends = [network.norm, network.activation]
        if isinstance(network, MLP):
            first, *blocks = network.hidden
            self.first, self.last = nn.Sequential(nn.Flatten(), first), nn.Sequential(*ends, network.output)
            self.free = tuple(range(len(blocks)))
        else:
            blocks = [block for stage in network.stages.children() for block in stage.children()]
            self.first, self.last = network.stem, nn.Sequential(*ends, network.pool, nn.Flatten(), network.output)
            first_convolutions = [block.get_submodule("branch.conv1") for block in blocks]
            self.free = tuple(place for place, conv in enumerate(first_convolutions) if _keeps_shape(conv))
        self.blocks = nn.ModuleList(blocks)
        self.order = tuple(range(len(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, classes)."""
        x = self.first(x)
        for place in self.order:
            x = self.blocks[place](x)
        out: Tensor = self.last(x)
        return out

    def without(self, *places: int) -> tuple[int, ...]:
        """The order without some blocks."""
        return tuple(place for place in range(len(self.blocks)) if place not in places)

    def swapped(self, place: int) -> tuple[int, ...]:
        """The order with a block and the next exchanged."""
        every = list(range(len(self.blocks)))
        every[place : place + 2] = every[place + 1], every[place]
        return tuple(every)


def _keeps_shape(conv: nn.Module) -> bool:
    return isinstance(conv, nn.Conv2d) and conv.stride == (1, 1) and conv.in_channels == conv.out_channels


@torch.no_grad()
def lesions(
    line: Line, x: Tensor, test: data.Examples, draws: torch.Generator
) -> Iterator[tuple[str, int, float]]:  # fmt: skip
    """(lesion, block or number of blocks, accuracy): statistics are those of x in the whole network, unless anew."""
    whole = nets.frozen(line, x)

    def after(module: Line, order: tuple[int, ...]) -> float:
        module.order = order
        return nets.accuracy(module(test.x), test.y)

    normed = any(isinstance(module, _BatchNorm) for module in line.modules())
    for place in line.free:
        yield "deleted", place + 1, after(whole, line.without(place))
        if place + 1 in line.free:
            yield "swapped", place + 1, after(whole, line.swapped(place))
        if normed:
            line.order = line.without(place)
            yield ANEW, place + 1, after(nets.frozen(line, x), line.order)
    for count in range(1, len(line.free) + 1):
        sets = [torch.randperm(len(line.free), generator=draws)[:count].tolist() for _ in range(DRAWS)]
        found = [after(whole, line.without(*(line.free[k] for k in each))) for each in sets]
        yield "several", count, float(np.mean(found))
