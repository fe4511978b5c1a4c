"""Schemes that use the network: its signal, and the ends of its residual branches."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depthgauge.architecture import branch_ends, branches, layers
from depthgauge.initialization.maps import blank, weighted
from depthgauge.initialization.schemes import Scheme, he, orthogonal
from depthgauge.restoring import buffers_kept, random_states_kept


def _ends(model: nn.Module, given: Sequence[str] | None, scheme: str) -> tuple[str, ...]:
    """The layers that end residual branches: those given, else those that the model's blocks name."""
    ends = branch_ends(model) if given is None else tuple(given)
    known = [name for name, _ in layers(model)]
    for end in ends:
        if end not in known:
            near = difflib.get_close_matches(end, known, n=1, cutoff=0.3)
            raise ValueError(
                f"no weight layer {end!r} in this model" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    if not ends:
        raise ValueError(
            f"{scheme} scales the layers that end residual branches, and no block of this model names its "
            "`branch_ends`; give their names, as in ends=['block1.conv2', 'block2.conv2']"
        )
    return ends


def _scale(model: nn.Module, name: str, factor: float) -> None:
    """Multiply every map of the layer of that name."""
    for layer in weighted(model.get_submodule(name)):
        for weight in layer.maps:
            weight.mul_(factor)
        layer.bring()


def depth_scaled(base: Scheme | None = None, ends: Sequence[str] | None = None) -> Scheme:
    """He's draws, those that end one of N residual branches over sqrt(N): the sum of N branches is as large as one.

    Args:
        base: the scheme that draws, in place of He's.
        ends: names of the layers that end a branch; None: those that the blocks name in `branch_ends`.

    Raises:
        ValueError: when applied to a model that has no such layers.
    """

    def initialize(model: nn.Module, generator: torch.Generator) -> None:
        last = _ends(model, ends, "depth_scaled")
        (he() if base is None else base)(model, generator)
        for name in last:
            _scale(model, name, 1 / math.sqrt(len(last)))

    return initialize


def gpt2(std: float = 0.02) -> Scheme:
    """N(0, std^2) for weights and embeddings, over sqrt(N) for those that end one of N residual branches.

    Radford et al. 2019, section 2.3; 0.02 is their code's.
    """

    def initialize(model: nn.Module, generator: torch.Generator) -> None:
        ends = branch_ends(model)
        for layer in weighted(model, embeddings=True):
            own_std = std / math.sqrt(len(ends)) if layer.name in ends else std
            for weight in layer.maps:
                weight.copy_(nn.init.normal_(blank(weight), 0.0, own_std, generator=generator))
            for bias in layer.biases:
                bias.zero_()
            layer.bring()

    return initialize


def fixup(ends: Sequence[str] | None = None, head: str | None = None) -> Scheme:
    """Residual networks without normalization: branches start at zero, and move the function by O(learning rate).

    Zhang, Dauphin and Ma 2019, the three rules in section 4.2, of which an initialization can follow two. The last
    layer and those that end a branch are zero; the other layers of a branch of m are He's times L^(-1/(2m-2)), for L
    branches. The third is for the architecture to follow: a scalar bias before each layer and activation, a scalar
    factor at the end of each branch, and no normalization.

    Args:
        ends: names of the layers that end a branch; None: those that the blocks name in `branch_ends`.
        head: name of the layer that makes the scores; None: the weight layer registered last.

    Raises:
        ValueError: when applied to a model that has no such layers.
    """

    def initialize(model: nn.Module, generator: torch.Generator) -> None:
        last = _ends(model, ends, "fixup")
        he()(model, generator)
        for branch in branches(model, last):
            for name in branch[:-1]:
                _scale(model, name, len(last) ** (-1 / (2 * len(branch) - 2)))
            _scale(model, branch[-1], 0.0)
        _scale(model, layers(model)[-1][0] if head is None else head, 0.0)

    return initialize


@dataclass(frozen=True)
class LSUV:
    """Layer-sequential unit variance: weights divided until every layer's output has variance 1 on a batch of data.

    Mishkin and Matas 2016, algorithm 1: orthogonal draws, then layer by layer, in the order in which they are called,
    weights over the standard deviation of the layer's output. That is over all elements, of all calls where a layer is
    called several times. One division is exact where a layer is called once; `rounds` bounds the others. Layers that
    are never called as modules (torch's attention calls its own as functions), or whose output is no tensor alone
    (torch's recurrent ones), keep their orthogonal draws.

    Attributes:
        batch: inputs of the model, (N, ...); the more varied, the closer to the variance of the data.
        base: the scheme that draws, in place of orthogonal ones.
        tolerance: tolerance of the variance.
        rounds: most divisions a layer.
    """

    batch: Tensor
    base: Scheme | None = None
    tolerance: float = 1e-3
    rounds: int = 30  # a recurrent layer halves its distance from 1 in each, and needs 12 or so

    def __call__(self, model: nn.Module, generator: torch.Generator) -> None:
        """Set every weight of `model`; its buffers stay as they were.

        Raises:
            ValueError: a layer's output is constant, or not finite, on this batch.
        """
        (orthogonal() if self.base is None else self.base)(model, generator)
        with torch.no_grad(), random_states_kept(), buffers_kept([model]):
            for name in self._called(model):
                for _ in range(self.rounds):
                    variance = self._variance(model, name)
                    if abs(variance - 1) <= self.tolerance:
                        break
                    if not 0 < variance < math.inf:
                        raise ValueError(
                            f"the output of layer {name!r} has variance {variance} on this batch: no factor makes it "
                            "1; give another batch, or another base"
                        )
                    _scale(model, name, variance**-0.5)

    def _called(self, model: nn.Module) -> list[str]:
        """Names of the layers that the model calls, in the order of their first call."""
        called: list[str] = []

        def note(name: str, _output: Tensor) -> None:
            if name not in called:
                called.append(name)

        with _watched(model, [layer.name for layer in weighted(model) if layer.maps], note):
            model(self.batch)
        return called

    def _variance(self, model: nn.Module, name: str) -> float:
        outputs: list[Tensor] = []
        # what follows the layer may work in place
        with _watched(model, [name], lambda _, output: outputs.append(output.to(torch.float64, copy=True).flatten())):
            model(self.batch)
        return float(torch.cat(outputs).var(correction=0))


@contextmanager
def _watched(model: nn.Module, names: Sequence[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Show the output of these layers to `see(name, output)`."""

    def make(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                see(name, output)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(make(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
