"""Signals at each weight layer of a model at initialization: the measurement of `architectures`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from depthgauge import data, models, nested, probe
from depthgauge.factories import Input, is_factory
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Rows, StudyError
from depthgauge.workload import Inputs, Training, WorkloadError, moved


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Signal and gradient of each call of a weight layer (`probe.weight_layers`), in one pass."""
    for case in cases:
        training = _training(case, context.device)
        batch = moved(training.first()[0], context.device)
        source = batch.source if isinstance(batch, Inputs) else "the first batch of its own training"
        yield case.rows("fed", nested.examples(batch), layer=f"{source} ({nested.describe(batch)})")
        frame = probe.weight_layers(training.model, batch, partial(_loss, training, case.text("model")))
        for metric, direction in (("second_moment", "forward"), ("second_moment", "backward"), ("elements", None)):
            own = frame[frame["direction"] == (direction or "forward")]
            at: dict[str, Any] = {"layer": own["layer"].tolist(), "layer_index": own["layer_index"].to_numpy()}
            yield case.rows(metric, own[metric].to_numpy(), **at, direction=direction)


def _loss(training: Training, spec: str, _: torch.nn.Module, batch: Any) -> torch.Tensor:
    try:
        return training.value(batch)
    except WorkloadError as error:  # a sentence already, and not one about the input
        raise StudyError(f"{spec}, fed {nested.describe(batch)}: {error}") from error
    except Exception as error:
        whole = re.search(r"\b(Long|Int|int64)\b", str(error))  # torch's words for what an embedding wants
        option = "--tokens, for it wants token ids" if whole else "an --input-shape"
        raise StudyError(
            f"{spec} does not take {nested.describe(batch)} ({type(error).__name__}: {error}); give its factory a"
            f" parameter input_shape, the module an example_input_array, or the command {option}"
        ) from error


def _training(case: Case, device: str) -> Training:
    """Models of ours as their small preset has them; a user's own, fit for digits as far as its factory allows."""
    spec, batch, asked = case.text("model"), case.integer("batch"), case.get("input")
    sample, cotangent = (generator(case.random_seed("seed"), use) for use in (Purpose.SAMPLE, Purpose.COTANGENT))
    digits = data.load("mnist5k").train
    x, _ = digits[torch.randperm(len(digits), generator=sample)[:batch]]

    def functional(model: torch.nn.Module, fed: Inputs) -> torch.Tensor:
        scores = nested.scores(fed.call(model))
        return (scores * torch.randn(scores.shape, generator=cotangent).to(scores)).sum()

    fit: dict[str, Any] = {"input_shape": tuple(x.shape[1:])} if is_factory(spec) and asked is None else {}
    return models.training(
        spec, preset="small", batch=batch, device=device, data=Inputs((x,), {}, "real digits"), loss=functional,
        seed=case.random_seed("model", "seed"),  # the same with and without what is compared
        asked=None if asked is None else Input.parse(str(asked)), **fit, **case.given("norm", "residual"),
    )  # fmt: skip
