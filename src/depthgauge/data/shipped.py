"""The data that come with depthgauge itself: compressed arrays beside this file, checked whenever they are read.

`files/NAME.LICENSE.txt` says whose they are. `depthgauge.data.making` makes them from their sources.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

import numpy as np

from depthgauge.data.openml import Arrays, UnavailableError

# SHA-256 of each `files/NAME.npz`.
DIGESTS: Mapping[str, str] = MappingProxyType(
    {
        "fashion5k": "55f5d71b600ef0208676b93193baed46c3867ddfde6a625abba51dded045111a",
        "shakespeare": "b03b37ff24960936eb6c6599524c9f4fe55934848c5ac1149cc220a30b91443b",
    }
)


def read(name: str) -> Arrays:
    """The arrays of a file that is shipped.

    Raises:
        UnavailableError: the file is missing, or is not the one that was shipped.
    """
    path = files("depthgauge.data") / "files" / f"{name}.npz"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read ({error}): install depthgauge again") from error
    if hashlib.sha256(content).hexdigest() != DIGESTS[name]:
        raise UnavailableError(f"{path} is not the file that depthgauge ships: install depthgauge again")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return dict(stored)
