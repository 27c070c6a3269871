"""What libjpeg says of a damaged JPEG, which it decodes all the same, with guesses for the rest.

torchvision and Pillow raise for a JPEG that is cut short or whose tables are broken. Bytes changed
in the middle of one come out as stripes and grey; libjpeg mostly notices, but says it on C's stderr
alone. So C's stderr, which Python's does not go through, leads to memory while an image is
decoded.

    with listening() as heard: decode_jpeg(...)        heard.complaint -> "Corrupt JPEG data: ..."
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

DAMAGED = ("Corrupt JPEG data", "Premature end of JPEG")  # other warnings are of odd headers


@dataclass
class Heard:
    """What was said in a block; there once it has ended."""

    complaint: str = ""


@contextmanager
def listening() -> Iterator[Heard]:
    """Listen to libjpeg in the block; with another C library than glibc nothing is heard."""
    heard = Heard()
    libc = _glibc()
    if libc is None:
        yield heard
        return
    text, size = ctypes.c_char_p(), ctypes.c_size_t()
    memory = libc.open_memstream(ctypes.byref(text), ctypes.byref(size))
    stderr = ctypes.c_void_p.in_dll(libc, "stderr")
    before, stderr.value = stderr.value, memory
    try:
        yield heard
    finally:
        stderr.value = before
        libc.fclose(memory)  # `text` and `size` are valid from here on
        said = ctypes.string_at(text, size.value).decode(errors="replace").strip()
        libc.free(text)
        heard.complaint = said if said.startswith(DAMAGED) else ""


@cache
def _glibc() -> ctypes.PyDLL | None:
    try:
        libc = ctypes.PyDLL(None)  # its calls here are too short to let others run meanwhile
        libc.gnu_get_libc_version  # noqa: B018  # the others' stderr is no variable
    except (AttributeError, TypeError, OSError):
        return None
    libc.open_memstream.restype = ctypes.c_void_p
    libc.fclose.argtypes = [ctypes.c_void_p]
    libc.free.argtypes = [ctypes.c_char_p]
    return libc
