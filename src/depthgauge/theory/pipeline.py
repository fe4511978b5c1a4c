"""Share of its time that a pipeline of stages stands still.

>>> pipeline_bubble(stages=2, microbatches=8)
0.1111111111111111
"""

from __future__ import annotations

from depthgauge.theory.arguments import whole


def pipeline_bubble(stages: int, microbatches: int) -> float:
    """Idle share of a pipeline's step, between 0 and 1: (k - 1) / (m + k - 1).

    Args:
        stages: k, one on each device.
        microbatches: m, parts of a batch that follow each other through the stages.

    It is exact where every stage takes as long as every other and messages take no time, for GPipe (all forward passes,
    then all backward ones) and for 1F1B, whatever a backward pass costs beside a forward one: the batch takes m + k - 1
    turns, and a stage works in m of them. With one microbatch the stages work one after another. Huang et al., "GPipe"
    (2019, arXiv:1811.06965).
    """
    k, m = whole("stages", stages), whole("microbatches", microbatches)
    return (k - 1) / (m + k - 1)
