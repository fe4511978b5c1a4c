"""Data parallelism: is training on several devices the same as on one, and what does it buy?"""
"""Data parallelism: is training on several devices the training of one, and what does it buy?"""
"""Data parallelism: is it the same training, what does it buy, and what does it cost?"""
"""Data parallelism: one training on several ranks, and what it buys."""
"""Data parallelism: one device against many."""
"""Data parallelism: is training on several devices the training of one, and what does it buy?"""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.data_parallel import accumulation, rounding

STUDY = study(
    "data_parallel",
    "Is training on several devices, or in several accumulated steps, the same training as on one?",
    (accumulation.PART, rounding.PART),
    caveats=("Accumulation: small models of the next token; gradients of one step, in float32.",),
)
from depthgauge.studies.data_parallel import same
from depthgauge.studies.data_parallel import model

STUDY = study(
    "data_parallel",
    "Is training on k devices the training of one, and what does it buy?",
    (same.PART,),
    series=2,  # the first was spent on trial runs
    caveats=(
        ("The same as one device: first gradients of small networks, in float32, by gloo on a CPU; NCCL never ran "
        "on several GPUs."),
from depthgauge.studies.data_parallel import pipelines, shares, ways

STUDY = study(
    "data_parallel",
    "Is training on many devices the same training as on one, and what does it buy?",
    (ways.PART, pipelines.PART, shares.PART),
    caveats=(
        "Ways and pipelines: two ranks on one machine, one kind of network; never run on several GPUs.",
        "Shares: bytes that collectives need at the least; one kind of network, whose activations are small.",
from depthgauge.studies.data_parallel import scaling
from depthgauge.studies.data_parallel import faults

STUDY = study(
    "data_parallel",
    "Is training on several devices the same training as on one, and what does it buy?",
    (scaling.PART,),
    caveats=(
        ("Scaling: processes on one machine, which share memory, caches and power; steps on data that lie in memory, "
        "the same batch again and again, at a learning rate of 0."),
    ),
)  # fmt: skip
    (faults.PART,),
    caveats=("Faults: two to four ranks of one machine, talking by gloo; by NCCL none of it was run.",),
)
    (model.PART,),
    caveats=(
        (
            "The model: one network, by gloo over loopback where there are fewer CUDA devices than ranks; figures of "
            "more devices than were run, and of other links, are extrapolated. NCCL never ran on several GPUs."
        ),
    ),
)  # fmt: skip
