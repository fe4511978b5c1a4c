"""Data parallelism: is training on several devices the training of one, and what does it buy?"""

from __future__ import annotations

from depthgauge.parts import study
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
