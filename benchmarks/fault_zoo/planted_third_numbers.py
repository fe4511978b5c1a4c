"""Faults of the third set, in data, loss, rate and precision; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import nets, tasks
from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.losses import square
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


@add(("data", r"loss"), source="https://github.com/microsoft/ProDA/issues/20")
def divergence_of_probabilities(fault: bool) -> Training:
    """kl_div of the student's probabilities, where it takes their logarithm: the minimum is another one."""
    x, y = tasks.clusters()
    teacher = 6 * functional.one_hot(y, 10) + torch.randn(len(y), 10)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        rows, logits = batch
        out = model(rows)
        own = functional.softmax(out, 1) if fault else functional.log_softmax(out, 1)
        return functional.kl_div(own, functional.softmax(logits, 1), reduction="batchmean")

    net = nets.mlp(32, 64, 1, 10)
    return Training(net, tasks.loader(x, teacher), loss, optim.Adam(net.parameters(), 3e-3))


@add(
    ("data", r"loss|batches"),
    ("signal", r"\d+.*"),
    source="https://github.com/adambielski/siamese-triplet/issues/18",
)
def distance_of_equal_pairs(fault: bool) -> Training:
    """Distances by a root of squares, and pairs of equal images among the batches: gradients are NaN."""
    x, y = tasks.digits()
    other = torch.randperm(len(x))
    other[::50] = torch.arange(0, len(x), 50)
    same = (y == y[other]).float()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        a, b, alike = batch
        squares = (model(a) - model(b)).square().sum(1)
        distance = (squares if fault else squares + 1e-8).sqrt()
        return (alike * distance.square() + (1 - alike) * functional.relu(2 - distance).square()).mean()

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8, bias=False))
    return Training(net, tasks.loader(x, x[other], same, batch=128), loss, optim.Adam(net.parameters(), 2e-3))


@add(("data", r"loss|batches"), source="https://github.com/fcakyon/balanced-loss/pull/12")
def weights_of_an_absent_class(fault: bool) -> Training:
    """Class weights of 1 / count, normalized, where one class has no example: inf / inf."""
    x, y = tasks.clusters(classes=6)
    kept = y != 4
    x, y = x[kept], y[kept]
    count = y.bincount(minlength=6).float()
    weight = 1 / (count if fault else count.clamp(min=1))
    criterion = nn.CrossEntropyLoss(weight / weight.sum() * 6)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        value: Tensor = criterion(model(batch[0]), batch[1])
        return value

    net = nets.mlp(32, 48, 2, 6)
    return Training(net, tasks.loader(x, y), loss, optim.AdamW(net.parameters(), 3e-3))


@add(("data", r"batches|inputs?|x"), source="https://github.com/4uiiurz1/pytorch-nested-unet/issues/62")
def divided_by_255_twice(fault: bool) -> Training:
    """Images in [0, 1] divided by 255 once more: inputs of a few thousandths, and SGD that does not move."""
    x, y = tasks.pixels()
    x = x / 255
    net = nets.mlp(64, 64, 1, 10)
    return Training(net, tasks.loader(x / 255 if fault else x, y), None, optim.SGD(net.parameters(), 0.2, momentum=0.9))


@add(
    ("data", r"model|loss|\d+"),
    ("signal", r"model|\d+"),
    source="https://github.com/pytorch/tutorials/issues/1624",
)
def left_in_eval_by_the_loss(fault: bool) -> Training:
    """The loss looks at accuracy in eval mode first and does not turn back: batch norm is idle, dropout off."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        was = model.training
        model.eval()
        with torch.no_grad():
            model(x).argmax(1).eq(y).float().mean()
        if not fault:
            model.train(was)
        return functional.cross_entropy(model(x), y)

    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 64),
        nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    x, y = tasks.digits()
    return Training(net, tasks.loader(x, y), loss, optim.SGD(net.parameters(), 0.05, momentum=0.9))


@add(
    ("learning_rate", r"optimizer"),
    source="In kind: LambdaLR(step / warm-up) sets the rate to 0 as it is built, and the loop never steps it.",
)
def warm_up_that_never_steps(fault: bool) -> Training:
    """A warm-up that begins at 0 and is never stepped: the rate is 0 for good."""
    net = nets.Recurrent()
    adam = optim.Adam(net.parameters(), 5e-3)
    optim.lr_scheduler.LambdaLR(adam, lambda step: min(1.0, (step if fault else step + 100) / 100))
    return Training(net, tasks.loader(*tasks.signals()), None, adam)


@add(
    ("learning_rate", r"optimizer"),
    source="In kind: epsilon 1 as of a published Inception recipe, with rates that suit epsilon 1e-8.",
)
def epsilon_of_one(fault: bool) -> Training:
    """Adam with epsilon 1: far above the gradients' size, so that a step is the rate times the gradient."""
    net = nets.convnet(8)
    adam = optim.Adam(net.parameters(), 1e-3, eps=1.0 if fault else 1e-8)
    return Training(net, tasks.loader(*tasks.digits()), None, adam)


