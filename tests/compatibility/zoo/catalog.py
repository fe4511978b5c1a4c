"""All entries, in the order of the table."""

from __future__ import annotations

import importlib.metadata

from zoo.architectures import ARCHITECTURES
from zoo.core_loops import LOOPS
from zoo.core_modules import MODULES
from zoo.core_wrappers import WRAPPERS
from zoo.entry import Entry
from zoo.huggingface import MODELS
from zoo.trainers import TRAINERS

CORE: tuple[Entry, ...] = (*MODULES, *LOOPS, *WRAPPERS)
PUBLIC: tuple[Entry, ...] = (*MODELS, *ARCHITECTURES, *TRAINERS)
ENTRIES = (*CORE, *PUBLIC)
PACKAGES = tuple(dict.fromkeys(entry.package for entry in PUBLIC))
# Their packages ask for torchvision, whose published builds are for torch with CUDA.
ALONE = ("timm", "vit-pytorch", "denoising-diffusion-pytorch")


def version(package: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
