"""Planted faults on which the checks are scored: number formats, repeatability. No threshold was set on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.losses import next_token
from benchmarks.fault_zoo.nets import Language, he, mlp
from benchmarks.fault_zoo.oracle import train
from benchmarks.fault_zoo.tasks import clusters, curves, digits, loader, signals, text
from depthgauge import Training

FAULTS = Faults()
_GIT = "https://github.com/"


class _Root(nn.Module):
    """Division by the root mean square, which is taken in float16."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(64))
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        halves = x.half()
        square = (halves if self.fault else halves.float()).square().mean(-1, keepdim=True)
        return self.gain * (halves / (square + 1e-3).sqrt()).float()


@FAULTS.add(("precision", r"[234].*"), ("signal", r"[234].*"), source=_GIT + "xlite-dev/LeetCUDA/pull/335")
def square_overflows(fault: bool) -> Training:
    """A normalization whose squares leave float16's range, so that it returns zeros."""
    entry = nn.Linear(32, 64)
    with torch.no_grad():
        entry.weight.mul_(3000)
    model = nn.Sequential(nn.Identity(), entry, _Root(fault), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return Training(model, loader(*clusters()), optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))


@FAULTS.add(
    ("precision", r"optimizer|.+"), ("learning_rate", r"optimizer"), ("signal", r"optimizer|.+"),
    source=_GIT + "afiaka87/glide-finetune/issues/5",
)  # fmt: skip
def adam_in_float16(fault: bool) -> Training:
    """Weights in float16, in which Adam's epsilon of 1e-8 is 0: units that are off divide 0 by 0."""
    rows, labels = clusters()
    model = he(mlp(32, 64, 2, 10))
    with torch.no_grad():
        model[1].bias[:4] = -20.0  # units that never answer, as there are in any larger network
    if fault:
        model.half()
        rows = rows.half()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]).float(), batch[1])

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-8, foreach=False)
    return Training(model, loader(rows, labels), loss, optimizer)


@FAULTS.add(("precision", r".+"), ("learning_rate", r"optimizer|model"), source=_GIT + "tianweiy/CausVid/issues/19")
def fine_tuning_in_bfloat16(fault: bool) -> Training:
    """A trained network that goes on in bfloat16 with steps below half a unit in the last place of its weights."""
    rows, values = clusters()
    before = he(mlp(32, 128, 2, 10))
    train(Training(before, loader(rows, values), optimizer=torch.optim.Adam(before.parameters(), lr=1e-3)), 100)
    before.zero_grad()
    moved = torch.randperm(10)[values]
    if fault:
        before.bfloat16()
        rows = rows.bfloat16()
    optimizer = torch.optim.SGD(before.parameters(), lr=2e-3, momentum=0.0)
    return Training(before, loader(rows, moved), optimizer=optimizer)


class _Scaled(torch.optim.Adam):
    """Adam that leaves out a step where a gradient is not finite, and divides the others by the loss scale."""

    def __init__(self, parameters: Any, scale: float) -> None:
        super().__init__(parameters, lr=2e-3)
        self.scale = scale

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        held = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
        if all(bool(each.grad.isfinite().all()) for each in held):
            for each in held:
                each.grad.div_(self.scale)
            super().step(closure)


class _Half(nn.Module):
    """A network whose middle works in float16."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(32, 64)
        self.middle = nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x).relu().half()
        x = functional.linear(x, self.middle.weight.half(), self.middle.bias.half()).relu()
        return self.head(x.float())


@FAULTS.add(
    ("precision", r".+"), ("signal", r".+"), ("learning_rate", r"optimizer|loss"),
    source=_GIT + "deepspeedai/DeepSpeed/issues/697",
)  # fmt: skip
def scale_too_large(fault: bool) -> Training:
    """A loss scale at which float16's gradients overflow in every step, so that every step is left out."""
    scale = 2.0 ** (26 if fault else 10)
    model = _Half()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return scale * functional.cross_entropy(model(batch[0]), batch[1])

    return Training(model, loader(*clusters()), loss, _Scaled(model.parameters(), scale))


