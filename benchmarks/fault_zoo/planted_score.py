"""Planted faults on which the checks are scored: signal and rate. No threshold was set on them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.losses import next_token, square
from benchmarks.fault_zoo.nets import Attention, Language, Recurrent, Residual, convnet, he, mlp
from benchmarks.fault_zoo.tasks import clusters, curves, digits, loader, signals, text
from depthgauge import Training

FAULTS = Faults()
_GIT = "https://github.com/"


# -- signal ------------------------------------------------------------------------------------------------------------


@FAULTS.add(("signal", r"\d+|model"), source=_GIT + "wkentaro/pytorch-fcn/issues/167")
def kernels_too_large(fault: bool) -> Training:
    """Convolutions without normalization whose kernels are N(0, 1)."""
    batches = loader(*digits())
    model = he(convnet(norm=False))
    if fault:
        for part in model.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight)
    return Training(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))


@FAULTS.add(("signal", r"\d+|model"), source=_GIT + "mozilla/DeepSpeech/issues/138")
def gain_too_small(fault: bool) -> Training:
    """Ten layers of tanh whose weights are N(0, 0.02^2), as of a far wider network."""
    batches = loader(*clusters())
    model = he(mlp(32, 64, 10, 10, act=nn.Tanh), gain=0.02 * 8 if fault else 1.0)
    return Training(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))


@FAULTS.add(("signal", r"[135](\..*)?|[246]"), source=_GIT + "floodsung/DDPG/issues/6")
def saturated_units(fault: bool) -> Training:
    """A layer of tanh whose inputs are so large that its units say -1 or 1 and hardly anything passes back."""
    rows, values = curves()
    model = mlp(8, 64, 3, 1, act=nn.Tanh)
    if fault:
        with torch.no_grad():
            model[3].weight.mul_(300)
    return Training(model, loader(rows, values), square, torch.optim.Adam(model.parameters(), lr=2e-3))


class _Bare(nn.Module):
    """A branch of a transformer whose skip connection may be forgotten."""

    def __init__(self, branch: nn.Module, fault: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.branch = branch
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(self.norm(x))
        return out if self.fault else x + out


class _Stack(nn.Module):
    """Twelve branches over (N, length, features), attention and two linear layers in turns."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.entry = nn.Linear(3, 32)
        self.places = nn.Parameter(torch.randn(20, 32))
        mlps = [nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)) for _ in range(6)]
        branches = [branch for each in mlps for branch in (Attention(32, 2), each)]
        self.blocks = nn.Sequential(*(_Bare(branch, fault) for branch in branches))
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.entry(x) + self.places).mean(1))


@FAULTS.add(("signal", r"blocks.*|model"), source=_GIT + "yilundu/improved_contrastive_divergence/issues/7")
def transformer_without_skips(fault: bool) -> Training:
    """A transformer whose blocks do not add what came in: attention averages the positions away."""
    model = _Stack(fault)
    return Training(model, loader(*signals(), batch=32), optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


@FAULTS.add(("signal", r"\d+(\.branch.*)?|model"), source=_GIT + "fchollet/deep-learning-models/issues/99")
def skip_scaled_for_branch(fault: bool) -> Training:
    """The factor of 0.2 for the branch is applied to the skip: after 16 blocks nothing of the input is left."""

    def block() -> nn.Module:
        last = nn.Linear(48, 48)
        nn.init.normal_(last.weight, std=0.01)
        branch = nn.Sequential(nn.Linear(48, 48), nn.ReLU(), last)
        return Residual(branch, skip=0.2 if fault else 1.0, scale=1.0 if fault else 0.2)

    batches = loader(*clusters(features=24))
    model = nn.Sequential(nn.Linear(24, 48), *(block() for _ in range(16)), nn.Linear(48, 10))
    return Training(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))


