"""Where the parts of captions/ and images/ are made: in this process, or on a Ray cluster.

    missing part numbers --worker--> parts in the folder, and a few numbers about each

    local   this process makes one part after the other
    ray     a pool of actors, each with one engine; a row of the Ray Data set is a part number

A part is a function of (settings, its number), and written whole or not at all. So a part that is
made twice, because its actor or node died, has the same bytes, no image travels through Ray's
object store, and an artifact does not say where its parts were made. The process that runs the
command holds the claim on the folder, shows progress, and writes the manifest.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from synclr_cli import cluster, console
from synclr_cli.config_executor import ExecutorConfig
from synclr_cli.errors import DataError, EngineError, SynclrError, UsageError

Facts = Mapping[str, Any]

ATTEMPTS = 20  # at a part, or at loading an engine; if all die, it is that which kills them


class PartWorker(Protocol):
    """Makes parts with one engine. It is pickled, without its engine, to go to other machines."""

    def open(self, cores: int | None = None) -> None:
        """Load the engine; again, do nothing.

        Args:
            cores: that it may use; None: all of the machine.
        """
        ...

    def make(self, parts: Sequence[int], advance: Callable[[int], None]) -> Iterator[Facts]:
        """Make and write parts; yield JSON about each that is written.

        Args:
            advance: is called with the number of units (captions, images) that were finished.
        """
        ...

    def warnings(self) -> list[str]:
        """Return what the user should know of the parts made so far."""
        ...


def run(
    todo: Sequence[int],
    worker: PartWorker,
    config: ExecutorConfig,
    meter: console.Meter,
    *,
    written: Callable[[Facts], None],
    places: Sequence[Path],
) -> None:
    """Make parts; `written` is called in this process for each, in the order they end.

    Args:
        todo: numbers of the parts.
        places: where the parts go, which is a folder that is there, then what they are made from.

    Raises:
        SynclrError: what a worker raised; of Ray: it is not installed, no cluster answers, or it
            lacks what the workers need (EngineError), or its machines do not see `places`
            (UsageError).
    """
    if config.on == "ray":
        lines = _run_on_ray(todo, worker, config, meter, written, places)
    else:
        worker.open()
        for facts in worker.make(todo, meter.advance):
            written(facts)
        lines = worker.warnings()
    for line in lines:
        console.warn(line)


def _run_on_ray(
    todo: Sequence[int],
    worker: PartWorker,
    config: ExecutorConfig,
    meter: console.Meter,
    written: Callable[[Facts], None],
    places: Sequence[Path],
) -> list[str]:
    """Make parts on a cluster; return the workers' warnings.

    Ray Data starts a dead actor again, elsewhere if its node is gone, and gives it its part again;
    both without end, which `_Attempts` puts to it.
    """
    with cluster.connected(config) as ray:
        cluster.require_nodes(ray, places)
        fewest, most = cluster.pool_size(ray, config, len(todo))
        actor = {
            "worker": worker,
            "cores": max(1, int(config.num_cpus)),
            "folder": str(Path.cwd()),
            "attempts": ray.remote(num_cpus=0, max_restarts=-1)(_Attempts).remote(),
            "ray": ray,
        }
        rows = ray.data.from_items(list(todo), override_num_blocks=len(todo)).map_batches(
            _Actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=fewest, max_size=most, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=config.num_cpus,
            num_gpus=config.num_gpus or None,
            fn_constructor_kwargs=actor,
        )
        pool = _Pool(meter)
        with cluster.errors(ray):
            reports = rows.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=0)
            for batch in reports:
                written(pool.take(json.loads(str(batch["report"][0]))))
        pool.tell()
        return pool.warnings()


class _Attempts:
    """An actor that counts how often a thing was begun and not ended."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def begin(self, name: str) -> int:
        self._counts[name] = self._counts.get(name, 0) + 1
        return self._counts[name]

    def end(self, name: str) -> None:
        self._counts.pop(name, None)


