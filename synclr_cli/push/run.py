"""`synclr push`: a captions, images or run folder to a repository of the Hugging Face hub.

    folder --plan--> files with their names there --commits of huggingface_hub--> user/name

    captions/, images/   a dataset: the parts, the manifest, what was refused, README.md
    runs/x/              a model that timm and load_backbone open: model.safetensors, config.json,
                         README.md with grades, curves, metrics; checkpoints if asked for

The card goes last. The token is huggingface_hub's own: HF_TOKEN, or `hf auth login`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synclr_cli import console, hub
from synclr_cli.data import artifacts, cards, manifest, storage
from synclr_cli.errors import DataError, EngineError, UsageError
from synclr_cli.safe_text import redact

FILES_A_COMMIT = 50  # what is sent is kept if the next commit fails
WEIGHTS, RUN_FILES = "backbone.safetensors", ("config.json", "run.json", "metrics.jsonl")
_CLIENTS = ("httpx", "httpcore", "requests")  # of huggingface_hub, by its version
_DRAWINGS = ("_contact-sheet.png", "_diversity.png", "_coverage.png", "curves.png")


@dataclass(frozen=True)
class Upload:
    """A file and its name in the repository."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Return its bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Plan:
    """What goes to the hub."""

    repository: str
    kind: str  # model | dataset
    files: Sequence[Upload]  # the card last

    def json(self) -> dict[str, Any]:
        """Return the plan as one JSON object."""
        return {
            "repository": self.repository,
            "kind": self.kind,
            "bytes": sum(file.size for file in self.files),
            "files": [{"name": file.name, "bytes": file.size} for file in self.files],
        }


def plan(folder: Path, repository: str, *, checkpoints: bool = False) -> Plan:
    """Return what of a folder would go where; nothing is sent.

    Raises:
        UsageError: no name of a repository.
        DataError: the folder is none of synclr's, not finished, or damaged.
    """
    _require_name(repository)
    if (folder / WEIGHTS).is_file():
        return Plan(repository, "model", _of_run(folder, repository, checkpoints))
    header = manifest.read_header(folder)
    if header is None or header.schema not in ("captions", "images"):
        raise DataError(
            f"{folder} cannot be pushed", expected="a finished folder of captions, images or a run"
        )
    return Plan(repository, "dataset", _of_parts(folder, repository, header.schema))


