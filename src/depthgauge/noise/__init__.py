"""Gradient noise scale: how many examples a batch needs until the gradient's signal is as large as its noise.

    found = noise.scale(model, loss, inputs, targets)         # loss(model, inputs, targets), a mean over examples
    print(found)                                              # noise scale 118 examples [94.3, 151] (95 %, n = 500)
    found.value, found.low, found.high, found.signal, found.noise

    noise.of_replicas(stack, x, y)                            # one a replica, of small networks trained together
    noise.from_batches(32, small_norms, 1024, big_norms)      # from norms that a training logs at two batch sizes

The scale is tr(Sigma) / |G|^2 (McCandlish et al. 2018): the variance of an example's gradient, summed over parameters,
over the squared norm of the mean gradient. Both are estimated without bias, their ratio is not clamped, and the
interval is the set of scales that the data do not reject (docs/noise.md).
"""

from __future__ import annotations

from depthgauge.noise.batches import from_batches
from depthgauge.noise.gradients import scale
from depthgauge.noise.ratio import NoiseError, NoiseScale, of_products
from depthgauge.noise.stacks import of_replicas

__all__ = ["NoiseError", "NoiseScale", "from_batches", "of_products", "of_replicas", "scale"]
