"""Weights at the start, by name, for any module.

from depthgauge import initialization

initialization.scheme("he")(model, torch.Generator().manual_seed(0))
models.build("mlp", init=initialization.gaussian(1.5, sigma_b=0.1))      # where a name can stand, so can a scheme
"""

from depthgauge.initialization.maps import Stacked, fans
from depthgauge.initialization.schemes import SCHEMES, Init, Normal, Scheme, gaussian, scheme

__all__ = ["SCHEMES", "Init", "Normal", "Scheme", "Stacked", "fans", "gaussian", "scheme"]
