"""A Ray cluster: connecting to one, what fits on it, and whether its machines see what we see.

nothing named --> a runtime on this machine alone, which ends with the command
executor.address or RAY_ADDRESS --> that cluster
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from synclr_cli import __version__, console
from synclr_cli.config_executor import ExecutorConfig
from synclr_cli.errors import EngineError, UsageError

OBJECT_STORE_BYTES = 200_000_000  # of a runtime of our own: part numbers and settings
CONNECT_SECONDS, PROBE_SECONDS = 10.0, 120.0
INSTALL = "pip install 'synclr[ray]'"


@contextlib.contextmanager
def connected(config: ExecutorConfig) -> Iterator[Any]:
    """Give the module `ray`, connected; what it prints on stdout meanwhile is dropped.

    A runtime that this process has already is used as it is; one of our own ends with the block.

    Raises:
        EngineError: Ray is not installed, or no cluster answers.
    """
    # Read when ray is imported and when it starts: nothing is sent anywhere, nothing is printed.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as e:
        raise EngineError("--on ray needs the package ray", do=INSTALL) from e
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()), _own_stderr():
        if ray.is_initialized():
            yield ray
            return
        address = config.address or os.environ.get("RAY_ADDRESS", "")
        before = signal.getsignal(signal.SIGTERM)
        try:
            _connect(ray, address)
            signal.signal(signal.SIGTERM, before)  # Ray has one of its own
            yield ray
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _own_stderr() -> Iterator[None]:
    """Keep stderr to what Python writes: Ray's C++ core writes to the descriptor itself."""
    try:
        shared = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # a test or a notebook took its place
        yield
        return
    before, kept = sys.stderr, os.dup(shared)
    with open(kept, "w", encoding="utf-8", buffering=1) as own, open(os.devnull, "wb") as null:
        before.flush()
        try:
            sys.stderr = own
            os.dup2(null.fileno(), shared)
            yield
        finally:
            os.dup2(kept, shared)
            sys.stderr = before


def _connect(ray: Any, address: str) -> None:
    """Connect to a cluster, or start a runtime on this machine alone."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if not address:
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    elif address != "auto":
        _require_listener(address)
    try:
        ray.init(address=address or "local", **options)
    except Exception as e:  # of many kinds, some of them private; the last line says what is wrong
        reason = str(e.__cause__ or e).strip().splitlines()[-1:] or [type(e).__name__]
        raise EngineError(
            f"no Ray cluster at {address or 'this machine'} ({reason[0]})",
            do="start one with: ray start --head; then --set executor.address=HOST:PORT",
        ) from e


def _require_listener(address: str) -> None:
    """Refuse a HOST:PORT where nobody listens, within seconds: Ray tries for a minute."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), CONNECT_SECONDS):
            pass
    except (OSError, ValueError) as e:
        raise EngineError(
            f"no Ray cluster at {address} ({e})", expected="HOST:PORT of its head, or auto",
            do="start one with: ray start --head",
        ) from e  # fmt: skip


@contextlib.contextmanager
def errors(ray: Any) -> Iterator[None]:
    """Turn what Ray gave up with into one line."""
    try:
        yield
    except ray.exceptions.RayError as e:
        lines = [line for line in str(e).splitlines() if line.strip()]
        raise EngineError(
            f"Ray gave up ({type(e).__name__}: {lines[-1].strip() if lines else ''})",
            do="look at memory, and at /tmp/ray/session_latest/logs; the same command continues",
        ) from e


def pool_size(ray: Any, config: ExecutorConfig, parts: int) -> tuple[int, int]:
    """Return the least and the most workers, once the cluster has what the least need.

    Raises:
        EngineError: it has not within `executor.wait` seconds.
    """
    deadline = time.monotonic() + config.wait
    while (fit := _fitting(ray, config)) < config.fewest_workers:
        if time.monotonic() > deadline:
            total = ray.cluster_resources()
            cores, gpus = (f"{total.get(kind, 0):g}" for kind in ("CPU", "GPU"))
            raise EngineError(
                f"the Ray cluster of {cores} cores and {gpus} GPUs has no room for the workers",
                got=f"{fit} that fit",
                expected=f"{config.fewest_workers}, each with {config.num_cpus:g} cores and"
                f" {config.num_gpus:g} GPUs",
                do="ask for fewer with --workers, or for less with --set executor.num_cpus and"
                " executor.num_gpus",
            )
        time.sleep(min(1.0, config.wait))
    most = min(config.most_workers or fit, parts)
    fewest = min(config.fewest_workers if config.workers else fit, most)
    if not config.num_gpus and ray.cluster_resources().get("GPU"):
        console.note("the workers have no GPU; --set executor.num_gpus=1 gives one to each")
    return fewest, most


def _fitting(ray: Any, config: ExecutorConfig) -> int:
    """Return how many workers fit on the machines of the cluster, busy ones included."""
    fit = 0
    for node in _nodes(ray):
        have = node["Resources"]
        rooms = [have.get("CPU", 0) / config.num_cpus]
        if config.num_gpus:
            rooms.append(have.get("GPU", 0) / config.num_gpus)
        fit += int(min(rooms) + 1e-9)
    return fit


def _nodes(ray: Any) -> list[Mapping[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def require_nodes(ray: Any, places: Sequence[Path]) -> None:
    """Refuse a node with another synclr or Python, or from which local places are not seen.

    Raises:
        EngineError: the first, or a node does not answer.
        UsageError: the second.
    """
    local = [place.absolute() for place in places if isinstance(place, Path)]
    token = local[0] / f".{secrets.token_hex(8)}.partial" if local else None
    if token is not None and token.parent.is_dir():
        token.touch()
    try:
        seen = [token, *local[1:]] if token is not None else []
        answers = _ask_nodes(ray, [str(path) for path in seen])
    finally:
        if token is not None:
            token.unlink(missing_ok=True)
    for host, (version, missing) in answers.items():
        if version != __version__:
            raise EngineError(
                f"synclr on {host}", got=version, expected=__version__,
                do="install the same version on every machine of the cluster",
            )  # fmt: skip
        if missing:
            place = local[0] if missing[0] == str(token) else missing[0]
            raise UsageError(
                f"{host} does not see {place} of this machine",
                do="use a folder that all machines share, or a URI such as s3://bucket/folder",
            )


def _ask_nodes(ray: Any, paths: list[str]) -> dict[str, tuple[str, list[str]]]:
    """Return each machine's version of synclr, and which of the paths it does not see."""

    def look(paths: list[str]) -> tuple[str, list[str]]:  # by value: synclr may not be there
        from pathlib import Path

        try:
            from synclr_cli import __version__ as version
        except ImportError:
            version = "none"
        return version, [path for path in paths if not Path(path).exists()]

    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    task = ray.remote(num_cpus=0, max_retries=1)(look)
    waiting = {}
    for node in _nodes(ray):
        on_node = task.options(scheduling_strategy=strategy(node["NodeID"], soft=False))
        waiting[on_node.remote(paths)] = f"{node['NodeManagerHostname']}"
    answers: dict[str, tuple[str, list[str]]] = {}
    for reference, host in waiting.items():
        try:
            answers[host] = ray.get(reference, timeout=PROBE_SECONDS)
        except Exception as e:
            raise EngineError(
                f"{host} of the Ray cluster runs nothing ({type(e).__name__})",
                do="look at it with: ray status",
            ) from e
    return answers
