"""A user's training as one object, and a module's inputs.

    training = Training(model, loader, loss=lambda model, batch: mse(model(batch["x"]), batch["y"]), optimizer=adam)
    with training.untouched():                  # weights, optimizer, modes and random states are put back
        training.value(training.first()[0]).backward()

A module alone does not say what it takes; `inputs` asks it, in one order for every command and every study.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge import nested
from depthgauge.environment import memory_gib
from depthgauge.factories import Input
from depthgauge.foreign import describe_error
from depthgauge.formats.arguments import kind, real
from depthgauge.reaching import Reached
from depthgauge.restoring import random_states_kept, restored
from depthgauge.updating import copy_of, generators_of, update, version

Loss = Callable[[nn.Module, Any], Tensor]


class WorkloadError(ValueError):
    """A training or module that cannot be run; the message is one sentence for the user."""


class LoaderError(WorkloadError):
    """Batches that cannot be read."""


class OtherModelError(WorkloadError):
    """An optimizer that holds no parameter of the model."""


# -- what a module takes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a module.

    Attributes:
        args: by position.
        kwargs: by name.
        source: where they come from: `example_input_array`, `dummy_inputs`, `--input-shape`, ...
        assumed: whether nobody said so.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    assumed: bool = False

    @staticmethod
    def of(batch: object, source: str = "") -> Inputs:
        """A tensor is handed over as it is, a tuple or list by position, a mapping by name (as Lightning does)."""
        if isinstance(batch, Mapping):
            return Inputs((), dict(batch), source)
        if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
            return Inputs(tuple(batch), {}, source)
        return Inputs((batch,), {}, source)

    def __str__(self) -> str:
        """`example_input_array: int64 16 x 40`."""
        return f"{self.source}: {nested.describe(self)}"

    def first(self, count: int) -> Inputs:
        """The first examples, where all tensors have a first dimension in common that is longer."""
        args, kwargs = nested.first((self.args, dict(self.kwargs)), count)
        return replace(self, args=args, kwargs=kwargs)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Inputs:
        """On a device; floating-point tensors in a format."""
        args, kwargs = (moved(part, device, dtype) for part in (self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs)

    def call(self, model: Callable[..., Any]) -> Any:
        """Call the module on the inputs."""
        return model(*self.args, **self.kwargs)


def moved(batch: Any, device: str | torch.device, dtype: torch.dtype | None = None) -> Any:
    """A batch on a device, its floating-point tensors in a format; an object with a method `to` moves itself."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    if isinstance(batch, Inputs):
        return batch.to(device, dtype)
    if not isinstance(batch, Tensor | Mapping | list | tuple) and callable(getattr(batch, "to", None)):
        return batch.to(device)
    return nested.mapped(batch, move)


def inputs(
    model: nn.Module, *, asked: Input | None = None, count: int = 64, generator: torch.Generator
) -> Inputs | None:
    """Find a module's inputs, by the first of these that there is; None where nothing is known.

    1. what the user asked for: N(0, 1), or tokens that are equally likely;
    2. PyTorch Lightning's `example_input_array`: a tensor, a tuple (by position) or a mapping (by name);
    3. Hugging Face's `dummy_inputs`, where they hold the model's `main_input_name`; images as its configuration has
       them where that is `pixel_values`.

    Args:
        model: any module.
        asked: shape of one example, and the number of tokens there are.
        count: examples, where they are drawn; what the model brings along is taken as it is.
        generator: draws them, on the CPU.
    """
    if asked is not None:
        return Inputs((drawn(asked, count, generator),), {}, asked.source)
    example = getattr(model, "example_input_array", None)
    if example is not None:
        return Inputs.of(example, "example_input_array")
    main, dummies = getattr(model, "main_input_name", None), getattr(model, "dummy_inputs", None)
    if isinstance(dummies, Mapping) and main in {None, *dummies}:
        return Inputs.of(dummies, "dummy_inputs")
    config = getattr(model, "config", None)
    channels, size = getattr(config, "num_channels", None), getattr(config, "image_size", None)
    if main == "pixel_values" and channels and size:
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        image = drawn(Input((channels, *sides)), count, generator)
        return Inputs((), {"pixel_values": image}, "its configuration")
    return None


