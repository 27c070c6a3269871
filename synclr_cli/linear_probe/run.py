"""Evaluate a backbone by a classifier on its frozen cls features.

Whatever a protocol has to choose (L2 strength, learning rate, epoch) it chooses on the validation
split; the test split is used once, at the end.

    backbone + data --run--> out/{features-SPLIT-KEY.safetensors, confusion.png, report.json}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synclr_cli.config import LinearProbeConfig
from synclr_cli.data import labelled
from synclr_cli.errors import UsageError
from synclr_cli.learning import features as backbone_features, reports, runtime
from synclr_cli.learning.run_folder import REPORT_FILE, RunFolder
from synclr_cli.linear_probe import features, protocols, sgd
from synclr_cli.linear_probe.protocols import Case, Outcome

PROTOCOLS = {"lbfgs": protocols.lbfgs, "knn": protocols.knn, "few-shot": protocols.few_shot}


def run(
    config: LinearProbeConfig, backbone: str, data: str, out: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Evaluate a backbone and return its report.

    Raises:
        UsageError: `out` holds the report of another config, backbone or data.
        DataError: backbone or data cannot be read, or cannot be evaluated on.
        DivergedError: with sgd, no learning rate has a finite loss.
        KeyboardInterrupt: interrupted; the same call resumes.
    """
    # Open: what is evaluated, on what, and whether it was before.
    images = labelled.open_data(
        data,
        several=config.metric == "mean_ap",
        validation_share=config.validation_share,
        seed=config.seed,
    )
    if config.metric == "mean_ap" and not images.several:
        raise UsageError(
            "linear-probe.metric mean_ap", got="one class an image", expected="lists of labels"
        )
    opened = backbone_features.open_any(backbone, image_size=config.image_size, seed=config.seed)
    header = reports.header(config, opened, images)
    with (
        runtime.started(config.precision) as rt,
        RunFolder(out, "linear-probe", header, rt, overwrite=overwrite) as folder,
    ):
        if folder.finished():
            return reports.read(out / REPORT_FILE)
        folder.claim()
        case = Case(config, opened, images, folder)
        if config.protocol == "sgd":
            return reports.finish(folder, _report(case, sgd.sgd(case)))

        # All ranks make features; what is fitted to them, one fits, for as long as it takes.
        features.make(config, opened, images, folder, rt)
        report = rt.from_main(lambda: _report(case, PROTOCOLS[config.protocol](case)))
        return reports.finish(folder, report)


def _report(case: Case, outcome: Outcome) -> dict[str, Any]:
    return reports.build(
        "linear-probe",
        case.folder.header,
        case.backbone,
        case.data,
        metric=case.config.metric,
        scores=outcome.scores,
        interval=outcome.interval,
        details={
            "protocol": case.config.protocol,
            **outcome.details,
            "seconds": case.folder.seconds,
        },
    )
