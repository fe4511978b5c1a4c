"""A training as one meets it, with three faults planted in it: `depthgauge check planted:setup` finds them."""

from __future__ import annotations

import torch
from torch import nn

from depthgauge import Training, data


class Net(nn.Module):
    """Digits, 8 x 8, through ten layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(8))
        self.last = nn.Linear(64, 10)
        self.aside = nn.Linear(64, 10)  # planted: nothing calls it, and the optimizer holds it
        for block in self.blocks:
            nn.init.normal_(block.weight, std=0.02)  # planted: a seventh of the gain that ReLU needs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 8, 8) to (N, 10)."""
        x = self.first(x.flatten(1)).relu()
        for block in self.blocks:
            x = block(x).relu()
        return self.last(x).softmax(-1)  # planted: cross-entropy takes the softmax itself


def setup() -> Training:
    """The training, as its loop would run it."""
    digits = data.load("digits").train
    examples = torch.utils.data.TensorDataset(digits.x, digits.y)
    loader = torch.utils.data.DataLoader(examples, batch_size=32, shuffle=True)
    model = Net()
    return Training(model, loader, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