def drawn(asked: Input, count: int, generator: torch.Generator) -> Tensor:
    """(count, *shape): N(0, 1) float32, or int64 tokens, all equally likely; drawn on the CPU.

    Raises:
        WorkloadError: this machine's memory does not hold as many.
    """
    shape = (count, *asked.shape)
    check_size(shape)
    if asked.tokens is None:
        return torch.randn(shape, generator=generator)
    return torch.randint(asked.tokens, shape, generator=generator)


def check_size(shape: Sequence[int]) -> None:
    """Check that numbers of that shape could lie in this machine's memory at all.

    Raises:
        WorkloadError: they could not.
    """
    gib, there = 4 * math.prod(shape) >> 30, memory_gib()
    if gib > there:
        raise WorkloadError(
            f"a batch of shape {','.join(map(str, shape))} takes {gib:,} GiB, and this machine has {there:g};"
            " fewer or smaller examples would fit"
        )


# -- a training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Training:
    """A user's own training: a module, batches as its loop would hand them on, a loss and an optimizer.

    Attributes:
        model: any module.
        batches: an iterable of tensors, tuples, mappings, or of what the loss takes, read as far as `first` is asked.
        loss: `loss(model, batch)`, a scalar; None: `default_loss`.
        optimizer: built over the model's parameters, or None.
    """

    model: nn.Module
    batches: Iterable[Any]
    loss: Loss | None = None
    optimizer: torch.optim.Optimizer | None = None
    _taken: list[Any] = field(default_factory=list, init=False, repr=False)
    _writes: list[bool] = field(default_factory=list, init=False, repr=False)
    _reached: list[Reached] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise WorkloadError(f"Training takes a torch.nn.Module, not a {type(self.model).__name__}")
        if isinstance(self.batches, Tensor | Mapping | str) or not hasattr(self.batches, "__iter__"):
            raise WorkloadError(
                f"Training takes an iterable of batches, not a {type(self.batches).__name__}: one batch is [batch]"
            )
        if not (self.loss is None or callable(self.loss)):
            raise WorkloadError(f"a Training's loss is called as loss(model, batch), not a {type(self.loss).__name__}")
        if not (self.optimizer is None or all(hasattr(self.optimizer, name) for name in ("param_groups", "state"))):
            kind = type(self.optimizer).__name__
            raise WorkloadError(
                f"Training takes one torch.optim.Optimizer, not a {kind}: pass the one that updates the weights"
            )

    def first(self, count: int = 1, going: Callable[[], bool] = lambda: True) -> list[Any]:
        """The first batches, as a loop over them would get them; fewer where there are no more.

        What was taken of an iterator is kept, so that the next call begins with the same ones. Random states are left
        as they were, also where a loader shuffles.

        Args:
            count: how many, at most.
            going: asked after each batch that is read whether to go on; fewer are returned where it says no.

        Raises:
            WorkloadError: there is not even one, or the loader raises.
        """
        with random_states_kept(generators_of(self.batches)):
            try:
                if isinstance(self.batches, Iterator):
                    more = max(0, count - len(self._taken))
                    self._taken.extend(itertools.islice(_while(self.batches, going), more))
                elif len(self._taken) < count:
                    read = list(itertools.islice(_while(self.batches, going), count))
                    self._taken[:] = read if len(read) > len(self._taken) else self._taken
            except Exception as error:
                raise LoaderError(f"its batches cannot be read: {describe_error(error)}") from error
        if count and not self._taken:
            raise WorkloadError("its batches are empty: there is nothing to train on")
        return self._taken[:count]

    def known(self, count: int) -> list[Any]:
        """The first of the batches that were read already; where none was, as many are read.

        Raises:
            WorkloadError: as `first`.
        """
        return self._taken[:count] or self.first(count)

    def stream(self) -> Iterator[Any]:
        """The batches as a loop over them would get them, over and over.

        Of an iterator those that `first` has taken, or one. A loader's generators are put back when it is closed.

        Raises:
            WorkloadError: there is not even one, or the loader raises.
        """
        if isinstance(self.batches, Iterator):
            yield from itertools.cycle(self.first(max(1, len(self._taken))))
        generators = generators_of(self.batches)
        states = [generator.get_state() for generator in generators]
        try:
            while True:
                empty = True
                for batch in self.batches:
                    empty = False
                    yield batch
                if empty:
                    raise WorkloadError("its batches are empty: there is nothing to train on")
        except WorkloadError:
            raise
        except Exception as error:
            raise LoaderError(f"its batches cannot be read: {describe_error(error)}") from error
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

    def value(self, batch: Any, model: nn.Module | None = None) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            batch: one of `first`; the loss gets its own containers and objects, copies where it writes (`x.div_(255)`).
            model: in place of its own: a compiled one, a copy.

        Raises:
            WorkloadError: the loss returns something else, or no gradient can be had of it where gradients are enabled.
        """
        given = nested.copied(batch, copy_of) if self._writes in ([], [True]) else nested.copied(batch)
        tensors = [] if self._writes else nested.held(given)
        before = [version(each) for each in tensors]
        loss = default_loss if self.loss is None else self.loss  # a module without parts is false
        value = loss(self.model if model is None else model, given)
        if not isinstance(value, Tensor):
            raise WorkloadError(f"the loss is a {type(value).__name__}, where a tensor of one number was expected")
        if value.numel() != 1:
            raise WorkloadError(f"the loss has the shape {tuple(value.shape)}, where one number was expected")
        if value.is_complex():
            raise WorkloadError("the loss is complex, where a real number was expected")
        if not self._writes:
            self._writes.append(before != [version(each) for each in tensors])
        if torch.is_grad_enabled() and not value.requires_grad:
            raise WorkloadError("the loss depends on no parameter that trains, so that it has no gradient")
        return value.reshape(())

    def update(self, batch: Any) -> None:
        """Make the optimizer's step on the gradients that are there; one that takes a closure gets the batch's."""
        assert self.optimizer is not None
        update(self.optimizer, lambda: self.value(batch))

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Undo the block's changes to weights, gradients, buffers, modes, hooks, optimizer and random states.

        Also those of other modules, optimizers and schedulers that the loss or the optimizer's hooks reach.

        A lazy layer that gets its sizes within the block keeps them. Of modules' other attributes, flags are put back
        ("hooks are installed"); numbers that count calls stay changed, and lists that losses are appended to.
        """
        reached = self.reached
        with random_states_kept(), restored([*self.modules, *reached.modules], self.optimizer, *reached.steppers):
            yield

    @contextmanager
    def reaching(self) -> Iterator[Reached]:
        """Collect what it reaches, once for all that is put back within the block."""
        found = Reached.of(self.modules, self.loss, self.optimizer, self.batches)
        self._reached.append(found)
        try:
            yield found
        finally:
            self._reached.remove(found)

    @property
    def reached(self) -> Reached:
        """All that it reaches beside `modules`: as collected last by `reaching`, or now."""
        if self._reached:
            return self._reached[-1]
        return Reached.of(self.modules, self.loss, self.optimizer, self.batches)

    @property
    def writes(self) -> bool:
        """Tell whether the loss was seen to change a batch in place."""
        return True in self._writes

    @property
    def modules(self) -> list[nn.Module]:
        """The model, and the loss where it is a module."""
        return [part for part in (self.model, self.loss) if isinstance(part, nn.Module)]


