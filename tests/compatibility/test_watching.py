"""`probe.watch` in the Trainers of Hugging Face and Lightning, where they are installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional

pytestmark = pytest.mark.filterwarnings("ignore")  # what these packages warn of is theirs


class _Sentences(torch.utils.data.Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = torch.randint(5, 50, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": int(tokens[0] % 2)}


def test_hugging_face(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from depthgauge.integrations.huggingface import WatchCallback

    def trained(callbacks: list[Any], steps: int) -> nn.Module:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **sizes))
        arguments = transformers.TrainingArguments(
            str(tmp_path / "out"), max_steps=steps, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=_Sentences(), callbacks=callbacks)
        trainer.train()
        return model

    path = tmp_path / "run.parquet"
    callback = WatchCallback(every=2, to=path)
    watched, bare = trained([callback], 5), trained([], 5)
    for ours, theirs in zip(watched.parameters(), bare.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    rows = pd.read_parquet(path)
    assert sorted(rows["step"].unique()) == [0, 2, 4]
    assert {"activation", "activation_gradient", "weight", "weight_gradient", "update"} == set(rows["direction"])
    assert callback.watch is not None
    assert callback.watch.first_nonfinite is None
    assert not callback.watch.alarms


def test_lightning() -> None:
    try:
        import lightning.pytorch as pl
    except ImportError:
        pl = pytest.importorskip("pytorch_lightning")
    from depthgauge.integrations.lightning import WatchCallback

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            if index == 5:
                self.net[2].weight.data[0, 0] = torch.inf
                self.net(batch[0])
                raise RuntimeError("mine")
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Logger(pl.loggers.Logger):  # type: ignore[misc, name-defined]
        name, version = "ours", "0"

        def __init__(self) -> None:
            super().__init__()
            self.logged: dict[int, dict[str, float]] = {}

        def log_hyperparams(self, *_: Any, **__: Any) -> None:
            pass

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if step is not None and "not_finite" in metrics:
                self.logged[step] = metrics

    x = torch.randn(64, 4)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8)
    frames: list[pd.DataFrame] = []
    logger, callback = Logger(), WatchCallback(every=1, to=frames.append)
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[callback], logger=logger, enable_progress_bar=False, accelerator="cpu",
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="mine") as caught:
        trainer.fit(Module(), batches)
    assert list(logger.logged) == [0, 1, 2, 3, 4, 5]
    assert "weight_gradient/net.0.weight" in logger.logged[4]
    assert logger.logged[5]["not_finite"] > 0
    assert len(frames) == 6
    assert "is the first tensor that is not finite" in caught.value.__notes__[0]


def _steps(model: nn.Module, optimizer: Any, backward: Any) -> None:
    """Two steps; in the first one the loss scale is far too large."""
    for _ in range(2):
        loss = model(torch.ones(2, 3)).sum()
        optimizer.zero_grad()
        backward(loss)
        optimizer.step()


def test_hugging_face_tells_of_no_search_for_a_loss_scale() -> None:
    pytest.importorskip("transformers")
    optimizers = pytest.importorskip("accelerate.optimizer")
    from depthgauge.integrations.huggingface import WatchCallback

    model = nn.Linear(3, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    optimizer = optimizers.AcceleratedOptimizer(torch.optim.SGD(model.parameters(), 0.1), scaler=scaler)
    callback = WatchCallback(every=1)
    callback.on_train_begin(None, SimpleNamespace(global_step=0), None, model=model, optimizer=optimizer)
    watch = callback.watch
    assert watch is not None
    _steps(model, optimizer, lambda loss: scaler.scale(loss).backward())
    assert scaler.get_scale() < 2.0**127
    assert watch.first_nonfinite is None
    model.weight.data[0, 0] = torch.nan
    _steps(model, optimizer, lambda loss: scaler.scale(loss).backward())
    callback.close()
    assert watch.first_nonfinite is not None


def test_lightning_tells_of_no_search_for_a_loss_scale() -> None:
    try:
        import lightning.pytorch as pl
    except ImportError:
        pl = pytest.importorskip("pytorch_lightning")
    from depthgauge.integrations.lightning import WatchCallback

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 1)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if index == 2:
                assert callback.watch is not None
                assert callback.watch.first_nonfinite is None
                self.net.weight.data[0, 0] = torch.nan
            return self.net(batch).sum()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    callback = WatchCallback(every=1, log=False)
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[callback], logger=False, enable_progress_bar=False, accelerator="cpu",
        enable_checkpointing=False, enable_model_summary=False,
        plugins=[pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)],
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(8, 3), batch_size=2))
    assert scaler.get_scale() < 2.0**127
    assert callback.watch is not None
    assert callback.watch.first_nonfinite is not None
