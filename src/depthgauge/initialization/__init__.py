"""Weights at the start, by name, for any module.

    from depthgauge import initialization

    initialization.apply(model, "he", seed=3)                                  # in place; returns what it left alone
    initialization.apply(model, "lsuv", batch=images[:256])
    print(initialization.reach(model))                                         # reaches 9 of 10 weight layers: not ...
    models.build("mlp", init=initialization.scheme("orthogonal", gain=2**0.5)) # where a name can stand, so can a scheme

A scheme is a function of a model and a CPU generator that sets weights in place; any such function can stand where a
name can. It sets the weights of linear maps, those of convolutions, recurrent layers and attention among them, and
zeroes their biases unless it says otherwise; embeddings keep PyTorch's N(0, 1), but for one that is tied to a linear
layer and is drawn as its weight; normalization keeps its ones and zeros. Groups of a convolution, gates, and the q, k
and v of attention are maps of their own: each has its own fans, each is orthogonal by itself. The same seed gives every
normal scheme the same draws, so that two of them differ in scale alone.
"""

from depthgauge.initialization.catalog import SCHEMES, apply, scheme
from depthgauge.initialization.drawn import draw, gains, sigmas
from depthgauge.initialization.maps import Reach, Stacked, fans, reach
from depthgauge.initialization.schemes import Init, Scheme, at_gain, gaussian

__all__ = [
    "SCHEMES",
    "Init",
    "Reach",
    "Scheme",
    "Stacked",
    "apply",
    "at_gain",
    "draw",
    "fans",
    "gains",
    "gaussian",
    "reach",
    "scheme",
    "sigmas",
]
