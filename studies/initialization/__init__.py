"""Choice of an initialization: which lets a signal through, and where it decides what a network ends at."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.initialization import signal, spectrum, stacks, symmetry, training, widths

STUDY = study(
    "initialization",
    "Which initialization lets a signal through a deep network, and when does it decide what the network ends at?",
    (training.PART, signal.PART, spectrum.PART, stacks.PART, symmetry.PART, widths.PART),
    topic="start",
    shown=("outcomes", "equivalence", "signal_rates", "gains"),
    caveats=(
        "One small data set, small widths, SGD with momentum; Adam, warm-up or a longer budget move what trains.",
        "Orthogonal and delta-orthogonal weights have the exact gain of the activation; LSUV sees 64 digits.",
        "Biases are zero but for PyTorch's default. One seed gives all normal schemes the same draws.",
        "Of your own model the weight layers are set that `initialization.reach` names; if none, nothing is run.",
        "The grid of learning rates ends somewhere: the table says where a better one may lie outside.",
        "Fixup here is its weights alone, without the scalar biases and factors that the architecture would need.",
        "The test set has 355 digits: one of them is 0.28 percentage points.",
    ),
)
