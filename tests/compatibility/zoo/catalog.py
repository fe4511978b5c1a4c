"""All entries, in the order of the table."""

from __future__ import annotations

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
