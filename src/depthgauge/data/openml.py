"""Tables from OpenML, fetched through scikit-learn, cached as arrays, checked whenever they are read.

What is fetched is verified twice: scikit-learn compares the download with the checksum that OpenML publishes, and the
parsed table must show the published facts of its data set (rows, columns, examples a class, mean pixel). Then it
is kept as one `.npz` under the cache folder, with its SHA-256 beside it, which every later read compares.

The cache is `$DEPTHGAUGE_CACHE`, else `$XDG_CACHE_HOME/depthgauge`, else `~/.cache/depthgauge`. Nothing waits for
ever: a connection that is silent for 10 seconds counts as lost, and is tried three times.
"""

# ruff: noqa: PLC0415 - what only a download needs is imported for a download

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

SILENCE = 10.0  # seconds without a byte after which a connection counts as lost
ATTEMPTS = 3


class UnavailableError(OSError):
    """A data set cannot be had, from a file or from the network; the message says what to do."""


@dataclass(frozen=True)
class Table:
    """A data set on OpenML.

    Attributes:
        id: OpenML's number for one version of it.
        parse: from what scikit-learn returns to arrays; raises ValueError where a published fact does not hold.
        instead: a data set that needs no network.
        package: Debian's, which holds the same data; empty if there is none.
    """

    id: int
    parse: Callable[[Any], Arrays]
    instead: str
    package: str = ""


def _images(bunch: Any, first_counts: tuple[int, ...], mean: float) -> Arrays:
    """70,000 images of 784 pixels: `first_counts` of each class among the first 60,000, and their mean pixel."""
    pixels = np.asarray(bunch.data, dtype=np.float64)
    labels = np.asarray(bunch.target).astype(np.uint8)
    if pixels.shape != (70_000, 784) or labels.shape != (70_000,):
        raise ValueError(f"70,000 images of 784 pixels were expected, not {pixels.shape}")
    if tuple(np.bincount(labels[:60_000], minlength=10)) != first_counts:
        raise ValueError("the first 60,000 labels are not those of the published training set")
    measured = float(pixels[:60_000].mean() / 255)
    if abs(measured - mean) > 5e-5:
        raise ValueError(f"the mean training pixel is {measured:.4f} of full scale, where {mean} is published")
    return {"pixels": pixels.astype(np.uint8), "labels": labels}


def _mnist(bunch: Any) -> Arrays:
    """Counts by LeCun et al.; 0.1307 and 0.2860 are the means that torchvision's examples and models normalise with."""
    return _images(bunch, (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949), 0.1307)


def _fashion_mnist(bunch: Any) -> Arrays:
    return _images(bunch, (6000,) * 10, 0.2860)


def _house_prices(bunch: Any) -> Arrays:
    """The 79 columns that describe a house, numbers and categories apart; a missing category is the text `missing`."""
    import pandas as pd

    frame, price = bunch.data.drop(columns="Id", errors="ignore"), np.asarray(bunch.target, dtype=np.float64)
    if frame.shape != (1460, 79) or price.shape != (1460,) or not (price > 0).all():
        raise ValueError(f"1,460 houses with 79 columns and a price were expected, not {frame.shape}")
    numeric = [name for name in frame if pd.api.types.is_numeric_dtype(frame[name])]
    categories = frame.drop(columns=numeric).astype(object)
    return {
        "numbers": frame[numeric].to_numpy(np.float64),
        "categories": categories.where(categories.notna(), "missing").to_numpy(np.str_),
        "price": price,
    }


TABLES: Mapping[str, Table] = MappingProxyType(
    {
        "mnist": Table(554, _mnist, "'mnist5k'"),
        "fashion_mnist": Table(40996, _fashion_mnist, "'fashion5k'", package="dataset-fashion-mnist"),
        "house_prices": Table(42165, _house_prices, "'linear' or 'teacher'"),
    }
)


def cache_folder() -> Path:
    """Return the folder of downloads."""
    if chosen := os.environ.get("DEPTHGAUGE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "depthgauge"


def fetch(name: str, download: Callable[[int], Any] | None = None) -> Arrays:
    """The arrays of a table, from the cache, or from the network into the cache.

    Args:
        name: a key of `TABLES`.
        download: from OpenML's number to scikit-learn's Bunch; `download_openml` unless given.

    Raises:
        UnavailableError: neither the cache nor the network has it, or what came was not what was published.
    """
    from filelock import FileLock, Timeout

    folder = cache_folder()
    path = folder / f"{name}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock", timeout=300):
            stored = _read(path)
            if stored is None:
                stored = TABLES[name].parse((download or download_openml)(TABLES[name].id))
                _write(path, stored)
            return stored
    except (OSError, ValueError, Timeout) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        table = TABLES[name]
        install = f"install Debian's package {table.package}, " if table.package else ""
        raise UnavailableError(
            f"data set {name!r} is not in {folder} and could not be fetched from OpenML ({reason}): connect to the "
            f"network and ask again, {install}copy {name}.npz and {name}.sha256 from another machine's cache, or use "
            f"{table.instead}, for which no network is needed"
        ) from error


def download_openml(data_id: int) -> Any:
    """One data set from OpenML, through scikit-learn, which compares it with OpenML's checksum."""
    from sklearn.datasets import fetch_openml

    with _impatience(SILENCE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it announces every retry
        return fetch_openml(data_id=data_id, as_frame=True, cache=False, n_retries=ATTEMPTS, delay=1.0, parser="auto")


@contextlib.contextmanager
def _impatience(seconds: float) -> Iterator[None]:
    """A limit for every new connection, which urllib, and so scikit-learn, leaves unlimited."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read(path: Path) -> Arrays | None:
    """The stored arrays; `None` where there are none, or not the ones that were written."""
    digest = path.with_suffix(".sha256")
    if not (path.exists() and digest.exists()):
        return None
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest.read_text().strip():
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return dict(stored)


def _write(path: Path, arrays: Arrays) -> None:
    """Both files, each written beside and renamed: a reader finds a whole file or none."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    for target, data in (
        (path, content),
        (path.with_suffix(".sha256"), hashlib.sha256(content).hexdigest().encode()),
    ):
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as beside:
            beside.write(data)
            beside.flush()
            os.fsync(beside.fileno())
        Path(beside.name).replace(target)
