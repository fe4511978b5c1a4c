"""The largest eigenvalues of the Hessian of a loss: its sharpness, of any module.

    from depthgauge import curvature

    found = curvature.sharpness(model, loss, inputs, targets)   # loss(model, inputs, targets) -> scalar mean
    found.value, found.residual, found.steps                    # an eigenvalue lies within the residual
    found.vector                                                # its unit eigenvector, in the parameters' shapes

Gradient descent on a quadratic is stable where its learning rate is below 2 / sharpness; what that is on a network is
measured along training by `of_replicas`, for a whole stack of networks at once.
"""

from __future__ import annotations

from depthgauge.curvature.lanczos import Lanczos
from depthgauge.curvature.products import NoHessianError
from depthgauge.curvature.results import Sharpness
from depthgauge.curvature.single import adam_preconditioner, sharpness
from depthgauge.curvature.stacks import of_replicas

__all__ = ["Lanczos", "NoHessianError", "Sharpness", "adam_preconditioner", "of_replicas", "sharpness"]
