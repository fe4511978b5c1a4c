"""Data parallelism: is training on several devices the same as on one, and what does it buy?"""
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

STUDY = study(
    "data_parallel",
    "Is training on k devices the training of one, and what does it buy?",
    (same.PART,),
    series=2,  # the first was spent on trial runs
    caveats=(
        ("The same as one device: first gradients of small networks, in float32, by gloo on a CPU; NCCL never ran "
        "on several GPUs."),
    ),
)  # fmt: skip
