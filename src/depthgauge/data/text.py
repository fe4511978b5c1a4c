"""Text by character, for models of language.

plays = data.load("shakespeare", context=128)
model = models.build(
    "lstm", input_shape=plays.input_shape, vocabulary=plays.vocabulary, classes=plays.classes, each_step=True
)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from depthgauge.data import Dataset, Examples
from depthgauge.data.shipped import read


def shakespeare(*, context: int = 64) -> Dataset:
    """Seven tragedies, end to end: (N, context) characters -> those that follow; of each play the last tenth is test.

    A token is a character's place in the sorted alphabet of the training text: 73 of them, letters in both cases,
    punctuation, space, end of line, and the few digits. `truth` has `alphabet`, the characters' code points in the
    order of their tokens, and `memoryless_loss`, the cross-entropy a test character of a model that knows how often
    each character stands in the training text and nothing else.

    Args:
        context: characters an example; the rest of the text, if it does not fill one, is left out.

    Raises:
        ValueError: the text holds no example of that length.
        UnavailableError: the installed file is damaged.
    """
    stored = read("shakespeare")
    alphabet, train = np.unique(stored["train"], return_inverse=True)
    test = np.searchsorted(alphabet, stored["test"])
    longest = min(len(train), len(test)) - 1
    if not 1 <= context <= longest:
        raise ValueError(f"a context is 1 to {longest:,} characters of this text, not {context}")
    frequency = np.bincount(train, minlength=len(alphabet)) / len(train)
    return Dataset(
        "shakespeare",
        _windows(train, context),
        _windows(test, context),
        classes=len(alphabet),
        vocabulary=len(alphabet),
        truth={
            "alphabet": torch.from_numpy(alphabet.astype(np.int64)),
            "memoryless_loss": torch.tensor(-np.log(frequency[test]).mean(), dtype=torch.float32),
        },
    )


def _windows(tokens: npt.NDArray[np.int64], context: int) -> Examples:
    """End to end, none overlapping; each target is the input one character later."""
    text = torch.from_numpy(tokens.astype(np.int64))
    used = (len(text) - 1) // context * context
    return Examples(text[:used].reshape(-1, context), text[1 : used + 1].reshape(-1, context))
