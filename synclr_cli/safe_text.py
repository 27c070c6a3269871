"""Text that came from elsewhere, made safe to show and to keep: captions, file names, URIs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Terminal sequences as a whole (ECMA-48: CSI, OSC and its kin, two-character ones) ...
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x9b[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[ -/]*[0-~]?"
)
# ... then what else is not a character: C0 but tab and newline, DEL, C1, line separators, and what
# turns the direction of the rest of a line.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
# Up to the last @: what should be percent-encoded in a password often is not. A port is none.
_PASSWORD = re.compile(
    r"(?P<user>[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*):(?!\d+(?:/|$))\S*?@(?=[^\s@]*(?:\s|$))"
)


def plain(text: str) -> str:
    """Return text without terminal sequences and control characters; tabs and newlines stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def redact(text: str) -> str:
    """Return text with the passwords of URIs, `scheme://user:password@host`, as `***`."""
    return _PASSWORD.sub(r"\g<user>:***@", text) if "@" in text else text


def safe(text: str) -> str:
    """Return text that may be printed: `plain` and `redact`."""
    return redact(plain(text))


def redacted(value: Any) -> Any:
    """Return JSON-like data with every text in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redacted(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(redacted, value))
    return value
