"""The models that every study and benchmark draws on.

    model = models.build("resnet18", input_shape=(1, 28, 28), classes=10, activation="gelu", init="he", seed=3)
    models.names()
    models.layers(model)        # (("stem.conv", Conv2d), ...), in forward order
    models.build("my_project.nets:make", activation="gelu", seed=3)     # a factory of your own

Importing this package, and listing what is in it, does not import torch.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from depthgauge import seeding
from depthgauge.architecture import branch_ends, layers
from depthgauge.factories import OFFERED, Input, Target, TargetError, is_factory, line, load, resolve, signature
from depthgauge.foreign import as_line, contained, original
from depthgauge.isolation import stdout_to_stderr
from depthgauge.models.catalog import ENTRIES, Entry
from depthgauge.seeding import Purpose

if TYPE_CHECKING:
    import torch
    from torch import nn

    from depthgauge.initialization import Init
    from depthgauge.workload import Inputs, Loss, Training

__all__ = ["arguments", "branch_ends", "build", "entry", "example", "layers", "names", "target", "training"]


_IMAGES = (1, 28, 28)  # one example of what a factory is offered where nobody says anything else


def names() -> tuple[str, ...]:
    """The models that `build` knows, simplest first."""
    return tuple(ENTRIES)


def entry(name: str) -> Entry:
    """Return the catalog's entry of a model, without building the model.

    Raises:
        ValueError: there is no such model.
    """
    if name not in ENTRIES:
        raise ValueError(f"no model {name!r}; there is {', '.join(ENTRIES)}")
    return ENTRIES[name]


def target(spec: str, asked: Input | None = None) -> Target:
    """Return the target of a run, from a model's name or a factory's `package.module:factory`.

    A factory is tried once, with ten classes and the shape of 28 x 28 images, or what the user says, where it takes
    them.

    Args:
        spec: the model's name, or a factory's `package.module:factory`.
        asked: inputs that the user describes.

    Raises:
        TargetError: there is none, or what the factory makes is no `nn.Module`; the message says what would do.
    """
    if is_factory(spec):
        factory_target = replace(resolve(spec), input=asked)
        try:
            with contained():
                build(spec, input_shape=_IMAGES if asked is None else asked.shape, classes=10)
        except TargetError:
            raise
        except Exception as error:
            raised = original(error)
            told = f"{spec} raised {type(raised).__name__} when it was called: {as_line(raised)} {line(raised)}"
            raise TargetError(told.rstrip()) from error
        return factory_target
    file = f"{spec.replace('.', os.sep)}.py"
    if spec not in ENTRIES and os.path.isfile(file):  # noqa: PTH113 - a name that is too long is none, and no error
        raise TargetError(
            f"there is no model {spec!r}, but a file {file}: name what makes the model in it, {spec}:NAME"
        )
    if spec not in ENTRIES:
        near = difflib.get_close_matches(spec, ENTRIES, n=1)
        listed = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(ENTRIES)}"
        raise TargetError(f"there is no model {spec!r}; {listed} (name your own model by package.module:factory)")
    if asked is not None and asked.tokens is not None:
        raise TargetError(f"{spec} has its own vocabulary: --tokens is for your own models")
    return Target(spec, frozenset(entry(spec).arguments), input=asked)


def arguments(name: str, preset: str = "published", **parameters: Any) -> dict[str, Any]:
    """Return all arguments of the model: its defaults, overridden by the preset, then by `parameters`.

    Raises:
        ValueError: no such model or preset.
        TypeError: a parameter that this model does not have; the message names those it has.
    """
    if is_factory(name):
        return _factory_arguments(name, parameters)
    known = entry(name)
    if preset not in known.presets:
        raise ValueError(f"model {name!r} has no preset {preset!r}; it has {', '.join(known.presets)}")
    defaults = {key: value.default for key, value in inspect.signature(_declared(known)).parameters.items()}
    allowed = [key for key in defaults if key not in known.fixed]
    for key in parameters:
        if key not in allowed:
            raise TypeError(f"model {name!r} has no parameter {key!r}; it has {', '.join(allowed)}, init, seed, device")
    return {**defaults, **known.presets[preset], **parameters, **known.fixed}


def build(
    name: str,
    *,
    preset: str = "published",
    init: Init = "default",
    seed: int = 0,
    device: str | torch.device = "cpu",
    **parameters: Any,
) -> nn.Module:
    """A model, its weights drawn on the CPU from `seed`.

    Args:
        name: one of `names()`, or `package.module:factory`. The latter has no presets; it is given `input_shape`,
            `classes` and `seed` where it has parameters of these names, and anything else only if it has.
        preset: `published`: the shape of the paper or reference implementation; `small`: trains in seconds;
            `course`: the shape in the course notes, where it is another.
        init: the name of a scheme of `depthgauge.initialization`, or any `f(model, generator)` that sets the
            weights in place.
        seed: seeds the generator of the weights; the global generators are left as they were.
        device: where the model ends; `meta` holds shapes alone, draws nothing and costs no memory.
        **parameters: the model's own, over those of the preset: `input_shape`, `classes`, `activation`, ...

    Raises:
        ValueError: no such model, preset, activation, normalization or initialization, or an input that cannot pass.
        TypeError: a parameter that this model does not have; the message names those it has.
    """
    from depthgauge.workload import Training  # noqa: PLC0415 - listing models must not import torch

    made = _drawn_model(name, preset=preset, init=init, seed=seed, device=device, **parameters)
    return made.model if isinstance(made, Training) else made


def training(
    name: str,
    *,
    init: Init = "default",
    seed: int = 0,
    device: str | torch.device | None = "cpu",
    batch: int = 64,
    asked: Input | None = None,
    data: Inputs | None = None,
    loss: Loss | None = None,
    **parameters: Any,
) -> Training:
    """Return a model with one batch and a loss, or the `Training` that the factory makes.

    The batch is what the user asked for, else what the model says that it takes, else `data`, else drawn. It lies on
    the model's device.

    Args:
        name: as for `build`.
        init: as for `build`.
        seed: as for `build`.
        device: as for `build`; None leaves the model where its factory put it.
        batch: examples, where they are drawn; what a model brings along is cut to that many.
        asked: inputs that the user describes.
        data: inputs where neither the user nor the model describes any.
        loss: `loss(model, inputs)`; default: cross-entropy against labels that are drawn once.
        **parameters: as for `build`, `preset` among them.

    Raises:
        TargetError: the user's description contradicts the factory; and as `build`.
    """
    from depthgauge.workload import DrawnLabels, Inputs, Training, drawn, inputs  # noqa: PLC0415 - as above

    offered: dict[str, Any] = {"input_shape": _IMAGES, "classes": 10} if is_factory(name) else {}
    shape = {} if asked is None else {"input_shape": asked.shape}
    parameters = {**offered, **shape, **parameters}
    made = _drawn_model(name, init=init, seed=seed, device=device, **parameters)
    if isinstance(made, Training):
        if asked is not None:
            raise TargetError(f"{name} makes a Training, which has batches of its own: leave {asked.source} out")
        return made
    generator = seeding.generator(seed, Purpose.INPUTS)
    fed = inputs(made, asked=asked if is_factory(name) else None, count=batch, generator=generator)
    numbers = None if fed is not None and asked is None else _format(made)  # what a model brings along is its own
    if fed is None and asked is None:
        fed = data
    if fed is None and is_factory(name):
        fed = Inputs((drawn(Input(parameters["input_shape"]), batch, generator),), {}, "N(0, 1)", assumed=True)
    if fed is None:
        fed = Inputs((example(name, batch=batch, seed=seed, **parameters),), {}, f"{name}'s example")
    fed = fed.first(batch).to(_device(made) if device is None else device, numbers)
    return Training(made, [fed], loss or DrawnLabels(seeding.generator(seed, Purpose.LABELS)))


def _format(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of a module's first floating-point parameter, or None where it has none."""
    return next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), None)


