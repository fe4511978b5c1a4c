"""Number formats that a training can bear.

Where numbers leave a format's range, what a step is too small to change, what is clipped before it is unscaled, what 16
bits do to the gradient, and whether this device is faster with them.
"""

from __future__ import annotations

from depthgauge.checking.answers import TRIFLE, Kind
from depthgauge.checking.question import Question
from depthgauge.checking.questions.precision.asking import ID, TEXT, ask
from depthgauge.checking.questions.precision.figure import draw

_TRIFLE = f"below {1e3 * TRIFLE:g} ms a pass it is told and the question fine"

KINDS = {
    "nonfinite": Kind(
        "fault", "loss or gradient is infinite or NaN at the weights as they are; where it begins is named"
    ),
    "overflow": Kind(
        "fault", "a 16-bit format makes loss or gradient infinite or NaN, and the same pass in float32 does not"
    ),
    "lost_epsilon": Kind(
        "fault",
        "a number that guards a division, root or logarithm is 0 in the format it is added in (float16: at most 2^-25);"
        " Adam's epsilon, where float16 also loses the second moments",
    ),
    "coarse_numbers": Kind(
        "fault",
        "numbers beyond a format's whole ones (2^24 in float32) are taken for indices; or in rows of rising numbers, of"
        " 8 or more, a quarter of the neighbours or more are equal in a format and not before it, or are equal while"
        " others are a single step of the format apart",
    ),
    "lost_updates": Kind(
        "fault",
        "a step leaves half or more of the 16-bit weights that have a gradient as they were, and the loss falls less"
        " than 0.8 times as far as with float32 weights, tried (without time for that: 80 % or more; calibrated on"
        " networks in bfloat16, which fell by 0.05 to 0.78 of it); 80 % of float32 weights only where the optimizer's"
        " steps keep their size",
    ),
    "clipped_scaled": Kind(
        "fault",
        "the step divides gradients by S >= 16 and a share below S^(-1/2) gets through its clipping: clipping after it"
        " leaves about 1, before it about 1/S",
    ),
    "underflow": Kind("fault", "at least half of the gradients that float32 holds are 0 in float16"),
    "small_gradients": Kind("property", "over 1 % of all gradients, and under half, are 0 in float16"),
    "scale_search": Kind("property", "gradients overflow at first and the steps go on: a loss scaler finds its scale"),
    "near_overflow": Kind("fault", "float16 numbers exceed half of 65504 in one batch; 1000 reach 1.3 times as far"),
    "headroom": Kind("property", "float16 numbers exceed a sixteenth of 65504: four doublings are left"),
    "rounding": Kind("property", "a 16-bit format changes the gradient by more than the draw of the batch does"),
    "still_parameters": Kind("property", "a step leaves more than half of a parameter's 16-bit weights as they were"),
    "stalled_average": Kind(
        "property", "1 - betas[1] is at most 2^-(bits + 2) of a 16-bit format, so that second moments never fall"
    ),
    "lost_decay": Kind("property", "rate times weight decay is rounded away in 90 % of a parameter's weights"),
    "large_epsilon": Kind("property", "the optimizer's epsilon exceeds the gradients of most parameters"),
    "faster_format": Kind(
        "opportunity", f"the interval of the time in bfloat16 over float32 lies below 1/1.1; {_TRIFLE}"
    ),
    "slower_format": Kind(
        "opportunity", f"the interval of the time in the present format over float32 lies above 1.1; {_TRIFLE}"
    ),
}  # fmt: skip

QUESTION = Question(ID, TEXT, ask, share=1.5, kinds=KINDS, draw=draw)
