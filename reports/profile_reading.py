"""Notes for readers of the pages of profiles."""

from __future__ import annotations

READING = (
    (
        "Seconds of a step are taken without the profiler, in turns with steps under it; everything else is from "
        "the trace of the least disturbed turn: on a CPU each call, and each gap between two, takes its median over "
        "the traced steps. The profiler exaggerates the shares of short operators."
    ),
    (
        "An operator's time holds all that it calls: its row is what autograd hands to the device, and rows add up, "
        "with the time in which none of them runs, to the step."
    ),
    (
        "Operations are multiplications and additions of matrix products, convolutions and attention; those of others "
        "are not counted. Bytes are those that an operator must read and write, each place once: an estimate, below "
        "the truth where a kernel reads twice, above it where caches help. A kernel of several that one operator "
        "launches gets its share "
        "of both in proportion to time."
    ),
    (
        "The roofline's least time takes the bandwidth measured for as little memory as an operator could touch, half "
        "of the bytes that it moves, so that it is a bound in caches too. A share of the roofline is that least time "
        "over the time taken. The ceiling is the best matrix product of the library at hand: a convolution by a better "
        "library, or one that skips the padding or multiplies less (Winograd's), can come to more than 100 %, and its "
        "bound is then empty."
    ),
    (
        "Seconds that could be saved are those of the trace, scaled to the step without the profiler. Bounds do not "
        "overlap unless they say so."
    ),
    (
        "The batch is random, or what the module or its Training brings along, and lies on the device: loading data is "
        "not part of the step."
    ),
)
