"""How float32 is multiplied, by either set of torch's switches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from depthgauge import float32
from depthgauge.float32 import FULL, TF32, Switches

BACKENDS: Any = torch.backends
UNTOUCHED = Switches("highest", convolutions=True, own=("none", "none", "none", "tf32", "tf32", "none", "none", "none"))


@pytest.fixture(autouse=True)
def as_torch_comes() -> Iterator[None]:
    before = float32.read()
    float32.write(UNTOUCHED)
    yield
    float32.write(before)


def everything(to: str) -> None:
    BACKENDS.fp32_precision = to


def products(to: str) -> None:
    BACKENDS.cuda.matmul.fp32_precision = to


def convolutions(to: str) -> None:
    BACKENDS.cudnn.conv.fp32_precision = to


def older(to: str) -> None:
    torch.set_float32_matmul_precision(to)
    BACKENDS.cudnn.allow_tf32 = to == "highest"


@pytest.mark.parametrize(
    ("change", "to", "seen"),
    [
        (lambda _: None, "", ("float32", "tf32")),  # torch as it comes
        (older, "high", ("tf32", "float32")),
        (older, "highest", ("float32", "tf32")),
        (everything, "tf32", ("tf32", "tf32")),
        (everything, "bf16", ("float32", "tf32")),
        (everything, "ieee", ("float32", "tf32")),
        (products, "tf32", ("tf32", "tf32")),
        (convolutions, "ieee", ("float32", "float32")),
    ],
)
def test_it_is_multiplied_as_asked_and_then_as_before(
    change: Callable[[str], None], to: str, seen: tuple[str, str]
) -> None:
    """Also where torch does not tell its older switches any more."""
    change(to)
    before = float32.read()
    assert float32.formats() == seen
    for tf32, switches in ((False, FULL), (True, TF32)):
        with float32.multiplied(tf32=tf32):
            assert float32.formats() == (("tf32",) * 2 if tf32 else ("float32",) * 2)
            assert float32.read() == switches
            assert torch.get_float32_matmul_precision() == switches.products
            assert BACKENDS.cudnn.allow_tf32 is tf32
        assert float32.read() == before
        assert float32.formats() == seen


def test_what_was_inherited_still_is() -> None:
    everything("tf32")
    with float32.multiplied(tf32=False):
        pass
    everything("none")
    assert float32.read() == UNTOUCHED


def test_an_older_switch_that_torch_does_not_tell_is_found() -> None:
    """Neither is what the newer ones say."""
    torch.set_float32_matmul_precision("high")
    BACKENDS.cudnn.allow_tf32 = False
    everything("bf16")
    for place in (BACKENDS.mkldnn.matmul, BACKENDS.cudnn.conv):
        place.fp32_precision = "bf16" if place is BACKENDS.mkldnn.matmul else "tf32"
    for switch in (torch.get_float32_matmul_precision, lambda: BACKENDS.cudnn.allow_tf32):
        with pytest.raises(RuntimeError):
            switch()
    assert float32.read() == Switches("high", convolutions=False, own=(
        "bf16", "none", "tf32", "tf32", "none", "bf16", "none", "none",
    ))  # fmt: skip
