"""What a ReLU layer does to a signal."""

from depthgauge.parts import study
from rectified import signal

STUDY = study(
    "rectified",
    "How much of a signal does a ReLU layer let through?",
    (signal.PART,),
    caveats=("Weights N(0, 1 / width), no biases, one random input a network.",),
)
