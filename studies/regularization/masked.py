"""Many small networks with dropout, trained at once: each has masks, data order and rates of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depthgauge import data, replicas
from depthgauge.seeding import Purpose, generator

KERNEL = 3
Watch = Callable[[str, int, Tensor], None]  # what stands there (drop, norm), the hidden layer, and what comes in


@dataclass(frozen=True)
class Net:
    """An architecture on square images of one channel.

    Attributes:
        layers: for every hidden layer what follows its weights, in order: `norm`, `act` (ReLU) and `drop`.
        width: units of a layer, or channels of the first convolution, which double from layer to layer.
        convolutional: 3 x 3 convolutions, each halved in size by the largest of 2 x 2 after its ReLU, and without
            normalization; else dense.
        side: of the images.
    """

    layers: tuple[tuple[str, ...], ...]
    width: int
    convolutional: bool = False
    side: int = 8
    classes: int = 10

    def shapes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of every weight matrix, the last layer's too."""
        depth = len(self.layers)
        if not self.convolutional:
            return list(zip([self.side**2, *[self.width] * depth], [*[self.width] * depth, self.classes], strict=True))
        channels = [1, *(self.width * 2**layer for layer in range(depth))]
        hidden = [(KERNEL**2 * channels[i], channels[i + 1]) for i in range(depth)]
        return [*hidden, (channels[-1] * (self.side // 2**depth) ** 2, self.classes)]


class Masks:
    """Uniform numbers of 16 bits, from one generator a network."""

    def __init__(self, seeds: Sequence[int], *keys: str | int) -> None:
        self.generators = [generator(seed, Purpose.DROPOUT, *keys) for seed in seeds]

    def keep(self, like: Tensor, p: Tensor, *, one: bool) -> Tensor:
        """Factors 0 or 1 / (1 - p) of every unit (R, B, ...), or with `one` the same for all B examples."""
        shape = (len(p), 1 if one else like.shape[1], *like.shape[2:])
        count = math.prod(shape[1:])
        words = torch.empty(len(p), -(-count // 4), dtype=torch.int64)
        for row, draws in zip(words, self.generators, strict=True):
            row.random_(-(2**63), None, generator=draws)
        fields = words.view(torch.int16)[:, :count].reshape(shape).to(like.device)
        each = p.reshape(-1, *[1] * (len(shape) - 1))
        kept = fields.to(torch.int32) >= (each * 2**16).round().to(torch.int32) - 2**15
        return kept.to(like) / (1 - each)


@dataclass
class Nets:
    """Networks of one architecture, a row each.

    Attributes:
        net: their architecture.
        weights: (R, inputs, outputs) a layer.
        biases: (R, 1, outputs) a layer.
        scales: (R, 1, outputs), and `shifts`, of the hidden layers; where there is no normalization they are not used.
        running: mean and variance (R, 1, outputs) of every hidden layer, as PyTorch's batch normalization keeps them.
        p: (R,) rates of dropout.
    """

    net: Net
    weights: list[Tensor]
    biases: list[Tensor]
    scales: list[Tensor]
    shifts: list[Tensor]
    running: list[tuple[Tensor, Tensor]]
    p: Tensor

    @staticmethod
    def draw(net: Net, seeds: Sequence[int], p: Sequence[float], device: str = "cpu") -> Nets:
        """He's weights, biases of 0."""
        shapes, hidden, rows = net.shapes(), len(net.layers), len(seeds)
        streams = [generator(seed, Purpose.WEIGHTS) for seed in seeds]
        weights = [
            torch.stack([torch.randn(i, o, generator=draws) * math.sqrt(2 / i) for draws in streams]).to(device)
            for i, o in shapes
        ]

        def each(value: float) -> list[Tensor]:
            return [torch.full((rows, 1, o), value, device=device) for _, o in shapes]

        running = list(zip(each(0.0)[:hidden], each(1.0)[:hidden], strict=True))
        chances = torch.tensor(p, dtype=torch.float32, device=device)
        return Nets(net, weights, each(0.0), each(1.0)[:hidden], each(0.0)[:hidden], running, chances)

    @property
    def learned(self) -> list[Tensor]:
        """All that is trained; weights first."""
        return [*self.weights, *self.biases, *self.scales, *self.shifts]

    def __call__(
        self, x: Tensor, masks: Masks | None = None, *, one: bool = False, batch: bool | None = None,
        watch: Watch | None = None,
    ) -> Tensor:  # fmt: skip
        """Outputs (R, B, classes) of images (R or 1, B, 1, side, side).

        Args:
            x: the images.
            masks: of dropout; without it there is none, as in PyTorch's eval mode.
            one: one mask for all examples: a thinned network.
            batch: normalize by the batch's statistics, and keep them; where not given, as dropout is.
            watch: is told what comes into dropout and into normalization.
        """
        rows, batch = len(self.p), (masks is not None) if batch is None else batch
        x = x.expand(rows, *x.shape[1:])
        x = x if self.net.convolutional else x.flatten(2)
        for layer, follows in enumerate(self.net.layers):
            x = self._convolved(x, layer) if self.net.convolutional else self._affine(x, layer)
            for step in follows:
                if watch is not None and step != "act":
                    watch(step, layer, x)
                if step == "act":
                    x = _halved(torch.relu(x)) if self.net.convolutional else torch.relu(x)
                elif step == "norm":
                    x = self._normalized(x, layer, batch)
                elif masks is not None:
                    x = x * masks.keep(x, self.p, one=one)
        return self._affine(x.flatten(2), len(self.net.layers))

    def _affine(self, x: Tensor, layer: int) -> Tensor:
        return torch.baddbmm(self.biases[layer], x, self.weights[layer])

    def _convolved(self, x: Tensor, layer: int) -> Tensor:
        """All networks in one convolution, a group each: (R, B, channels, side, side), as `x`."""
        rows, examples, channels, side, _ = x.shape
        weights = self.weights[layer].transpose(1, 2).reshape(-1, channels, KERNEL, KERNEL)
        grouped = x.transpose(0, 1).reshape(examples, rows * channels, side, side)
        out = nn.functional.conv2d(grouped, weights, self.biases[layer].flatten(), padding=1, groups=rows)
        return out.reshape(examples, rows, -1, side, side).transpose(0, 1)

    def _normalized(self, x: Tensor, layer: int, batch: bool) -> Tensor:
        """PyTorch's batch normalization: momentum 0.1, the running variance unbiased."""
        if not batch:
            mean, variance = self.running[layer]
        else:
            variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
            old, count = self.running[layer], x.shape[1]
            unbiased = variance.detach() * (count / max(count - 1, 1))
            self.running[layer] = (0.9 * old[0] + 0.1 * mean.detach(), 0.9 * old[1] + 0.1 * unbiased)
        return (x - mean) * torch.rsqrt(variance + 1e-5) * self.scales[layer] + self.shifts[layer]


def _halved(x: Tensor) -> Tensor:
    """The largest of 2 x 2 of images (R, B, channels, side, side)."""
    examples = x.transpose(0, 1)  # as the convolution left them in memory
    halved = nn.functional.max_pool2d(examples.flatten(1, 2), 2)
    return halved.reshape(*examples.shape[:3], *halved.shape[2:]).transpose(0, 1)


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum: one rate and one weight decay (of the weight matrices alone) a network."""

    lr: Sequence[float]
    decay: Sequence[float]
    steps: int
    batch: int = 32
    momentum: float = 0.9


def train(nets: Nets, fit: data.Examples, recipe: Recipe, seeds: Sequence[int]) -> None:
    """Train in place, by cross-entropy; a network that diverges stays so."""
    masks = Masks(seeds)
    order = torch.stack([replicas.order(seed, len(fit), recipe.batch, recipe.steps) for seed in seeds], 1)
    rates = torch.tensor(recipe.lr, device=fit.x.device).reshape(-1, 1, 1)
    decays = torch.tensor(recipe.decay, device=fit.x.device).reshape(-1, 1, 1)
    learned = nets.learned
    moving = [torch.zeros_like(each) for each in learned]
    for each in learned:
        each.requires_grad_()
    for rows in order.to(fit.x.device):
        out = nets(fit.x[rows], masks)
        loss = nn.functional.cross_entropy(out.flatten(0, 1), fit.y[rows].flatten(), reduction="sum")
        gradients = torch.autograd.grad(loss / recipe.batch, learned, allow_unused=True)
        with torch.no_grad():
            for i, (each, gradient, speed) in enumerate(zip(learned, gradients, moving, strict=True)):
                if gradient is not None:
                    decayed = gradient + decays * each if i < len(nets.weights) else gradient
                    each.sub_(rates * speed.mul_(recipe.momentum).add_(decayed))
    for each in learned:
        each.requires_grad_(False)


def scores(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and mean cross-entropy (R,) of outputs (R, B, classes); 0 and infinity where one is not finite."""
    finite = outputs.isfinite().flatten(1).all(1)
    right = (outputs.argmax(-1) == y).double().mean(1)
    loss = -outputs.log_softmax(-1).gather(-1, y.expand(len(outputs), -1)[..., None]).double().mean((1, 2))
    return right.where(finite, torch.zeros_like(right)), loss.where(finite, torch.full_like(loss, math.inf))


def recompute(nets: Nets, x: Tensor) -> None:
    """Set the running statistics in place to those of all examples, without dropout."""
    before = list(nets.running)
    nets.running = [(torch.zeros_like(mean), torch.zeros_like(variance)) for mean, variance in before]
    nets(x, batch=True)  # a tenth of the batch's, of a start at 0
    nets.running = [(10 * mean, 10 * variance) for mean, variance in nets.running]
