"""Whether rows may stand together: the fingerprints of a directory, its chunks, a worker and the code here, compared.

Rows of one directory agree in everything that `environment.differences` looks at. Beyond that, each study's rows agree
in what is theirs alone (`OWN`): the code of a study and of a model that are not depthgauge's own.

Every function returns what differs, in words; the caller refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from depthgauge import discovery, environment, factories
from depthgauge.environment import Fingerprint, differences

Marks = Mapping[str, object]

# Entries of a chunk's fingerprint that are its study's alone.
OWN = ("study_source", "model", "model_source", "model_input")


def split(fingerprint: Marks) -> tuple[dict[str, Any], dict[str, Any]]:
    """A chunk's fingerprint as the run's and what is its study's alone."""
    alone = {name: fingerprint[name] for name in OWN if name in fingerprint}
    return {name: value for name, value in fingerprint.items() if name not in OWN}, alone


def marks(request: Mapping[str, object]) -> dict[str, object]:
    """What a study's chunks are marked with besides the run's fingerprint: the code of the study and of the model.

    Args:
        request: what run.json says that was asked of the study.
    """
    source = {"study_source": request["source"]} if request.get("source") else {}
    return source | {name: request[name] for name in OWN[1:] if name in request}


def of_directory(before: Marks, now: Marks) -> tuple[str, ...]:
    """Whether a directory's rows were made where other numbers come out, in versions, code or machine.

    Args:
        before: the fingerprint of its rows.
        now: that of the rows to come.
    """
    return differences(before, now)


def of_request(study: str, before: Marks, asked: Marks, models: Mapping[object, object]) -> str:
    """What rows a directory holds by other code of a study or of its model than is asked for; empty where none.

    Args:
        study: its name.
        before: what was asked of the study by an earlier run into the directory.
        asked: what is asked of it now.
        models: spec -> SHA-256 of the code of every model that the directory has rows of.
    """
    if before.get("source") != asked.get("source"):
        return f"rows of {study!r} that were made by other code ({before.get('origin')})"
    spec, source = asked.get("model"), asked.get("model_source")
    return "" if models.get(spec, source) == source else f"rows that were made by other code of {spec}"


def of_chunk(made: Marks, run: Marks, study: Marks) -> tuple[str, ...]:
    """Whether a stored chunk comes from other code or another environment than the run has.

    Args:
        made: the chunk's fingerprint.
        run: the run's.
        study: what the study's chunks are marked with besides (`marks`).
    """
    alone = (name.replace("_", " ") for name in OWN if made.get(name) != study.get(name))
    return (*differences(made, run), *alone)


def of_process(fingerprint: Marks, origin: object, device: str) -> tuple[str, ...]:
    """Whether this process would make other numbers than the driver's: its versions, or code as it was imported here.

    Args:
        fingerprint: what the chunk is to be marked with.
        origin: where the study was loaded from; anything but text is a study of this process.
        device: as torch spells it.

    Raises:
        TargetError: the model is not to be found here.
    """
    changed = (*differences(fingerprint, _here(device)), *factories.differences(fingerprint))
    if not isinstance(origin, str) or not discovery.foreign(origin):
        return changed
    same = discovery.source(origin) == fingerprint.get("study_source")
    return changed if same else (*changed, f"code of {origin}")


@cache
def _here(device: str) -> Fingerprint:
    return environment.identity(device)