def run(work: Plan, *, private: bool = False) -> str:
    """Send what is planned, and return its address.

    Raises:
        EngineError: no hub answers, no token, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

    if hub.cache_only():
        raise EngineError(
            f"no model hub answers ({constants.ENDPOINT})",
            do="check the network, and that HF_HUB_OFFLINE is not set",
        )
    if get_token() is None:
        raise EngineError("no token of the hub", do="set HF_TOKEN, or log in: hf auth login")
    api = HfApi()
    total = sum(file.size for file in work.files)
    with _refusals(work.repository), console.progress("push", total, unit="bytes") as meter:
        api.create_repo(work.repository, repo_type=work.kind, private=private, exist_ok=True)
        for start in range(0, len(work.files), FILES_A_COMMIT):
            batch = work.files[start : start + FILES_A_COMMIT]
            api.create_commit(
                work.repository,
                [
                    CommitOperationAdd(
                        file.name,
                        file.content if isinstance(file.content, bytes) else str(file.content),
                    )
                    for file in batch
                ],
                commit_message=f"synclr push: {batch[0].name} to {batch[-1].name}",
                repo_type=work.kind,
            )
            meter.advance(sum(file.size for file in batch))
    middle = "datasets/" if work.kind == "dataset" else ""
    return f"{constants.ENDPOINT}/{middle}{work.repository}"


def _of_parts(folder: Path, repository: str, schema: str) -> list[Upload]:
    opened = manifest.open_dataset(folder, schema)
    files = [Upload(path.name, path) for path in opened.paths()]
    beside = [folder / name for name in (manifest.MANIFEST, manifest.PARTS, *_DRAWINGS)]
    beside += [p for p in sorted(folder.glob("_rejected/*")) if not p.name.startswith(".")]
    files += [Upload(str(p.relative_to(folder)), p) for p in beside if p.is_file()]
    totals = {
        "rows": opened.rows,
        "captions": opened.captions,
        "bytes": opened.bytes,
        "parts": opened.parts.num_rows,
    }
    card = cards.of_parts(opened.header, totals, opened.facts)
    return [*files, _card(folder, repository, cards.FILE, card)]


def _of_run(folder: Path, repository: str, checkpoints: bool) -> list[Upload]:
    header = artifacts.tensors_header(folder / WEIGHTS)
    # Under this name timm.create_model("hf-hub:USER/NAME") looks for weights.
    files = [Upload("model.safetensors", folder / WEIGHTS)]
    names = [*RUN_FILES, *_DRAWINGS]
    if checkpoints:
        names += sorted(str(p.relative_to(folder)) for p in folder.glob("checkpoints/*/*"))
    files += [Upload(name, folder / name) for name in names if (folder / name).is_file()]
    reports = list(_reports(folder))
    card = cards.of_run(header, dict(header.facts or {}), _grades(reports))
    return [*files, _card(folder, repository, cards.RUN_FILE, card)]


def _card(folder: Path, repository: str, own: str, card: str) -> Upload:
    """Return the card: the user's own, if it was edited, with the repository's name filled in."""
    if (folder / own).is_file():
        written = (folder / own).read_text(encoding="utf-8")
        if "## Grades" not in card or "## Grades" in written:
            card = written
    shown = "".join(
        f"\n![{name.strip('_').removesuffix('.png')}]({name})\n"
        for name in _DRAWINGS
        if (folder / name).is_file()
    )
    return Upload("README.md", (card.replace("USER/NAME", repository) + shown).encode())


def _reports(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the reports beside a run, and one folder below, that evaluated just its weights."""
    digest = storage.digest(folder / WEIGHTS)
    beside = folder.resolve().parent
    for path in sorted((*beside.glob("*/report.json"), *beside.glob("*/*/report.json"))):
        report = storage.read_json(path)
        if report.get("backbone", {}).get("digest") == digest:
            yield report


def _grades(reports: Sequence[Mapping[str, Any]]) -> str:
    """Return the grades as a table in Markdown, "" for none."""
    if not reports:
        return ""
    lines = ["| data | evaluation | metric | % | 95 % interval | n |", "| --- " * 6 + "|"]
    for report in reports:
        low, high = report["interval"]
        protocol = report.get("protocol", "")
        task = f"{report['task']} {protocol}".strip()
        lines.append(
            f"| {report['data']['name']} | {task} | {report['metric']} | {report['value']:.1f} |"
            f" {low:.1f} to {high:.1f} | {report['n']} |"
        )
    return "\n".join(lines)


def _require_name(repository: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
        owner, slash, _ = repository.partition("/")
        if not (owner and slash):
            raise HFValidationError("no owner")
    except HFValidationError as e:
        raise UsageError(
            f"repository {repository}", expected="USER/NAME, of letters, digits, -, _ and ."
        ) from e


@contextmanager
def _refusals(repository: str) -> Iterator[None]:
    """Turn what the hub refuses into one line that names no token."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as e:
        status = getattr(e.response, "status_code", 0)
        said = redact(str(getattr(e, "server_message", None) or str(e).splitlines()[0]))
        do = {
            401: "the token is not valid: set HF_TOKEN, or log in: hf auth login",
            403: "the token may not write there: make one that may, or name a repository of yours",
            404: "check the name of the repository",
        }.get(status, "run the same command again: what was sent is kept")
        raise EngineError(f"the hub refuses {repository} ({said})", do=do) from e
    except Exception as e:
        if not type(e).__module__.startswith(_CLIENTS):
            raise
        raise EngineError(
            f"the hub is gone ({type(e).__name__}: {redact(str(e))})",
            do="check the network and run the same command again: what was sent is kept",
        ) from e