@FAULTS.add(("signal", r"\d+(\..*)?|model"), source=_GIT + "wagonhelm/NaNmnist/issues/2")
def equal_weights(fault: bool) -> Training:
    """All weights the same constant: every unit of a layer says and learns the same."""
    batches = loader(*digits())
    model = he(mlp(64, 64, 2, 10))
    if fault:
        for part in model.modules():
            if isinstance(part, nn.Linear):
                nn.init.constant_(part.weight, 0.02)
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))


class _Placed(nn.Module):
    """A recurrent classifier with a learned gate, a parameter or a plain tensor."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.filters = torch.randn(3, 24, requires_grad=True) if fault else nn.Parameter(torch.randn(3, 24))
        self.rnn = nn.GRU(24, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn((x @ self.filters).tanh())[0][:, -1])


@FAULTS.add(("signal", r"filters"), source=_GIT + "shenweichen/DeepCTR-Torch/issues/93")
def plain_tensor_for_parameter(fault: bool) -> Training:
    """A weight that is a plain tensor with requires_grad, which `parameters()` does not know."""
    model = _Placed(fault)
    return Training(model, loader(*signals()), optimizer=torch.optim.Adam(model.parameters(), lr=3e-3))


class _Ungraded(nn.Module):
    """A convolutional encoder, and a head on its features."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        net = convnet()
        self.encoder = net[:-1]
        self.head = net[-1]
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.fault and torch.is_grad_enabled()):
            features = self.encoder(x)
        return self.head(features)


@FAULTS.add(("signal", r"encoder.*"), source=_GIT + "rll-research/cic/issues/5")
def encoder_without_grad(fault: bool) -> Training:
    """An encoder called under no_grad, although the optimizer is to train it."""
    model = _Ungraded(fault)
    return Training(model, loader(*digits()), optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))


@FAULTS.add(("signal", r"optimizer|model"), ("data", r"optimizer|model"), source=_GIT + "skorch-dev/skorch/issues/317")
def optimizer_of_a_copy(fault: bool) -> Training:
    """An optimizer over the model that this one is a copy of."""
    batches = loader(*signals())
    model = Recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(copy.deepcopy(model) if fault else model, batches, optimizer=optimizer)


@FAULTS.add(("signal", r"0|rnn.*|model"), source=_GIT + "chenxie95/deeplearning_course_sjtu/issues/31")
def recurrence_explodes(fault: bool) -> Training:
    """A recurrent layer of ReLUs whose state grows by half in each of 20 steps."""
    batches = loader(*signals())

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 48, nonlinearity="relu", batch_first=True)
            self.head = nn.Linear(48, 4)
            nn.init.orthogonal_(self.rnn.weight_hh_l0, gain=2.5 if fault else 1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    model = Net()
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


# -- rate --------------------------------------------------------------------------------------------------------------


@FAULTS.add(("learning_rate", r"optimizer"), source=_GIT + "facebookresearch/detr/issues/285")
def adam_too_fast(fault: bool) -> Training:
    """Adam's rate 60 times that at which a transformer trains."""
    batches = loader(text(), batch=32)
    model = Language()
    return Training(model, batches, next_token, torch.optim.Adam(model.parameters(), lr=3e-3 * (60 if fault else 1)))


@FAULTS.add(("learning_rate", r"optimizer"), source=_GIT + "AmingWu/Single-DGOD/issues/21")
def gradient_descent_too_slow(fault: bool) -> Training:
    """A rate a hundredth of that at which convolutions train."""
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / (100 if fault else 1), momentum=0.0)
    return Training(model, loader(*digits()), optimizer=optimizer)


@FAULTS.add(("learning_rate", r"optimizer"), source=_GIT + "lucidrains/DALLE-pytorch/issues/170")
def decay_too_strong(fault: bool) -> Training:
    """A decay that takes 3 % of every weight in a step."""
    rows, values = curves()
    model = mlp(8, 64, 2, 1, act=nn.Tanh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=30.0 if fault else 0.01)
    return Training(model, loader(rows, values), square, optimizer)
