"""File names made from a request."""

from __future__ import annotations

import hashlib

_LONGEST = 150  # bytes; a file system takes 255, and endings are added


def file_name(text: str) -> str:
    """Return the text, or its beginning and a digest of it where the text is no valid file name."""
    data = text.encode(errors="backslashreplace")
    if len(data) <= _LONGEST and "/" not in text:
        return text
    begin = data[: _LONGEST - 17].decode(errors="ignore").replace("/", "_")
    return f"{begin}-{hashlib.sha256(data).hexdigest()[:16]}"
