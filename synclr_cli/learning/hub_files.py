"""Weights of a repository of the hub, as `synclr push` and timm's users put them there."""

from __future__ import annotations

from pathlib import Path

from synclr_cli import hub
from synclr_cli.errors import DataError, EngineError, UsageError
from synclr_cli.safe_text import redact

NAMES = ("model.safetensors", "backbone.safetensors")


def fetch(spec: str) -> Path:
    """Return the weights of hf://USER/NAME in the cache, downloaded if they are not there.

    Raises:
        UsageError: no name of a repository.
        EngineError: no hub answers and the cache has no copy, or the hub refuses.
        DataError: the repository has no weights of a name we know.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )  # fmt: skip

    repository = spec.removeprefix("hf:").strip("/")
    if repository.count("/") != 1:
        raise UsageError(f"backbone {spec}", expected="hf://USER/NAME")
    cached = hub.cache_only()
    for name in NAMES:
        try:
            return Path(hf_hub_download(repository, name, local_files_only=cached))
        except LocalEntryNotFoundError as e:
            if name == NAMES[-1] or not cached:
                raise hub.absent(f"backbone {spec}", "a run folder") from e
        except EntryNotFoundError:
            continue
        except RepositoryNotFoundError as e:
            raise EngineError(
                f"the hub has no model {repository}, or not for this token",
                do="check its name; if it is private, set HF_TOKEN or log in: hf auth login",
            ) from e
        except HFValidationError as e:
            raise UsageError(f"backbone {spec}", expected="hf://USER/NAME") from e
        except HfHubHTTPError as e:
            said = redact(str(e).splitlines()[0])
            raise EngineError(f"the hub refuses {spec} ({said})", do="try again later") from e
    raise DataError(f"{spec} holds no weights", expected=" or ".join(NAMES))