def _while(batches: Iterable[Any], going: Callable[[], bool]) -> Iterator[Any]:
    for batch in batches:
        yield batch
        if not going():
            return


@contextmanager
def sentences() -> Iterator[None]:
    """Turn what a step of the user's raises within the block into one sentence.

    Raises:
        WorkloadError: in place of it.
    """
    try:
        yield
    except WorkloadError:
        raise
    except Exception as error:
        raise WorkloadError(f"a step of the training cannot be run: {describe_error(error)}") from error


def check_training(training: object) -> None:
    """Check that it is a `Training` whose optimizer is one of its model's.

    Raises:
        WorkloadError: it is none, its model has no values, or its optimizer updates another model.
    """
    if not isinstance(training, Training):
        raise WorkloadError(
            f"a depthgauge.Training was expected, not {kind(training)}: Training(model, batches, loss, optimizer)"
        )
    own = {id(each) for each in training.model.parameters()}
    if any(each.is_meta for each in training.model.parameters()):
        raise WorkloadError("the model is on the meta device, where parameters have no values")
    if training.optimizer is None:
        return
    groups = training.optimizer.param_groups
    if own and not any(id(each) in own for group in groups for each in group["params"]):
        raise OtherModelError("the optimizer holds no parameter of the model: it was built over another one, or a copy")
    for rate in (group.get("lr") for group in groups):
        if not 0 <= real(rate) < math.inf:
            raise WorkloadError(f"a rate of the optimizer is {rate!r}, where a finite number >= 0 was expected")


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of `model(x)` against `y` for (x, y); an output that has a `.loss` is used as it is.

    Scores are (N, classes, ...) against (N, ...) as in torch, or (N, ..., classes) as of language models.

    Raises:
        WorkloadError: there are no class numbers to hold it against; the message says what to give.
    """
    pair = isinstance(batch, list | tuple) and len(batch) == 2
    output = Inputs.of(batch[0] if pair else batch).call(model)
    loss = _own_loss(output)
    if loss is not None:
        return loss
    advice = "give Training a loss(model, batch)"
    if not pair or not isinstance(batch[1], Tensor):
        raise WorkloadError(f"a batch that is no pair (x, y) has no labels, and the output no loss: {advice}")
    values, labels = nested.scores(output), batch[1]
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        dtype = str(labels.dtype).removeprefix("torch.")
        raise WorkloadError(f"cross-entropy takes class numbers, and the targets are {dtype}: {advice}")
    shape = tuple(labels.shape)
    as_torch, classes_last = (values.shape[0], *values.shape[2:]) == shape, tuple(values.shape[:-1]) == shape
    if (as_torch == classes_last and values.dim() > 2) or not (as_torch or classes_last):
        raise WorkloadError(
            f"scores of shape {tuple(values.shape)} do not say which dimension the classes of targets of shape {shape}"
            f" are: {advice}"
        )
    if classes_last:
        values, labels = values.reshape(-1, values.shape[-1]), labels.reshape(-1)
    return nn.functional.cross_entropy(values, labels.long())


def _own_loss(output: Any) -> Tensor | None:
    """Return an output's own loss; a mapping is read by key, as its attributes may raise anything."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return loss if isinstance(loss, Tensor) else None


class DrawnLabels:
    """A loss for a module without data: cross-entropy of its scores against labels that are drawn once.

    Its classes are the last dimension; where that is one, the loss is the mean square. An output's own `.loss` is used
    as it is. A batch is `Inputs`.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._labels: Tensor | None = None

    def __call__(self, model: nn.Module, batch: Inputs) -> Tensor:
        """A scalar.

        Raises:
            NoTensorError: the module returns no floating-point tensor.
        """
        output = batch.call(model)
        loss = _own_loss(output)
        if loss is not None:
            return loss
        values = nested.scores(output)
        if values.dim() == 0 or values.shape[-1] == 1:
            return values.square().mean()
        values = values.reshape(-1, values.shape[-1])
        if self._labels is None or len(self._labels) != len(values):
            self._labels = torch.randint(values.shape[-1], (len(values),), generator=self._generator)
        return nn.functional.cross_entropy(values, self._labels.to(values.device))
