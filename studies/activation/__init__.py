"""Choice of an activation: what theory knows of each, how deep it trains, and what it costs.

Any callable can join: `over("relu", "my_package.my_module:snake", name="snakes")` is the study for these activations.
"""

from __future__ import annotations

from dataclasses import replace

from depthgauge.models.activations import phi
from depthgauge.parts import study
from depthgauge.studies.activation import batch_norm, elementwise, field, kinks, linear, shape, step, training, xor
from depthgauge.study import Study

QUESTION = "Which activation lets a network train, how deep, at what price, and does theory say so in advance?"
PARTS = (training.PART, shape.PART, step.PART, elementwise.PART, field.PART, batch_norm.PART, kinks.PART, linear.PART,
         xor.PART)  # fmt: skip
CAVEATS = (
    "Plain multilayer perceptrons of constant width, without normalization and without skip connections.",
    "Training by SGD with momentum 0.9, batch 32 and a fixed number of steps: another recipe may change the order.",
    "RReLU, whose slope is random, is left out. Threshold has its documented arguments, all others their defaults.",
    "Logsigmoid is softplus with both signs turned; the two count apart.",
    "Times are those of one machine, one thread and eager mode; a compiler would fuse what is timed apart here.",
)
SHOWN = ("answers", "theory")

STUDY = study("activation", QUESTION, PARTS, topic="start", caveats=CAVEATS, shown=SHOWN)


def over(*activations: str, name: str = "activation") -> Study:
    """The study for activations of your own choice, at every preset.

    Args:
        *activations: names of torch's, or `package.module:attribute`, a module class or a function of one tensor.
        name: the study's, which is that of the file.

    Raises:
        ValueError: one of them is no activation.
    """
    for spec in activations:
        phi(spec)
    parts = [
        replace(part, sizes={size: {**had, **({"activations": activations} if "activations" in had else {})}
                             for size, had in part.sizes.items()})
        for part in PARTS
    ]  # fmt: skip
    return study(name, QUESTION, parts, topic=STUDY.topic, caveats=CAVEATS, shown=SHOWN)