def _device(model: nn.Module) -> torch.device | str:
    """Return the device of a module's first parameter, or the CPU where it has none."""
    return next((weight.device for weight in model.parameters()), "cpu")


def _drawn_model(
    name: str,
    *,
    preset: str = "published",
    init: Init = "default",
    seed: int,
    device: str | torch.device | None,
    **parameters: Any,
) -> nn.Module | Training:
    """Build the factory's model and draw its weights."""
    import torch  # noqa: PLC0415 - listing models must not import torch

    from depthgauge.initialization import scheme  # noqa: PLC0415 - likewise
    from depthgauge.workload import Training  # noqa: PLC0415 - likewise

    made_of = arguments(name, preset, **parameters, **({"seed": seed} if is_factory(name) else {}))
    initialize = scheme(init)
    shapes_only = device is not None and torch.device(device).type == "meta"
    # PyTorch's modules draw from the global generator as they are built; only the CPU's is touched, and put back.
    with torch.random.fork_rng(devices=[]), torch.device("meta" if shapes_only else "cpu"):
        seeding.seed_torch(seed, Purpose.MODULES)
        with stdout_to_stderr():
            made: nn.Module | Training = load(name)(**made_of) if is_factory(name) else _from_catalog(name, made_of)
        model = made.model if isinstance(made, Training) else made
        if not isinstance(model, torch.nn.Module):
            if inspect.iscoroutine(made):  # type: ignore[unreachable] # a factory is not type-checked
                made.close()  # or Python complains that nobody waited for it
            raise TargetError(
                f"{name} made a {type(made).__name__}, where a torch.nn.Module or a Training was expected"
            )
        if is_factory(name):
            _complete(model, name, parameters.get("input_shape"))
        if not shapes_only:
            initialize(model, seeding.generator(seed, Purpose.WEIGHTS))
    if device is not None:
        model.to(device)
    return made


