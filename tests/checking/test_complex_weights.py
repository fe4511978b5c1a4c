"""Weights and gradients of complex numbers: both parts are read, and no part is lost with a warning."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

import depthgauge
from depthgauge import Training
from depthgauge.checking import observing


class Spectral(nn.Module):
    """Mixes channels at each frequency, as a Fourier neural operator does (Li et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(1, 8), nn.Linear(8, 1)
        self.mix = nn.Parameter(0.3 * torch.randn(8, 8, 9, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.fft.rfft(self.up(x[..., None]).mT)
        h = torch.fft.irfft(torch.einsum("bif,iof->bof", h, self.mix), n=x.shape[1]).relu()
        return self.down(h.mT)[..., 0]


def training() -> Training:
    net, x = Spectral(), torch.randn(128, 16)
    batches = [(part, part * part.roll(1, 1)) for part in x.split(32)]
    return Training(net, batches, lambda m, b: functional.mse_loss(m(b[0]), b[1]), optim.Adam(net.parameters(), 1e-2))


def test_a_gradient_s_both_parts_are_read() -> None:
    asked = training()
    batch, mix = asked.first()[0], asked.model.get_parameter("mix")
    asked.value(batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert mix.grad is not None
    expected = torch.view_as_real(mix.grad)
    found = observing.look(asked).gradients["mix"]
    assert found is not None
    torch.testing.assert_close(found.rms, expected.double().square().mean().sqrt().item())
    assert found.largest == expected.abs().max().item()


def test_a_check_loses_no_imaginary_part_and_names_the_model_itself() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = depthgauge.check(training(), budget=20).answers
    assert all(
        "``" not in text for answer in answers.values() for text in (answer.says, *(f.text for f in answer.findings))
    )
    assert "the model" in answers["signal"].says