@add(
    ("learning_rate", r"optimizer"),
    ("data", r"loss|optimizer"),
    source="In kind: betas given in the wrong order.",
)
def betas_swapped(fault: bool) -> Training:
    """Adam with betas (0.999, 0.9): momentum of a thousand steps over a scale of ten, which swings."""
    net = nets.mlp(8, 64, 2, 1, act=nn.Tanh)
    adam = optim.Adam(net.parameters(), 3e-3, betas=(0.999, 0.9) if fault else (0.9, 0.999))
    return Training(net, tasks.loader(*tasks.curves()), square, adam)


@add(
    ("learning_rate", r"optimizer"),
    ("data", r"loss|optimizer"),
    source="In kind: AdamW's decay of 0.5 given to Adam, where it is a penalty that is normalized with the gradient.",
)
def decay_stronger_than_the_loss(fault: bool) -> Training:
    """Adam with a squared penalty of 0.5 a weight: the penalty outweighs the loss, and weights go to 0."""
    net = nets.mlp(64, 64, 2, 10)
    adam = optim.Adam(net.parameters(), 3e-3, weight_decay=0.5 if fault else 1e-5)
    return Training(net, tasks.loader(*tasks.digits()), None, adam)


class ClippedSGD(optim.SGD):
    """SGD that clips the gradient's norm itself."""

    def __init__(self, params: Any, lr: float, max_norm: float) -> None:
        super().__init__(params, lr=lr, momentum=0.9)
        self.max_norm = max_norm

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], self.max_norm)
        return super().step(closure)


@add(
    ("learning_rate", r"optimizer"),
    ("data", r"loss|optimizer"),
    source="In kind: a clipping norm given per value (1e-4), taken for the norm of the whole gradient.",
)
def clipped_to_nothing(fault: bool) -> Training:
    """Gradients clipped to a norm of 1e-4: each step moves all weights together by a hundred-thousandth."""
    net = nets.Language()
    return Training(
        net, tasks.loader(tasks.text()), next_token, ClippedSGD(net.parameters(), 0.1, 1e-4 if fault else 1.0)
    )


def next_token(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0])[:, :-1].transpose(1, 2), batch[0][:, 1:])


@add(
    ("data", r"loss"),
    ("signal", r".*"),
    source="In kind: an error about requires_grad, silenced by torch.tensor(loss.item(), requires_grad=True).",
)
def loss_wrapped_anew(fault: bool) -> Training:
    """The loss made a new leaf of its number: the backward pass ends there."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        value = functional.l1_loss(model(batch[0]), batch[1])
        return torch.tensor(value.item(), requires_grad=True) if fault else value

    net = nets.mlp(8, 64, 2, 1, act=nn.SiLU)
    return Training(net, tasks.loader(*tasks.curves()), loss, optim.RMSprop(net.parameters(), 1e-3))


@add(
    ("data", r"loss|\d+|model"),
    source="In kind: sigmoid in the model and BCEWithLogitsLoss after it, for several labels an example.",
)
def sigmoid_before_logits_loss(fault: bool) -> Training:
    """A sigmoid before the loss that has its own: scores in (0, 1), so that no label can be denied."""
    x = torch.randn(2048, 24)
    labels = (x @ torch.randn(24, 12) > 3).float()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

    net = nets.mlp(24, 64, 1, 12)
    if fault:
        net.append(nn.Sigmoid())
    return Training(net, tasks.loader(x, labels), loss, optim.Adam(net.parameters(), 3e-3))


@add(
    ("data", r"batches|loss|targets?|y"),
    source="In kind: house prices in dollars as targets of a mean square, and Adam's default rate.",
)
def prices_in_dollars(fault: bool) -> Training:
    """Targets of 200,000 and more: Adam would take a hundred thousand steps to reach them."""
    x, y = tasks.curves()
    net = nets.mlp(8, 64, 2, 1)
    return Training(net, tasks.loader(x, 2e5 + 8e4 * y if fault else y), square, optim.Adam(net.parameters(), 3e-3))


@add(
    ("data", r"batches|loss|labels?|y"),
    source="In kind: features and labels shuffled each by a permutation of its own.",
)
def labels_shuffled_apart(fault: bool) -> Training:
    """Images and labels permuted apart: there is nothing to learn but the classes' frequencies."""
    x, y = tasks.digits()
    net = nets.convnet(8)
    rows = tasks.loader(x, y[torch.randperm(len(y))] if fault else y)
    return Training(net, rows, None, optim.AdamW(net.parameters(), 2e-3))


