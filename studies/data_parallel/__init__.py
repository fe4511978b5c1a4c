"""Data parallelism: is training on several devices the training of one, and what does it buy?"""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.data_parallel import (
    accumulation,
    faults,
    model,
    pipelines,
    rounding,
    same,
    scaling,
    shares,
    ways,
)

STUDY = study(
    "data_parallel",
    "Is training on several devices, or in accumulated steps, the training of one, and what does it buy?",
    (
        same.PART, scaling.PART, accumulation.PART, rounding.PART, ways.PART, pipelines.PART, shares.PART, model.PART,
        faults.PART,
    ),
    topic="devices",
    series=3,  # two were spent on trial runs
    time_limit=3600,  # at `full` a network is one launch of many minutes; a rank that hangs is ended by its patience
    caveats=(
        ("The same as one device: first gradients of small networks, in float32, by gloo on a CPU; NCCL never ran "
        "on several GPUs."),
        "Ways and pipelines: two ranks on one machine, one kind of network; never run on several GPUs.",
        "Shares: bytes that collectives need at the least; one kind of network, whose activations are small.",
        ("Scaling: processes on one machine, which share memory, caches and power; steps on data that lie in memory, "
        "the same batch again and again, at a learning rate of 0."),
        ("The model: one network, by gloo over loopback where there are fewer CUDA devices than ranks; figures of "
        "more devices than were run, and of other links, are extrapolated."),
        ("Networks, sizes, rounds, margins of some claims and the statistics of `same` and `model` were set with trial "
        "runs in view, those of scaling also to reach layouts that gain; what is drawn has other seeds, what is timed "
        "has none that could be renewed."),
        "Faults: two to four ranks of one machine, talking by gloo; by NCCL none of it was run.",
    ),
)  # fmt: skip