class _Actor:
    """What one of Ray's actors does: a part number in, what is told of the part out.

    It raises nothing, since Ray would wrap it: an error is reported, and raised by the driver.
    """

    def __init__(self, worker: PartWorker, cores: int, folder: str, attempts: Any, ray: Any):
        console.set_quiet(True)
        with contextlib.suppress(OSError):  # paths may be relative to where the command was typed
            os.chdir(folder)
        self._worker, self._attempts, self._get = worker, attempts, ray.get
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        own = ray.get_runtime_context().get_actor_id()  # the same in all its lives
        self._error = self._reported(f"worker {own}", lambda: worker.open(cores))[1]

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        units: list[int] = []
        start = time.monotonic()
        (number,) = (int(number) for number in batch["item"])
        facts: list[Facts] = []
        error = self._error
        if not error:
            facts, error = self._reported(
                f"part {number}", lambda: list(self._worker.make([number], units.append))
            )
        report = {
            "worker": self._name,
            "facts": facts[0] if facts else {},
            "units": sum(units),
            "seconds": time.monotonic() - start,
            "warnings": [] if error else self._worker.warnings(),
            "error": error,
        }
        return {"report": [json.dumps(report)]}

    def _reported(self, name: str, work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """Return what work returns, and {} or the error it ended with."""
        try:
            if self._get(self._attempts.begin.remote(name)) > ATTEMPTS:
                raise EngineError(
                    f"processes on Ray died {ATTEMPTS} times with {name.rpartition(' ')[0]}"
                    f" {name.rpartition(' ')[2][:8]}",
                    do="look at memory; the same command continues",
                )
            done = work()
            self._get(self._attempts.end.remote(name))
            return done, {}
        except SynclrError as e:
            return [], {"exit_code": e.exit_code, "message": str(e)}
        except Exception:
            return [], {"exit_code": 1, "message": traceback.format_exc()}


class _Pool:
    """What the actors told: rates for the progress line, and warnings."""

    def __init__(self, meter: console.Meter):
        self._meter = meter
        self._warnings: dict[str, list[str]] = {}
        self._units: dict[str, float] = {}
        self._seconds: dict[str, float] = {}

    def take(self, report: Mapping[str, Any]) -> Facts:
        """Take in what is told of a part; return its facts.

        Raises:
            SynclrError: what the actor ended with.
        """
        name, error = report["worker"], report["error"]
        if error:
            kinds = {kind.exit_code: kind for kind in (UsageError, DataError, EngineError)}
            host = name.rpartition(":")[0]
            where = "" if host == socket.gethostname() else f"{host}: "
            if error["exit_code"] not in kinds:
                raise RuntimeError(f"a worker on {host} failed:\n{error['message']}")
            raise kinds[error["exit_code"]](where + error["message"])
        self._warnings[name] = report["warnings"]
        self._units[name] = self._units.get(name, 0) + report["units"]
        self._seconds[name] = self._seconds.get(name, 0) + report["seconds"]
        mean = sum(self._rates()) / len(self._units)
        self._meter.say(workers=len(self._units), of_each=mean)
        self._meter.advance(report["units"])
        facts: Facts = report["facts"]
        return facts

    def _rates(self) -> list[float]:
        return [self._units[name] / max(self._seconds[name], 1e-9) for name in self._units]

    def tell(self) -> None:
        """Say how fast the actors were."""
        if rates := sorted(self._rates()):
            console.note(
                f"{len(rates)} processes on {len({n.rpartition(':')[0] for n in self._units})}"
                f" hosts; while it worked the slowest made {console.plain(rates[0])} a second,"
                f" the fastest {console.plain(rates[-1])}"
            )

    def warnings(self) -> list[str]:
        """Return the lines that actors warned of, each once."""
        return list(dict.fromkeys(line for lines in self._warnings.values() for line in lines))
