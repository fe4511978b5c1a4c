"""depthgauge: what a neural network's numbers do, before the GPU-hours are spent."""

__version__ = "0.1.0"
