"""Errors of a training, as findings: where in the user's code, and what would help."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from depthgauge import version
from depthgauge.checking.answers import Finding, Status
from depthgauge.foreign import describe_error, original
from depthgauge.workload import WorkloadError

_OURS = str(Path(version.__file__).parent)
_PACKAGES = ("site-packages", "dist-packages", "<frozen", "<string>", "importlib")
_ADVICE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        r"Target (-?\d+) is out of bounds",
        "count the classes from 0, or give the last layer more outputs: label {0} is none of its classes 0 to C - 1",
        ("batches", "loss"),
    ),
    (
        r"index out of range in self|device-side assert",
        "an index is out of range: a token beyond the embedding's rows, or a label beyond the classes",
        ("batches", "model"),
    ),
    (
        r"expected scalar type|must have the same dtype|expected .* dtype",
        "convert inputs or weights, so that both have one format",
        ("batches", "loss"),
    ),
    (
        r"cannot be multiplied|size mismatch|must match the size|Expected input batch_size",
        "shapes do not fit: print those of the batch and of the layer before the line that raises",
        ("batches", "model"),
    ),
    (
        r"to be on the same device|weight type .* should be the same",
        "move the batch to the model's device: batch.to(device)",
        ("batches",),
    ),
    (
        r"batches are empty",
        "hand over batches that hold examples; an iterator that was gone through before is empty",
        ("batches",),
    ),
    (
        r"Expected more than 1 value per channel",
        "batch normalization needs 2 examples or more: drop the last batch (drop_last=True)",
        ("batches", "model"),
    ),
    (
        r"between 0 and 1",
        "binary_cross_entropy takes probabilities: use binary_cross_entropy_with_logits for scores",
        ("loss",),
    ),
)


def finding(error: BaseException) -> Finding:
    """`raises`, with the exception's text, its place, and where a culprit is known."""
    error = original(error)
    own = isinstance(error, WorkloadError)
    cause = error.__cause__ if own and error.__cause__ is not None else error
    text = str(error) if own else f"one pass raises {describe_error(error)}"
    at = place(cause)
    advice, where = _advised(text)
    if "batches" in text.partition(":")[0]:
        where = ("batches",)
    return Finding("raises", Status.BROKEN, f"{text} ({at})" if at else text, advice, "a pass can be made", where)


def place(error: BaseException) -> str:
    """`train.py:31`, the innermost line of the user's own code; empty where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if not _foreign(frame.filename)]
    return f"{Path(mine[-1].filename).name}:{mine[-1].lineno}" if mine else ""


def _foreign(filename: str) -> bool:
    return filename.startswith(_OURS) or any(part in filename for part in _PACKAGES)


def _advised(text: str) -> tuple[str, tuple[str, ...]]:
    for pattern, advice, where in _ADVICE:
        if match := re.search(pattern, text):
            return advice.format(*match.groups()), where
    return "", ("loss",)
