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
from synclr_cli.errors import UsageError
from synclr_cli.learning import labelled, reports, runtime
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
        if rt.world > 1:
            raise UsageError("linear-probe", got=f"{rt.world} processes", expected="one process")
        # Open: what is judged, on what, and whether it was judged before.
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

        # Build, loop: the protocol.
        started = time.monotonic()
        found = PROTOCOLS[config.protocol](Case(config, opened, pictures, out, made, rt))

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
        reports.write(out / reports.FILE, report)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)  # of sgd
        return report
