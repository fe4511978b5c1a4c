"""Fashion-MNIST as Debian's package `dataset-fashion-mnist` installs it: four gzipped IDX files, read and checked.

An IDX file is a magic number (two zero bytes, 8 for unsigned bytes, the number of dimensions), each dimension as a
big-endian 32-bit number, and the bytes. Here all of that is known beforehand, so nothing is believed: no more is
unpacked than the published file holds, and header, size and SHA-256 must be the published ones.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from depthgauge.data.openml import Arrays, UnavailableError

FOLDER = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"


@dataclass(frozen=True)
class File:
    """One IDX file of unsigned bytes.

    Attributes:
        name: the gzipped file's name.
        shape: the array's shape.
        sha256: SHA-256 of the unpacked file, header included.
    """

    name: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def header(self) -> bytes:
        """Magic number and dimensions."""
        return struct.pack(f">HBB{len(self.shape)}I", 0, 8, len(self.shape), *self.shape)


TRAIN = (
    File(
        "train-images-idx3-ubyte.gz",
        (60_000, 28, 28),
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    File("train-labels-idx1-ubyte.gz", (60_000,), "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
)
TEST = (
    File(
        "t10k-images-idx3-ubyte.gz",
        (10_000, 28, 28),
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    File("t10k-labels-idx1-ubyte.gz", (10_000,), "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
)


def installed() -> Arrays | None:
    """`pixels` (70,000, 784) and `labels` (70,000,), uint8, training images first; `None` without the package.

    Raises:
        UnavailableError: a file is there and is not the published one.
    """
    if not all((FOLDER / file.name).is_file() for file in (*TRAIN, *TEST)):
        return None
    pixels, labels = (np.concatenate([_read(a), _read(b)]) for a, b in zip(TRAIN, TEST, strict=True))
    return {"pixels": pixels.reshape(len(pixels), -1), "labels": labels}


def _read(file: File) -> npt.NDArray[np.uint8]:
    path = FOLDER / file.name
    size = len(file.header) + math.prod(file.shape)
    try:
        with gzip.open(path) as packed:
            content = packed.read(size + 1)  # one byte more than there may be: a longer file is noticed, not unpacked
    except (OSError, EOFError, zlib.error) as error:
        raise _not_published(path, str(error)) from error
    if not content.startswith(file.header):
        raise _not_published(path, f"its first bytes are {content[: len(file.header)].hex()}, not {file.header.hex()}")
    if len(content) != size:
        held = "more" if len(content) > size else f"{len(content):,}"
        raise _not_published(path, f"it holds {held} bytes, where {size:,} are published")
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise _not_published(path, "its SHA-256 is another")
    return np.frombuffer(content, np.uint8, offset=len(file.header)).reshape(file.shape)


def _not_published(path: Path, reason: str) -> UnavailableError:
    return UnavailableError(
        f"{path} is not the published file of Fashion-MNIST ({reason}): install Debian's package {PACKAGE} again, or "
        "remove it to have the data downloaded, or use 'fashion5k', which comes with depthgauge"
    )
