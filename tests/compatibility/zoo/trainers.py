"""Training loops, optimizers and wrappers of other public packages."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.core_modules import perceptron
from zoo.entry import STEPS, Case, Entry, case, plain, squares


def batches(size: int = 4) -> DataLoader[Any]:
    """STEPS batches of inputs and labels."""
    count = size * STEPS
    return DataLoader(TensorDataset(torch.randn(count, 8), torch.randint(0, 4, (count,))), batch_size=size)


def lightning(**settings: Any) -> Callable[[], Case]:
    """`Trainer.fit` of a LightningModule, which owns its optimizer."""

    def build() -> Case:
        import pytorch_lightning

        class Module(pytorch_lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net, self.losses = perceptron(), []

            def forward(self, x: Tensor) -> Tensor:
                return self.net(x)

            def training_step(self, batch: Any, _number: int) -> Tensor:
                loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
                self.losses.append(loss.item())
                return loss

            def validation_step(self, batch: Any, _number: int) -> None:
                self.losses.append(self(batch[0]).sum().item())

            def configure_optimizers(self) -> Any:
                return optimizer

        model = Module()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)

        def train(case: Case) -> list[float]:
            with tempfile.TemporaryDirectory() as folder:
                loop = pytorch_lightning.Trainer(
                    default_root_dir=folder, max_epochs=2, accelerator="cpu", logger=False,
                    enable_progress_bar=False, enable_model_summary=False, **settings,
                )  # fmt: skip
                loop.fit(case.model, batches(), batches())
            return case.model.losses

        return case(model, None, train, optimizer=optimizer)

    return build


def private(*, watched: str) -> Callable[[], Case]:
    """Opacus: per-sample gradients, clipped and noised."""

    def build() -> Case:
        import opacus

        model = perceptron()
        bare = torch.optim.SGD(model.parameters(), 0.1)
        wrapped, optimizer, loader = opacus.PrivacyEngine().make_private(
            module=model,
            optimizer=bare,
            data_loader=batches(),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=False,
        )

        def train(case: Case) -> list[float]:
            losses = []
            for x, y in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(wrapped(x), y)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            return losses

        return case(wrapped, None, train, optimizer=optimizer if watched == "private" else bare)

    return build


def schedule_free() -> Case:
    import schedulefree

    model = perceptron()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.01)
    optimizer.train()

    def train(case: Case) -> list[float]:
        losses = plain(case)
        case.optimizer.eval()
        losses.append(case.loss(case.model).item())
        case.optimizer.train()
        return losses

    return case(model, squares(4, 8), train, optimizer=optimizer)


def with_optimizer(package: str, name: str, **settings: Any) -> Callable[[], Case]:
    """A plain loop with a public optimizer."""

    def build() -> Case:
        import importlib

        model = perceptron()
        make = getattr(importlib.import_module(package), name)
        return case(model, squares(4, 8), optimizer=make(model.parameters(), **settings))

    return build


def lookahead() -> Case:
    from pytorch_optimizer import Lookahead

    model = perceptron()
    return case(model, squares(4, 8), optimizer=Lookahead(torch.optim.SGD(model.parameters(), 0.05), k=2))


def sharpness() -> Case:
    """Two passes a step: up the gradient, and down from there."""
    from pytorch_optimizer import SAM

    model = perceptron()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.05)

    def train(case: Case) -> list[float]:
        losses = []
        for _ in range(STEPS):
            x = torch.randn(4, 8)
            loss = case.model(x).square().mean()
            loss.backward()
            optimizer.first_step(zero_grad=True)
            case.model(x).square().mean().backward()
            optimizer.second_step(zero_grad=True)
            losses.append(loss.item())
        return losses

    return case(model, squares(4, 8), train, optimizer=optimizer)


def moving_average() -> Case:
    from ema_pytorch import EMA

    model = perceptron()

    def train(case: Case) -> list[float]:
        average = EMA(case.model, beta=0.9, update_every=1, update_after_step=0)
        numbers = []
        for _ in range(STEPS):
            case.optimizer.zero_grad()
            loss = case.loss(case.model)
            loss.backward()
            case.optimizer.step()
            average.update()
            numbers += [loss.item(), case.loss(average).item()]
        return numbers

    return case(model, squares(4, 8), train)


def ignite() -> Case:
    from ignite.engine import create_supervised_trainer

    def train(case: Case) -> list[float]:
        losses = []
        loop = create_supervised_trainer(
            case.model, case.optimizer, nn.functional.cross_entropy,
            output_transform=lambda _x, _y, _out, loss: losses.append(loss.item()),
        )  # fmt: skip
        loop.run(batches(), max_epochs=2)
        return losses

    return case(perceptron(), squares(4, 8), train)


def skorch() -> Case:
    """skorch builds its optimizer itself, when it is initialized."""
    from skorch import NeuralNetClassifier

    net = NeuralNetClassifier(
        perceptron(), criterion=nn.CrossEntropyLoss, max_epochs=2, lr=0.1, batch_size=4, train_split=None, verbose=0
    )
    net.initialize()

    def train(_case: Case) -> list[float]:
        net.partial_fit(torch.randn(12, 8), torch.randint(0, 4, (12,)))
        return [batch["train_loss"] for epoch in net.history for batch in epoch["batches"]]

    return case(net.module_, squares(4, 8), train, optimizer=net.optimizer_)


def metrics() -> Case:
    import torchmetrics

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.accuracy = perceptron(), torchmetrics.classification.MulticlassAccuracy(num_classes=4)

        def forward(self, x: Tensor) -> Tensor:
            out = self.net(x)
            self.accuracy(out, torch.zeros(len(x), dtype=torch.long))
            return out

    return case(Net(), squares(4, 8))


TRAINERS = (
    Entry("`Trainer.fit`, validation, checkpoints", lightning(), "loop", "pytorch-lightning"),
    Entry(
        "`Trainer.fit`: accumulation, clipping",
        lightning(accumulate_grad_batches=2, gradient_clip_val=0.5, enable_checkpointing=False),
        "loop",
        "pytorch-lightning",
    ),
    Entry(
        "`Trainer.fit`: bfloat16, weight averaging off",
        lightning(precision="bf16-mixed", enable_checkpointing=False),
        "loop",
        "pytorch-lightning",
    ),
    Entry("`make_private`, its optimizer", private(watched="private"), "wrapper", "opacus"),
    Entry("`make_private`, the optimizer before it", private(watched="bare"), "wrapper", "opacus"),
    Entry("`AdamWScheduleFree`", schedule_free, "loop", "schedulefree"),
    Entry("`Lion`", with_optimizer("lion_pytorch", "Lion", lr=0.01), "loop", "lion-pytorch"),
    Entry("`Lookahead` around SGD", lookahead, "loop", "pytorch-optimizer"),
    Entry("`SAM`, two passes a step", sharpness, "loop", "pytorch-optimizer"),
    Entry("`Shampoo`", with_optimizer("pytorch_optimizer", "Shampoo", lr=0.01), "loop", "pytorch-optimizer"),
    Entry("`EMA`", moving_average, "wrapper", "ema-pytorch"),
    Entry("`create_supervised_trainer`", ignite, "loop", "pytorch-ignite"),
    Entry("`NeuralNetClassifier`", skorch, "loop", "skorch"),
    Entry("metrics inside of a model", metrics, "module", "torchmetrics"),
)
