"""Which activation to take: what theory knows of each, how deep it trains, and what it costs.

    training       every activation at several depths, own gain and tuned learning rate: accuracy, steps, lost units
    shape          depth against width at an equal number of parameters
    linear         deep networks without activation: rank, affinity, accuracy
    xor            a perceptron and one hidden layer on the four corners
    field          the theory table: gains, growth, critical sigma_w, depth scale, predicted and measured
    batch_norm     growth of the gradient under batch normalization, by batch size
    kinks          how often a pre-activation is exactly a point without derivative, by number format
    elementwise    time of an activation against a copy of its tensor, by number format
    step           time of a training step against that with ReLU

Any callable can join: `over("relu", "my_package.my_module:snake", name="snake")` is the study for these activations.
"""

from __future__ import annotations

from dataclasses import replace

from depthgauge.parts import study
from depthgauge.studies.activation import (
    batch_norm,
    elementwise,
    field,
    functions,
    kinks,
    linear,
    shape,
    step,
    training,
    xor,
)
from depthgauge.study import Study

QUESTION = "Which activation lets a network train, how deep, at what price, and does theory say so in advance?"
PARTS = (
    training.PART, shape.PART, step.PART, elementwise.PART, field.PART, batch_norm.PART, kinks.PART, linear.PART,
    xor.PART,
)  # fmt: skip
CAVEATS = (
    "Plain multilayer perceptrons of constant width, without normalization and without skip connections.",
    (
        "Training: SGD with momentum 0.9, batch 32, a fixed number of steps; another optimizer or budget moves the "
        "order. The learning rate is the best of a grid, one rate longer where the best was its end; where it is the "
        "end again, the answers say so."
    ),
    (
        "Of torch.nn, RReLU is left out, which draws its slope at random in training. Threshold has the arguments of "
        "the example in its documentation, every other activation its defaults. Logsigmoid is softplus with both signs "
        "turned."
    ),
    "Times are those of one machine, one thread and eager mode; a compiler would fuse what is timed apart here.",
)
SHOWN = ("answers", "theory")

STUDY = study("activation", QUESTION, PARTS, caveats=CAVEATS, shown=SHOWN)


def over(*activations: str, name: str = "activation") -> Study:
    """The study for activations of your own choice, at every preset.

    In a file of yours: `STUDY = over("relu", "my_package.my_module:snake", name="snakes")`, `name` being the file's.

    Args:
        *activations: names as torch spells them, or `package.module:attribute`, a module class or a function of one
            tensor.
        name: the study's.

    Raises:
        ValueError: one of them is no activation.
    """
    for spec in activations:
        functions.phi(spec)
    parts = [
        replace(part, sizes={size: {**had, **({"activations": activations} if "activations" in had else {})}
                             for size, had in part.sizes.items()})
        for part in PARTS
    ]  # fmt: skip
    return study(name, QUESTION, parts, caveats=CAVEATS, shown=SHOWN)
