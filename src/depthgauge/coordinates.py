"""The coordinate check of a parametrization, with a verdict: does training move activations alike at every width?

    def make(width):                            # weights from torch's own generator, which is seeded for it
        model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        return Training(model, [(x, y)], optimizer=torch.optim.SGD(model.parameters(), lr=0.1))

    found = depthgauge.coordinate_check(make, widths=(64, 128, 256, 512))
    print(found)                    # `0: shrinks (slope -0.48 [-0.52, -0.44]); 2: grows (slope 0.99 [0.96, 1.02])`
    found.flat                      # False: the best learning rate will move with the width

After a few steps the change of a layer's output, root mean square over examples and units, is a power of the width. Its
exponent is 0 in the maximal update parametrization, and not in PyTorch's (Yang et al., "Tensor Programs V" 2022,
arXiv:2203.03466). Its package `mup` draws these curves and leaves it to the reader to call them flat.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from depthgauge import nested, seeding, stats
from depthgauge.architecture import layers
from depthgauge.foreign import describe_error
from depthgauge.formats.arguments import real, whole
from depthgauge.questions import ends, side
from depthgauge.restoring import random_states_kept
from depthgauge.seeding import Purpose
from depthgauge.stats import Comparison
from depthgauge.updating import clear
from depthgauge.workload import Training, WorkloadError, check_training, sentences

MARGIN = 0.15  # of the exponent: over a factor of 16 in width a change by less than half
WORDS = {1: "grows", -1: "shrinks", 0: "flat", None: "undecided"}
FEWEST_WIDTHS = 3


@dataclass(frozen=True)
class Coordinates:
    """Change of each layer's output by width.

    Attributes:
        layers: names of the weight layers, in forward order.
        widths: ascending.
        steps: updates after which the change was taken.
        change: (layers, seeds, widths) root mean square of the change over examples and units.
        slopes: layer -> exponent of the change in the width, against 0; the layers are one family.
        margin: of an exponent that counts as 0.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    steps: int
    change: NDArray[np.float64]
    slopes: dict[str, Comparison]
    margin: float

    @property
    def verdicts(self) -> dict[str, str]:
        """Layer -> `flat`, `grows`, `shrinks` or `undecided`."""
        return {name: WORDS[side(comparison)] for name, comparison in self.slopes.items()}

    @property
    def flat(self) -> bool | None:
        """Tell whether every layer is flat; None where no layer is known not to be, and not all to be."""
        found = set(self.verdicts.values())
        return True if found == {"flat"} else False if found & {"grows", "shrinks"} else None

    def to_frame(self) -> pd.DataFrame:
        """One row a layer: n, slope, ends of its interval, margin, verdict."""
        low, high = ends(1 - next(iter(self.slopes.values())).alpha)
        return pd.DataFrame(
            {
                "layer": name, "n": c.effect.n, "slope": c.effect.value, low: c.effect.low, high: c.effect.high,
                "margin": self.margin, "verdict": self.verdicts[name],
            }
            for name, c in self.slopes.items()
        )  # fmt: skip

    def change_frame(self) -> pd.DataFrame:
        """One row a layer, seed and width: the root mean square of the change."""
        return pd.DataFrame(
            (name, seed, width, float(self.change[i, seed, j]))
            for i, name in enumerate(self.layers)
            for seed in range(self.change.shape[1])
            for j, width in enumerate(self.widths)
        ).set_axis(["layer", "seed", "width", "change"], axis=1)

    def __str__(self) -> str:
        """`0: shrinks (slope -0.48 [-0.52, -0.44]); 2: grows (slope 0.99 [0.96, 1.02])`."""
        return "; ".join(
            f"{name}: {self.verdicts[name]} (slope {c.effect.value:.2f} [{c.effect.low:.2f}, {c.effect.high:.2f}])"
            for name, c in self.slopes.items()
        )


def coordinate_check(
    make: Callable[[int], Training],
    widths: Iterable[int],
    *,
    steps: int = 3,
    seeds: int = 8,
    margin: float = MARGIN,
    confidence: float = 0.95,
) -> Coordinates:
    """Train a few steps at every width, and tell of each weight layer whether its output moves alike at all of them.

    The change is that of the layer's output on the first batch. Its exponent is the slope of a line through the
    logarithms, one line a seed; the layers' intervals, by t over seeds, hold at once.

    Args:
        make: width -> a training with an optimizer; called once a width and seed, with torch's generator seeded.
        widths: three or more; the larger, the closer the exponent is to that of the limit.
        steps: updates; more of them leave the regime in which the exponent says something.
        seeds: repetitions, five or more.
        margin: exponents up to this count as 0.
        confidence: of all layers' intervals together.

    Raises:
        WorkloadError: `make` gives no training with an optimizer, layers differ between widths, or a number is out of
            range.
    """
    try:
        sizes = sorted({whole("a width", width) for width in widths})
        seeds, steps = whole("seeds", seeds, 5), whole("steps", steps)
    except (TypeError, ValueError) as error:
        raise WorkloadError(f"a coordinate check cannot be made: {error}") from error
    if len(sizes) < FEWEST_WIDTHS or not 0 < real(margin) < math.inf:
        raise WorkloadError(
            f"a coordinate check takes {FEWEST_WIDTHS} widths or more, and a margin above 0; got widths {sizes} and a "
            f"margin of {margin!r}"
        )
    stats.location.check_confidence(confidence)
    make = _distinct(make)
    columns = [[changes(make, width, seed, steps) for width in sizes] for seed in range(seeds)]
    names = tuple(columns[0][0])
    if any(tuple(each) != names for row in columns for each in row):
        raise WorkloadError("the weight layers differ between widths or seeds: only their width may")
    if not names:
        raise WorkloadError("the model has no weight layer whose output could be looked at")
    change = np.array([[[each[name] for each in row] for row in columns] for name in names])
    return Coordinates(names, tuple(sizes), steps, change, exponents(names, sizes, change, margin, confidence), margin)