def example(
    name: str,
    *,
    preset: str = "published",
    batch: int = 1,
    seed: int = 0,
    device: str | torch.device = "cpu",
    **parameters: Any,
) -> torch.Tensor:
    """A batch that the model of these arguments takes: N(0, 1) float32, or uniform int64 tokens, drawn on the CPU."""
    import torch  # noqa: PLC0415 - listing models must not import torch

    from depthgauge.workload import check_size  # noqa: PLC0415 - likewise

    made_of = arguments(name, preset, **parameters)
    if "input_shape" not in made_of:
        raise TargetError(f"{name} does not say what it takes: its factory has no input_shape")
    shape, vocabulary = (batch, *made_of["input_shape"]), made_of.get("vocabulary")
    if torch.device(device).type == "meta":
        return torch.empty(shape, device="meta", dtype=torch.float32 if vocabulary is None else torch.int64)
    check_size(shape)
    generator = seeding.generator(seed, Purpose.INPUTS)
    if vocabulary is None:
        return torch.randn(shape, generator=generator).to(device)
    return torch.randint(vocabulary, shape, generator=generator).to(device)


def _declared(known: Entry) -> Callable[..., Any]:
    """The function that makes the model, or the dataclass of its settings."""
    module, _, name = known.factory.partition(":")
    declared: Callable[..., Any] = getattr(import_module(module), name)
    return declared


def _from_catalog(name: str, made_of: Mapping[str, Any]) -> nn.Module:
    declared = _declared(entry(name))
    model: nn.Module = declared(**made_of).build() if isinstance(declared, type) else declared(**made_of)
    return model


def _complete(model: nn.Module, spec: str, input_shape: Sequence[int] | None) -> None:
    """Give lazy layers their sizes and weights by a first call."""
    import torch  # noqa: PLC0415 - as above

    from depthgauge.workload import Inputs, inputs  # noqa: PLC0415 - as above

    if not any(torch.nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        return
    fed = inputs(model, count=2, generator=seeding.generator(0, Purpose.INPUTS))
    if fed is None and input_shape is None:
        raise TargetError(f"{spec} has lazy layers, whose sizes follow from an input_shape: none was given")
    training = model.training
    with torch.no_grad():
        # Not in training: statistics of batches stay as they are.
        (fed or Inputs((torch.zeros(2, *(input_shape or ())),))).call(model.eval())
    model.train(training)


def _factory_arguments(spec: str, parameters: dict[str, Any]) -> dict[str, Any]:
    has = signature(spec)
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in has.values())
    named = {name: parameter for name, parameter in has.items() if parameter.kind is not parameter.VAR_KEYWORD}
    for name in parameters:
        if not (anything or name in named or name in OFFERED):
            raise TypeError(f"{spec} has no parameter {name!r}; it has {', '.join(named) or 'none'}")
    defaults = {name: has.default for name, has in named.items() if has.default is not has.empty}
    return {**defaults, **{name: value for name, value in parameters.items() if name in named or name not in OFFERED}}