class _Clipped(torch.optim.SGD):
    """SGD that clips each number of the gradient, and divides by the loss scale before that or after it."""

    def __init__(self, parameters: Any, fault: bool) -> None:
        super().__init__(parameters, lr=0.05, momentum=0.9)
        self.fault = fault

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        held = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
        if self.fault:
            nn.utils.clip_grad_value_(held, 0.5)
        for each in held:
            each.grad.div_(1024.0)
        if not self.fault:
            nn.utils.clip_grad_value_(held, 0.5)
        super().step(closure)


@FAULTS.add(
    ("precision", r"optimizer|loss"), ("learning_rate", r"optimizer|loss"), source=_GIT + "pytorch/examples/issues/1196"
)
def values_clipped_before_unscaling(fault: bool) -> Training:
    """Gradients whose numbers are clipped to 0.5 while they still hold a loss scale of 1024."""
    rows, values = curves()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return 1024.0 * functional.mse_loss(model(batch[0]), batch[1])

    model = mlp(8, 64, 2, 1, act=nn.Tanh)
    return Training(model, loader(rows, values), loss, _Clipped(model.parameters(), fault))


@FAULTS.add(("reproducibility", r"loss"), source=_GIT + "karpathy/nanochat/pull/59")
def accumulation_over_masks(fault: bool) -> Training:
    """Waves of which each micro-batch has another share masked: a mean of its means in place of one mean."""
    rows, _ = signals(count=1024)
    seen = torch.rand(len(rows), rows.shape[1]) < torch.rand(len(rows), 1) ** 2

    def loss(model: nn.Module, batch: Any) -> Tensor:
        waves, mask = batch
        errors = (model(waves)[:, :-1] - waves[:, 1:]).square().mean(2) * mask[:, 1:]
        parts = zip(errors.split(4), mask[:, 1:].split(4), strict=True) if fault else [(errors, mask[:, 1:])]
        return torch.stack([part.sum() / held.sum().clamp(min=1) for part, held in parts]).mean()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 32, batch_first=True)
            self.head = nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    model = Net()
    return Training(model, loader(rows, seen, batch=32), loss, torch.optim.Adam(model.parameters(), lr=3e-3))


class _Remembering(nn.Module):
    """A recurrent classifier that may begin each batch with the state in which it left the last one."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 32, batch_first=True)
        self.head = nn.Linear(32, 4)
        self.fault = fault
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        begun = self.state if self.fault and self.state is not None and self.state.shape[1] == len(x) else None
        out, state = self.rnn(x, begun)
        self.state = state.detach()
        return self.head(out[:, -1])


@FAULTS.add(
    ("reproducibility", r"model|rnn|state|head|loss|"), ("data", r"model|rnn|state"),
    source=_GIT + "allenai/allennlp/issues/2643",
)  # fmt: skip
def state_kept_between_batches(fault: bool) -> Training:
    """A recurrent state that goes over from a batch to the next, which has nothing to do with it."""
    model = _Remembering(fault)
    return Training(model, loader(*signals(length=12)), optimizer=torch.optim.Adam(model.parameters(), lr=3e-3))


class _Noisy(nn.Module):
    """Noise on the input while training, of torch's generator or of one that nobody seeds."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        noise = (
            torch.from_numpy(np.random.default_rng().standard_normal(x.shape)) if self.fault else torch.randn(x.shape)
        )
        return x + 0.1 * noise.to(x)


@FAULTS.add(("reproducibility", r"0|model|batches|loss"), source=_GIT + "DLTK/DLTK/issues/38")
def unseeded_noise(fault: bool) -> Training:
    """Augmentation by a generator that is made anew, from the system's entropy, in each step."""
    batches = loader(*digits())
    model = nn.Sequential(_Noisy(fault), *he(mlp(64, 64, 2, 10)))
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))


@FAULTS.add(
    ("reproducibility", r"model|blocks.*|loss|"), ("data", r"model|blocks.*|loss|batches"),
    source=_GIT + "huggingface/transformers/issues/48745",
)  # fmt: skip
def mask_forgotten(fault: bool) -> Training:
    """A language model whose attention sees the token that it is to predict."""
    model = Language(depth=1, causal=not fault)
    return Training(model, loader(text(), batch=32), next_token, torch.optim.AdamW(model.parameters(), lr=3e-3))
