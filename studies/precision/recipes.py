"""Ways to train a network in a number format, and its training step in each: products, updates, remedies.

    trainer = Trainer(model, RECIPES["bfloat16_kahan"], "sgd", lr=0.1, seed=3)
    loss = trainer.backward(lambda model: cross_entropy(model(x.bfloat16()), y))
    trainer.update()

All arithmetic is the device's own; nothing is emulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depthgauge import formats
from depthgauge.float32 import multiplied
from depthgauge.seeding import Purpose, generator
from depthgauge.timing import saved_by

Loss = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Recipe:
    """A way to train in a number format.

    Attributes:
        weights: dtype of the weights and, without autocast, of everything else.
        autocast: dtype that torch.autocast chooses for products.
        scaled: whether torch.amp.GradScaler scales the loss, and skips steps whose gradients overflow.
        remedy: against updates that do nothing: `master` weights in float32, `kahan` summation, `stochastic` rounding.
        tf32: whether products of float32 are in tf32, which CUDA alone has.
    """

    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    scaled: bool = False
    remedy: str = ""
    tf32: bool = False

    @property
    def format(self) -> str:
        """The narrowest format in it."""
        return "tf32" if self.tf32 else str(self.autocast or self.weights).removeprefix("torch.")

    def runs_on(self, device: str) -> bool:
        """Tell whether the device has its arithmetic."""
        return not self.tf32 or torch.device(device).type == "cuda"

    def products(self, device: str) -> AbstractContextManager[object]:
        """The context of a forward pass: autocast, or nothing."""
        return nullcontext() if self.autocast is None else torch.autocast(torch.device(device).type, self.autocast)

    def float32_products(self) -> AbstractContextManager[None]:
        """Products of float32 as the recipe asks for; what was set before is put back."""
        return multiplied(tf32=self.tf32)


REFERENCE = "float32"
REMEDIES = ("master", "kahan", "stochastic")
_HALF, _BRAIN = torch.float16, torch.bfloat16
RECIPES: Mapping[str, Recipe] = {
    REFERENCE: Recipe(),
    "tf32": Recipe(tf32=True),
    "bfloat16_autocast": Recipe(autocast=_BRAIN),
    "float16_scaled": Recipe(autocast=_HALF, scaled=True),
    "float16_autocast": Recipe(autocast=_HALF),
    "bfloat16": Recipe(_BRAIN),
    "float16": Recipe(_HALF),
    **{f"bfloat16_{remedy}": Recipe(_BRAIN, remedy=remedy) for remedy in REMEDIES},
    **{f"float16_{remedy}": Recipe(_HALF, remedy=remedy) for remedy in REMEDIES},
}


def kind_of(recipe: str) -> str:
    """The group in which a figure shows a recipe: by its weights, and whether it has a remedy."""
    made = RECIPES[recipe]
    if made.remedy:
        return f"{made.format} weights and a remedy"
    return "float32 weights, narrower products" if made.weights == torch.float32 else "16-bit weights, no remedy"


_OPTIMIZERS: Mapping[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {
    "sgd": lambda weights, lr: torch.optim.SGD(weights, lr, momentum=0.9, foreach=True),
    "adam": lambda weights, lr: torch.optim.Adam(weights, lr, foreach=True),
}


class Trainer:
    """A network in training; it is taken over, cast to the recipe's format, and trained in place.

    The optimizer and its state are in the format of the weights, but for `master`, which steps float32 weights and
    rounds them to those of the network. With `kahan` and `stochastic` it steps zeros: what becomes of them is the
    update, not yet rounded to the spacing of the weights.

    Args:
        model: in float32, on its device.
        recipe: the way to train it.
        optimizer: `sgd`, with momentum 0.9, or `adam`.
        lr: learning rate.
        seed: of stochastic rounding.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, optimizer: str, lr: float, seed: int = 0) -> None:
        masters = [weight.detach().clone() for weight in model.parameters()]
        self.model, self.recipe = model.to(recipe.weights), recipe
        self.weights = list(model.parameters())
        self.device = str(self.weights[0].device)
        zeros = recipe.remedy in {"kahan", "stochastic"}
        self._stepped: list[Tensor] = list(self.weights)
        if recipe.remedy:
            self._stepped = [torch.zeros_like(weight) for weight in self.weights] if zeros else masters
        self._lost = [torch.zeros_like(weight) for weight in self.weights] if recipe.remedy == "kahan" else []
        self._draws = generator(seed, Purpose.ROUNDING)
        self.optimizer = _OPTIMIZERS[optimizer](self._stepped, lr)
        self.scaler = torch.amp.GradScaler(torch.device(self.device).type, enabled=recipe.scaled)

    def value(self, loss: Loss) -> Tensor:
        """Compute something of the network, in the recipe's arithmetic."""
        with self.recipe.float32_products(), self.recipe.products(self.device):
            return loss(self.model)

    def backward(self, loss: Loss) -> Tensor:
        """The loss; its gradients, times the loss scale, are left in the weights."""
        for weight in self.weights:
            weight.grad = None
        with (
            self.recipe.float32_products()
        ):  # autocast ends before the backward pass, which follows the forward's formats
            value = self.value(loss)
            self.scaler.scale(value).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return value.detach()

    @property
    def overflowed(self) -> bool:
        """Tell whether a weight's gradient is not finite."""
        gradients = [weight.grad.flatten() for weight in self.weights if weight.grad is not None]
        return not bool(torch.cat(gradients).isfinite().all())

    @torch.no_grad()
    def update(self) -> None:
        """A step of the optimizer; the scaler leaves it out where a gradient is not finite."""
        remedy = self.recipe.remedy
        for weight, stepped in zip(self.weights, self._stepped, strict=True) if remedy else ():
            stepped.grad = None if weight.grad is None else weight.grad.to(stepped.dtype)
            if remedy != "master":
                stepped.zero_()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for place, (weight, stepped) in enumerate(zip(self.weights, self._stepped, strict=True)) if remedy else ():
            if remedy == "master":
                weight.copy_(stepped)
            elif remedy == "kahan":
                weight.copy_(self._compensated(place, stepped))
            else:
                moved = (weight.float() + stepped.float()).cpu()  # drawn on the CPU, to be the same on every device
                weight.copy_(formats.round(moved, self.recipe.format, stochastic=self._draws))

    def _compensated(self, place: int, update: Tensor) -> Tensor:
        """The weight after an update, with what earlier ones lost; what this one loses is kept."""
        weight, wanted = self.weights[place], update + self._lost[place]
        moved = weight + wanted
        self._lost[place] = wanted - (moved - weight)
        return moved

    def bytes_held(self, loss: Loss) -> int:
        """Bytes that a step needs: weights, gradients, optimizer's state, the remedy's, what autograd saves.

        After a step; buffers that an operation or autograd frees again do not count.
        """
        state = [each for kept in self.optimizer.state.values() for each in kept.values() if isinstance(each, Tensor)]
        beside = self._stepped if self.recipe.remedy == "master" else ()
        held = [*self.weights, *self.weights, *state, *self._lost, *beside]
        saved = saved_by(lambda: self.value(loss), self.weights)
        return saved + sum(int(tensor.numel() * tensor.element_size()) for tensor in held)
