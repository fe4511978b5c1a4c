"""Data parallelism: is training on several devices the training of one, and what does it buy?"""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.data_parallel import model

STUDY = study(
    "data_parallel",
    "Is training on k devices the training of one, and what does it buy?",
    (model.PART,),
    caveats=(
        (
            "The model: one network, by gloo over loopback where there are fewer CUDA devices than ranks; figures of "
            "more devices than were run, and of other links, are extrapolated. NCCL never ran on several GPUs."
        ),
    ),
)  # fmt: skip
