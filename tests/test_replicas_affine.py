"""The distance of replicas from an affine map, and the ranks of what they compute."""

from __future__ import annotations

import torch

from depthgauge import models, replicas
from depthgauge.initialization import gaussian


def test_a_deep_network_without_activation_is_affine_and_of_its_inputs_rank() -> None:
    """Inputs of rank 3 in 8 dimensions, width 20: rank 3 after four layers. With ReLU: more, and not affine."""
    x = torch.cat([torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(200, 5)], 1)
    made = (
        models.build("mlp", depth=4, width=20, activation=n, input_shape=(8,), classes=5) for n in ("identity", "relu")
    )
    plain, bent = (replicas.affinity(replicas.stack(model, [0, 1], gaussian(1.4)), x) for model in made)
    assert plain.rank.tolist() == plain.input_rank.tolist() == [3, 3]
    assert max(plain.residual) < 1e-12
    assert min(bent.rank) >= 4
    assert min(bent.residual) > 1e-3
