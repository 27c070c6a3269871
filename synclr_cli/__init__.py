"""SynCLR on the command line and in Python: words, captions, images, a backbone, and its grade.

from synclr_cli import load_backbone, load_captions, load_images
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_backbone", "load_captions", "load_images"]

if TYPE_CHECKING:
    from synclr_cli.api import load_backbone, load_captions, load_images


def __getattr__(name: str) -> Any:
    """Import the API when a name of it is asked for: `synclr --help` never waits for it."""
    if name in __all__:
        from synclr_cli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
