"""Judge a backbone by a classifier on its frozen cls features.

Whatever a protocol has to choose (L2 strength, learning rate, epoch) it chooses on the validation
split; the test split is graded once, at the end.

    backbone + data --run--> out/{features-SPLIT-KEY.safetensors, report.json}
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from synclr_cli.config import LinearProbeConfig
from synclr_cli.data import labelled
from synclr_cli.errors import UsageError
from synclr_cli.learning import reports, runtime
from synclr_cli.learning.runtime import Runtime
from synclr_cli.linear_probe import features, protocols, sgd
from synclr_cli.linear_probe.protocols import Case

PROTOCOLS = {
    "lbfgs": protocols.lbfgs,
    "knn": protocols.knn,
    "few-shot": protocols.few_shot,
    "sgd": sgd.sgd,
}


def run(
    config: LinearProbeConfig, backbone: str, data: str, out: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Judge a backbone and return its report.

    Raises:
        UsageError: `out` holds the report of another config, backbone or data.
        DataError: backbone or data cannot be read, or cannot be judged on.
        KeyboardInterrupt: interrupted; the same call continues.
    """
    with runtime.started(config.precision) as rt:
        # Open: what is judged, on what, and whether it was judged before.
        started = time.monotonic()
        pictures = labelled.open_data(
            data,
            several=config.metric == "mean_ap",
            validation_share=config.validation_share,
            seed=config.seed,
        )
        if config.metric == "mean_ap" and not pictures.several:
            raise UsageError(
                "linear-probe.metric mean_ap", got="one class a picture", expected="lists of labels"
            )
        opened = features.open_any(backbone, image_size=config.image_size, seed=config.seed)
        made = reports.header(config, opened, pictures)
        stored = reports.stored(out / reports.FILE, "linear-probe", made, overwrite=overwrite)
        if stored is not None:
            return stored
        _clear(out, rt, overwrite=overwrite)

        # Build, loop: the protocol. All ranks make features; what is fitted to them, one fits.
        case = Case(config, opened, pictures, out, made, rt)
        protocol = PROTOCOLS[config.protocol]
        if protocol is not sgd.sgd:
            features.make(config, opened, pictures, out, made, rt)
            if not rt.is_main:
                return _wait_for(out / reports.FILE)
        found = protocol(case)

        # Write.
        report = reports.build(
            "linear-probe",
            made,
            opened,
            pictures,
            metric=config.metric,
            scores=found.scores,
            interval=found.interval,
            details={
                "protocol": config.protocol,
                **found.details,
                "seconds": round(time.monotonic() - started, 2),
            },
        )
        if not rt.is_main:
            return _wait_for(out / reports.FILE)
        reports.write(out / reports.FILE, report)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)  # of sgd
        return report


def _clear(out: Path, rt: Runtime, *, overwrite: bool) -> None:
    """With `overwrite`, forget what was begun; the old report stays until there is another."""
    rt.barrier()  # every rank has looked for a report
    if overwrite and rt.is_main:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        if rt.world > 1:  # the others wait for a report, and an old one is none
            (out / reports.FILE).unlink(missing_ok=True)
    rt.barrier()


def _wait_for(path: Path) -> dict[str, Any]:
    """Return the report that the main rank is working on; it may take longer than a barrier may."""
    while not path.is_file():
        time.sleep(0.1)
    return reports.read(path)
