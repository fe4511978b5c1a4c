"""Remedies where a training's own code raises: the mistakes of the first minute, each with its remedy."""

from __future__ import annotations

from collections.abc import Callable

from depthgauge import nested
from depthgauge.checking.parameters import format_of
from depthgauge.foreign import as_line, contained, original
from depthgauge.workload import Training, WorkloadError


def advice(training: Training, error: BaseException) -> str:
    """Return what would mend it, as an imperative; empty where that is not known."""
    try:
        with contained():
            told = (remedy(training, original(error)) for remedy in _REMEDIES)
            return next(filter(None, told), "")
    except Exception:  # noqa: BLE001 - the training is foreign code, and the message stands without this
        return ""


def _shape(_training: Training, error: BaseException) -> str:
    if not isinstance(error, WorkloadError):
        return ""
    text = str(error)
    if text.startswith("the loss has the shape"):
        return "reduce the loss to one number, by .mean() or by leaving reduction='none' out"
    if text.startswith("the loss is a "):
        return "return the loss as the tensor that it is, without .item(), float() or .numpy()"
    if text.startswith("the loss depends on no parameter"):
        return "take torch.no_grad() and .detach() out of the loss, and let a parameter train (requires_grad)"
    return ""


def _devices(training: Training, error: BaseException) -> str:
    weights = sorted({str(each.device) for each in training.model.parameters()})
    batch = sorted({str(each.device) for _, each in nested.tensors(training.first()[0])})
    if "device" not in as_line(error) or not weights or not batch or batch == weights:
        return ""
    return (
        f"bring model and batches together: the first batch is on {' and '.join(batch)}, the weights are on"
        f' {" and ".join(weights)}; move the batch in the loss, by .to("{weights[0]}"), or give --device'
    )


def _formats(training: Training, error: BaseException) -> str:
    weights = sorted({format_of(each) for each in training.model.parameters() if each.is_floating_point()})
    tensors = [each for _, each in nested.tensors(training.first()[0])]
    batch = sorted({format_of(each) for each in tensors if each.is_floating_point()})
    text = as_line(error)
    if not ("dtype" in text or "scalar type" in text) or not weights or not batch or batch == weights:
        return ""
    return (
        f"bring model and batches to one format: the first batch is {' and '.join(batch)}, the weights are"
        f" {' and '.join(weights)}"
    )


def _unpacking(training: Training, error: BaseException) -> str:
    batch = nested.describe(training.first()[0])
    if training.loss is None and isinstance(error, TypeError):
        return f"give a loss(model, batch) that hands the module what it takes: the first batch is {batch}"
    if "shapes cannot be multiplied" in as_line(error):
        return f"make the first layer as wide as the examples: the first batch is {batch}"
    return ""


_REMEDIES: tuple[Callable[[Training, BaseException], str], ...] = (_shape, _devices, _formats, _unpacking)