def _distinct(make: Callable[[int], Training]) -> Callable[[int], Training]:
    """`make`, whose trainings must not share a model, nor have one size at two widths."""
    models: list[weakref.ref[nn.Module]] = []  # one that is gone cannot be given again
    shapes: dict[tuple[torch.Size, ...], int] = {}

    def made(width: int) -> Training:
        training = make(width)
        model: object = getattr(training, "model", None)
        if not isinstance(model, nn.Module):
            return training
        if any(each() is model for each in models):
            raise WorkloadError("it gave a model that it had given before: each call must make one anew")
        models.append(weakref.ref(model))
        lazy = any(map(nn.parameter.is_lazy, model.parameters()))
        shape = () if lazy else tuple(each.shape for each in model.parameters())
        if shape and shapes.setdefault(shape, width) != width:
            raise WorkloadError(f"it gave weights of the same shapes as at width {shapes[shape]}")
        return training

    return made


def exponents(
    names: Sequence[str], widths: Sequence[int], change: NDArray[np.float64], margin: float, confidence: float = 0.95
) -> dict[str, Comparison]:
    """Layer -> exponent of its change in the width against 0, corrected for their number.

    Args:
        names: of the layers.
        widths: (w,).
        change: (layers, seeds, w).
        margin: of an exponent that counts as 0.
        confidence: of all together.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        lines = stats.slopes(np.log(widths), np.log(change))
    slopes = np.where(lines.complete, lines.slope, math.nan)
    single = [stats.against(row, 0.0, margin=margin, confidence=confidence) for row in slopes]
    return dict(zip(names, stats.together(single), strict=True))


def changes(make: Callable[[int], Training], width: int, seed: int, steps: int) -> dict[str, float]:
    """Root mean square of the change of each weight layer's output on the first batch, by layer.

    Args:
        make: as in `coordinate_check`.
        width: handed to it.
        seed: of torch's generator.
        steps: updates between before and after.

    Raises:
        WorkloadError: `make` gives no training with an optimizer.
    """
    with random_states_kept():
        seeding.seed_globals(seed, Purpose.MODULES)
        training = _made(make, width)
        given = isinstance(training, Training)
        if not given or training.optimizer is None:
            kind = "Training without an optimizer" if given else type(training).__name__
            raise WorkloadError(f"make({width}) gave a {kind}, where a Training with an optimizer was expected")
        check_training(training)
        batch = training.first()[0]
        with sentences():
            before = _outputs(training, batch)
            for _, each in zip(range(steps), training.stream(), strict=False):
                clear(training.optimizer)
                training.value(each).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                training.update(each)
            after = _outputs(training, batch)
    found = {
        name: float((after[name].double() - value.double()).square().mean().sqrt())
        for name, value in before.items()
        if name in after
    }
    if found and not any(found.values()):
        raise WorkloadError(
            f"no layer's output changes in {steps} steps at width {width}: nothing trains, or at rate 0"
        )
    return found


def _made(make: Callable[[int], Training], width: int) -> Training:
    """What the user's function makes, or the sentence that says what it raised."""
    try:
        return make(width)
    except WorkloadError as error:
        raise WorkloadError(f"make({width}): {error}") from error
    except Exception as error:
        raise WorkloadError(f"make({width}) raised {describe_error(error)}") from error


@torch.no_grad()
def _outputs(training: Training, batch: object) -> dict[str, Tensor]:
    """Output of each weight layer on a batch, that of its last call; dropout draws the same each time."""
    outputs: dict[str, Tensor] = {}
    handles = list(_watched(training.model, outputs))
    try:
        with random_states_kept():
            seeding.seed_globals(0, Purpose.DROPOUT)
            training.value(batch)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _watched(model: nn.Module, outputs: dict[str, Tensor]) -> Iterator[torch.utils.hooks.RemovableHandle]:
    for name, layer in layers(model):

        def keep(_layer: nn.Module, _args: object, output: object, name: str = name) -> None:
            first = next((tensor for _, tensor in nested.tensors(output) if tensor.is_floating_point()), None)
            if first is not None:
                outputs[name] = first.detach().clone()

        yield layer.register_forward_hook(keep)
