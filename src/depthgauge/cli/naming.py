"""Names of files made of what was asked."""

from __future__ import annotations

import hashlib

_LONGEST = 150  # bytes; a file system takes 255, and endings are added


def file_name(text: str) -> str:
    """The text itself, or its beginning with a digest of all of it where no file can be called so."""
    data = text.encode(errors="backslashreplace")
    if len(data) <= _LONGEST and "/" not in text:
        return text
    begin = data[: _LONGEST - 17].decode(errors="ignore").replace("/", "_")
    return f"{begin}-{hashlib.sha256(data).hexdigest()[:16]}"
