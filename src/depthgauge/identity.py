"""Comparison of fingerprints, to decide which rows may stand together: of directory, chunks, worker and code.

Rows of one directory agree in everything that `environment.differences` looks at. Beyond that, each study's rows agree
in what is theirs alone (`OWN`): the code of a study and of a model that are not depthgauge's own.

Every function returns what differs, in words; the caller refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from depthgauge import discovery, environment, factories, hashing
from depthgauge.environment import Fingerprint, differences

Marks = Mapping[str, object]

# Entries of a chunk's fingerprint that are its study's alone.
OWN = ("study_source", "model", "model_source", "model_input")


def split(fingerprint: Marks) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a chunk's fingerprint into the run's marks and the study's."""
    alone = {name: fingerprint[name] for name in OWN if name in fingerprint}
    return {name: value for name, value in fingerprint.items() if name not in OWN}, alone


def marks(request: Mapping[str, object]) -> dict[str, object]:
    """Return the marks of a study's chunks besides the run's fingerprint: the code of the study and of the model.

    Args:
        request: the study's entry in run.json.
    """
    source = {"study_source": request["source"]} if request.get("source") else {}
    return source | {name: request[name] for name in OWN[1:] if name in request}


def of_directory(before: Marks, now: Marks) -> tuple[str, ...]:
    """List the differences in versions, code or machine that give a directory's rows other numbers than those made now.

    Args:
        before: the fingerprint of its rows.
        now: that of the rows to come.
    """
    return differences(before, now)


def of_request(study: str, before: Marks, request: Marks, models: Mapping[object, object]) -> str:
    """Name the code that differs between a directory's rows and the request, the study's or its model's; empty if none.

    Args:
        study: its name.
        before: the study's entry of an earlier run into the directory.
        request: the study's entry now.
        models: spec -> SHA-256 of the code of every model that the directory has rows of.
    """
    if before.get("source") != request.get("source"):
        if str(request.get("source")).startswith(hashing.UNKNOWN):
            return f"rows of {study!r}, and whether the same code made them cannot be told"
        place = f" ({before['origin']})" if before.get("origin") else ""
        return f"rows of {study!r} made by other code{place}"
    spec, source = request.get("model"), request.get("model_source")
    return "" if models.get(spec, source) == source else f"rows made by other code of {spec}"


def asks_the_same(before: Marks, request: Marks) -> bool:
    """Tell whether two entries of a study ask for the same cases, by preset, seeds, model and code.

    Args:
        before: the study's entry of an earlier run into the directory.
        request: the study's entry now.
    """
    alike = all(before.get(name) == request.get(name) for name in ("preset", "seeds"))
    return alike and marks(before) == marks(request)


def of_chunk(made: Marks, run: Marks, study: Marks) -> tuple[str, ...]:
    """List the differences in code and environment between a stored chunk and the run.

    Args:
        made: the chunk's fingerprint.
        run: the run's.
        study: the study's own marks (`marks`).
    """
    alone = (name.replace("_", " ") for name in OWN if made.get(name) != study.get(name))
    return (*differences(made, run), *alone)


def of_process(fingerprint: Marks, origin: object, device: str) -> tuple[str, ...]:
    """List the reasons why this process would make other numbers than the driver's: versions, or code as imported here.

    Args:
        fingerprint: the chunk's marks.
        origin: the study's origin; anything but text is a study of this process.
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