@add(
    ("data", r"batches|loss|labels?|y"),
    source="In kind: a folder read class by class, and a loader that does not shuffle.",
)
def one_class_a_batch(fault: bool) -> Training:
    """Examples in the order of their classes, not shuffled: a batch holds one class, and the network forgets."""
    x, y = tasks.clusters()
    order = y.argsort() if fault else torch.arange(len(y))
    net = nets.mlp(32, 64, 1, 10)
    return Training(net, tasks.loader(x[order], y[order], shuffle=False), None, optim.Adam(net.parameters(), 5e-3))


class SignDescent(optim.Optimizer):
    """Each weight moves by the rate against its gradient's sign."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override] # noqa: ARG002 - torch asks for it
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad.sign())


@add(
    ("precision", r".*"),
    source="In kind: the whole model in bfloat16, and updates below half a unit in the last place of its weights.",
)
def steps_lost_in_bfloat16(fault: bool) -> Training:
    """Weights of about 0.1 to 1 in bfloat16 and steps of 2e-4: most updates round away."""
    dtype = torch.bfloat16 if fault else torch.float32
    x, y = tasks.digits()
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(),
        nn.Linear(64, 10),
    ).to(dtype)  # fmt: skip
    return Training(net, tasks.loader(x.to(dtype), y), None, SignDescent(net.parameters(), 2e-4))


@add(
    ("data", r"loss|batches"),
    ("precision", r"loss|.*"),
    source="In kind: a contrastive loss by exp, sum and log of its own, at a low temperature.",
)
def exponential_overflows(fault: bool) -> Training:
    """exp(cosine / 0.01) by hand: e^100 is beyond float32, and the loss not a number."""
    x = torch.randn(1536, 32)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        (rows,) = batch
        a, b = (functional.normalize(model(rows + 0.2 * torch.randn_like(rows)), dim=1) for _ in range(2))
        scores = a @ b.T / (0.01 if fault else 0.2)
        return -(scores.diagonal().exp() / scores.exp().sum(1)).log().mean()

    net = nets.mlp(32, 64, 1, 16)
    return Training(net, tasks.loader(x), loss, optim.Adam(net.parameters(), 1e-3))


@add(
    ("data", r"loss"),
    ("learning_rate", r"optimizer"),
    source="In kind: a quantile loss that lost one of its two branches.",
)
def quantile_with_one_branch(fault: bool) -> Training:
    """0.9 times the error, without the branch for errors below 0: the more is predicted the better."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        error = batch[1] - model(batch[0])
        return (0.9 * error if fault else torch.maximum(0.9 * error, -0.1 * error)).mean()

    net = nets.mlp(8, 64, 2, 1)
    return Training(net, tasks.loader(*tasks.curves()), loss, optim.Adam(net.parameters(), 3e-3))


@add(
    ("data", r"batches|inputs?|x"),
    source="In kind: astype(uint8) on images that are in [0, 1] already.",
)
def cast_to_whole_numbers(fault: bool) -> Training:
    """Images in [0, 1] cast to bytes and back: all that is not quite white is black."""
    x, y = tasks.pixels()
    x = x / 255
    x = x.to(torch.uint8).float() if fault else x
    net = nets.convnet(8)
    return Training(net, tasks.loader(x - 0.3, y), None, optim.AdamW(net.parameters(), 3e-3))


@add(
    ("data", r"loss|batches|labels?"),
    source="In kind: labels set to -100 where the mask is 1, not where it is 0: only padding is scored.",
)
def only_padding_is_scored(fault: bool) -> Training:
    """The mask of a language model's labels is inverted: it learns to say padding after padding."""
    tokens = tasks.text()
    real = torch.arange(24)[None] < torch.randint(12, 24, (len(tokens), 1))
    tokens = torch.where(real, tokens, 0)
    labels = torch.where(~real if fault else real, tokens, -100)
    batches = [{"ids": tokens[i : i + 64], "labels": labels[i : i + 64]} for i in range(0, 768, 64)]

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        scores = model(batch["ids"])[:, :-1].transpose(1, 2)
        return functional.cross_entropy(scores, batch["labels"][:, 1:], ignore_index=-100)

    net = nets.Language()
    return Training(net, batches, loss, optim.AdamW(net.parameters(), 3e-3))


class NumpyNoise(nn.Module):
    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.fault:
            return x + 0.3 * torch.from_numpy(np.random.default_rng().standard_normal(x.shape)).to(x)
        return x + 0.3 * torch.randn_like(x)


@add(
    ("reproducibility", r"0|1|model|loss"),
    source="In kind: augmentation from default_rng() without a seed, in a project that seeds all else.",
)
def noise_without_a_seed(fault: bool) -> Training:
    """Noise from a generator that no seed reaches: equal runs end differently."""
    net = nn.Sequential(NumpyNoise(fault), nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return Training(net, tasks.loader(*tasks.digits()), None, optim.Adam(net.parameters(), 2e-3))
