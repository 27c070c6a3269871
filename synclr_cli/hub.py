"""The model hub: whether it answers, before a library asks it again and again for a minute.

huggingface_hub retries a host that is not there for 20 to 90 seconds and has no setting for it.
One short question before tells whether to load from the cache alone.
"""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request

from synclr_cli.errors import EngineError

ANSWER_S = 5.0  # seconds that one question may take


def cache_only() -> bool:
    """Return whether models can come from the cache alone: no hub answers, or it is turned off."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return True
    try:
        question = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        with urllib.request.urlopen(question, timeout=ANSWER_S):
            return False
    except urllib.error.HTTPError:  # an answer, whatever it says
        return False
    except urllib.error.URLError as e:
        # Certificates are the library's to look for: it brings its own.
        return not isinstance(e.reason, ssl.SSLError)
    except (OSError, ValueError):
        return True


def absent(engine: str, folder: str) -> EngineError:
    """Return the error for a model that neither a hub nor the cache has.

    Args:
        engine: what to call it, "engine diffusers:ORG/MODEL".
        folder: how to name a folder instead, "diffusers:FOLDER".
    """
    from huggingface_hub import constants

    return EngineError(
        f"{engine}: no model hub answers ({constants.ENDPOINT}), and it is not in the cache",
        do=f"check the network, or give a folder with the model: {folder}",
    )
