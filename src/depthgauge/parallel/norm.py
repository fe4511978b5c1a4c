"""Batch normalization by the statistics of all ranks, on any device and backend.

    model = SyncBatchNorm.convert(model)                                # before DDP takes it
    model = nn.parallel.DistributedDataParallel(model)

`torch.nn.SyncBatchNorm` does the same on an accelerator alone: on a CPU DDP refuses it ("only work with GPU modules"),
and so does its own forward pass ("expected input tensor to be on GPU").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from depthgauge.parallel.naming import ParallelError

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class SyncBatchNorm(_BatchNorm):
    """Batch normalization over the examples of all ranks, as one device would normalize the whole batch.

    Each rank contributes its own number of examples, none included. The statistics pass gradients, by one all-gather
    forward and one all-reduce backward; weight and bias get the gradient of the rank's own examples, which DDP
    averages. In `eval`, without a process group, and in a group of one it is plain batch normalization.

    Input and output are (N, C, ...); arguments are those of `torch.nn.BatchNorm1d`, and `process_group`: the ranks that
    share their statistics; None: all.

    Raises:
        ValueError: in training, the ranks together have one value a channel, or the input has no channels.
    """

    def __init__(self, num_features: int, *, process_group: Any = None, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name, by which it may be called
        """Normalize (N, C, ...) to the same shape; every rank of the group calls it as often."""
        if not self._joint():
            return super().forward(input)
        self._check_input_dim(input)
        passed: tuple[Tensor, ...] = _Normalized.apply(input, self.eps, self.process_group)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        normalized, mean, variance, count = passed
        if self.track_running_stats:
            self._track(mean, variance * count / (count - 1))
        shape = (1, -1, *[1] * (input.dim() - 2))
        if self.weight is not None:
            normalized = normalized * self.weight.view(shape)
        if self.bias is not None:
            normalized = normalized + self.bias.view(shape)
        return normalized.to(input.dtype)

    @classmethod
    def convert(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Put this in the place of every batch normalization in a module; parameters and buffers stay the same objects.

        Args:
            module: changed in place, torch's own SyncBatchNorm included.
            process_group: the ranks that share their statistics; None: all.

        Returns:
            The module, or what takes its place where it is a batch normalization itself.

        Raises:
            ParallelError: one of them does not know its channels yet, or is of a class of the user's own; or it is no
                module.
        """
        if not isinstance(module, nn.Module):
            raise ParallelError(f"a torch.nn.Module is converted, not {module!r:.60}")
        made: dict[nn.Module, nn.Module] = {}
        for name, layer in module.named_modules():
            if isinstance(layer, _BatchNorm) and not isinstance(layer, cls):
                made[layer] = cls._of(layer, name or "the module", process_group)
        for parent in list(module.modules()):
            for name, child in parent._modules.items():  # named_children leaves out a layer that stands twice
                if child is not None and child in made:
                    setattr(parent, name, made[child])
        return made.get(module, module)

    @classmethod
    def _of(cls, layer: _BatchNorm, name: str, process_group: Any) -> SyncBatchNorm:
        if type(layer) not in _PLAIN:
            kind = type(layer).__name__
            lazy = isinstance(layer, nn.modules.lazy.LazyModuleMixin)
            why = "run one batch through it first" if lazy else "it may do more than to normalize"
            raise ParallelError(f"{name} is a {kind}, in whose place no SyncBatchNorm can stand: {why}")
        own = cls(
            layer.num_features, process_group=process_group, eps=layer.eps, momentum=layer.momentum,
            affine=False, track_running_stats=False,
        )  # fmt: skip
        own.affine, own.track_running_stats = layer.affine, layer.track_running_stats
        own.weight, own.bias = layer.weight, layer.bias
        own.running_mean, own.running_var = layer.running_mean, layer.running_var
        own.num_batches_tracked = layer.num_batches_tracked
        return own.train(layer.training)

    def _joint(self) -> bool:
        """Tell whether there are other ranks to share statistics with."""
        ready = self.training and distributed.is_available() and distributed.is_initialized()
        return ready and distributed.get_world_size(self.process_group) > 1

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's own name
        if input.dim() < 2 or input.size(1) != self.num_features:
            raise ValueError(f"an input of (N, {self.num_features}, ...) was expected, got {tuple(input.shape)}")

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None, "statistics that are tracked have buffers"
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


class _Normalized(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) over the examples of all ranks, and mean, biased variance and count."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, group: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.float() if x.dtype in {torch.float16, torch.bfloat16} else x
        mean, variance, count = _pooled(wide, group)
        if count <= 1:
            raise ValueError(f"more than 1 value a channel is needed in training, and all ranks have {int(count)}")
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale = (variance + eps).rsqrt()
        normalized = (wide - mean.to(wide).view(shape)) * scale.to(wide).view(shape)
        ctx.save_for_backward(normalized, scale, count)
        ctx.group, ctx.dtype = group, x.dtype
        ctx.mark_non_differentiable(mean, variance, count)
        return normalized, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        normalized, scale, count = ctx.saved_tensors
        rest, shape = _rest(slope), (1, -1, *[1] * (slope.dim() - 2))
        sums = torch.stack([each.sum(rest, dtype=torch.float64) for each in (slope, slope * normalized)])
        distributed.all_reduce(sums, group=ctx.group)
        first, second = (mean.to(slope).view(shape) for mean in sums / count)
        passed = (slope - first - normalized * second) * scale.to(slope).view(shape)
        return passed.to(ctx.dtype), None, None


def _pooled(x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel over all ranks, and the values a channel, in double precision.

    Squares are summed about each rank's own mean, and pooled by Chan, Golub and LeVeque (1979).
    """
    rest, channels = _rest(x), x.size(1)
    count = x.numel() // channels
    own = torch.zeros(3, channels, dtype=torch.float64, device=x.device)
    if count:
        variance, mean = (each.double() for each in torch.var_mean(x, rest, correction=0))
        own = torch.stack([mean, variance * count, torch.full_like(mean, count)])
    every = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(every, own, group=group)
    means, squares, counts = torch.stack(every).unbind(1)
    total = counts.sum(0)
    mean = (means * counts).sum(0) / total
    squared = squares.sum(0) + (counts * (means - mean) ** 2).sum(0)
    return mean, squared / total, total[0]


def _rest(x: Tensor) -> tuple[int, ...]:
    """The dimensions that are no channels."""
    return (0, *range(2, x.dim()))
