"""Schemes by name, and how they are applied to a model."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from depthgauge.architecture import unmade
from depthgauge.initialization import scaled, schemes
from depthgauge.initialization.schemes import Init, Scheme
from depthgauge.seeding import Purpose, generator

# Name -> what makes the scheme of its settings.
SCHEMES: Mapping[str, Callable[..., Scheme]] = {
    "default": schemes.default,
    "lecun": schemes.lecun,
    "xavier": schemes.xavier,
    "xavier_uniform": schemes.xavier_uniform,
    "he": schemes.he,
    "he_fan_out": schemes.he_fan_out,
    "preserving": schemes.preserving,
    "gaussian": schemes.gaussian,
    "orthogonal": schemes.orthogonal,
    "delta_orthogonal": schemes.delta_orthogonal,
    "dirac": schemes.dirac,
    "lsuv": scaled.LSUV,
    "depth_scaled": scaled.depth_scaled,
    "gpt2": scaled.gpt2,
    "fixup": scaled.fixup,
    "normal": schemes.normal,
    "constant": schemes.constant,
    "zeros": schemes.zeros,
}

# What others call them: torch, Keras and papers.
_ELSEWHERE = {
    "kaiming": "he",
    "kaiming_normal": "he",
    "msra": "he",
    "glorot": "xavier",
    "glorot_normal": "xavier",
    "xavier_normal": "xavier",
    "glorot_uniform": "xavier_uniform",
    "lecun_normal": "lecun",
    "identity": "dirac",
    "eye": "dirac",
    "ones": "constant",
    "saxe": "orthogonal",
    "pytorch": "default",
    "torch": "default",
}


def scheme(init: Init, **settings: Any) -> Scheme:
    """The scheme of that name with these settings, or the callable itself.

    Args:
        init: one of `SCHEMES`, or any `f(model, generator)` that sets weights in place.
        **settings: what the scheme takes: `gain` (xavier, orthogonal, ...), `batch` (lsuv), `activation` (preserving),
            ...; a `base` may be a name as well.

    Raises:
        ValueError: there is none of that name; the message has the nearest.
        TypeError: a setting that the scheme does not have, or one missing that it needs.
    """
    if not isinstance(init, str):
        if settings:
            raise TypeError(
                f"settings go with a scheme's name; {init!r} is one already, and takes no {min(settings)!r}"
            )
        return init
    if init not in SCHEMES:
        plain = init.lower().rstrip("_")
        near = _ELSEWHERE.get(plain) or next(iter(difflib.get_close_matches(plain, SCHEMES, n=1, cutoff=0.5)), None)
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(f"no initialization {init!r}; {hint}There is {', '.join(SCHEMES)}, or any f(model, generator)")
    known = inspect.signature(SCHEMES[init]).parameters
    for name in settings:
        if name not in known:
            takes = f"it has {', '.join(known)}" if known else "it has none"
            raise TypeError(f"initialization {init!r} has no setting {name!r}; {takes}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in settings:
            raise TypeError(f"initialization {init!r} needs {name}: scheme({init!r}, {name}=...)")
    if isinstance(settings.get("base"), str):
        settings["base"] = scheme(settings["base"])
    return SCHEMES[init](**settings)


def apply(module: nn.Module, init: Init, *, seed: int = 0, **settings: Any) -> tuple[str, ...]:
    """Draw the weights of any module in place, on the CPU, wherever they lie.

    Args:
        module: any.
        init: the name of a scheme, or a scheme.
        seed: seed of the weights; two modules drawn from one seed get the same numbers.
        **settings: settings of the scheme.

    Returns:
        Names of the parameters of two or more dimensions that were left as they were: embeddings, but for
        those that are a linear layer's weight, too; frozen and quantized weights; and parameters of modules that are no
        linear map known here. `reach` says why.

    Raises:
        ValueError: no such scheme, or one that this module cannot take: no residual branches, no activation.
        TypeError: a wrong setting.
    """
    initialize = scheme(init, **settings)
    before = {name: (parameter, _state(parameter)) for name, parameter in module.named_parameters()}
    initialize(module, generator(seed, Purpose.WEIGHTS))
    return tuple(
        name
        for name, (parameter, state) in before.items()
        if (unmade(parameter) or parameter.dim() > 1) and _state(parameter) == state
    )


def _state(parameter: nn.Parameter) -> tuple[int, int]:
    """Return a parameter's version and address, one of which changes when it is written to or given other memory."""
    return parameter._version, 0 if unmade(parameter) else parameter.data_ptr()
