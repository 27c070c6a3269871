"""The paper's two suites of data sets: which sets, how each is graded, where they lie.

    folder of data sets --find--> the sets that are there, and the names of those that are not

A set is a folder or a .parquet file in any layout that evaluations read, under a usual name.
Nothing heavy is imported here: the command line asks before torch is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from synclr_cli.errors import DataError


@dataclass(frozen=True)
class SuiteSet:
    """One data set of a suite."""

    metric: str
    classes: int  # the paper's; others are a note
    names: tuple[str, ...] = ()  # its folder's names beside its own


TOP1, PER_CLASS, PRECISION = "top1", "mean_per_class", "mean_ap"

# The metric of each is the paper's; so is the average, over the nine of the first.
SUITES: Mapping[str, Mapping[str, SuiteSet]] = {
    "fine-grained": {
        "aircraft": SuiteSet(PER_CLASS, 100, ("fgvcaircraft",)),
        "cars": SuiteSet(TOP1, 196, ("stanfordcars",)),
        "dtd": SuiteSet(TOP1, 47),
        "flowers": SuiteSet(PER_CLASS, 102, ("flowers102", "oxfordflowers102")),
        "pets": SuiteSet(PER_CLASS, 37, ("oxfordiiitpet", "oxfordpets")),
        "sun397": SuiteSet(TOP1, 397),
        "caltech101": SuiteSet(PER_CLASS, 102),
        "food": SuiteSet(TOP1, 101, ("food101",)),
        "voc2007": SuiteSet(PRECISION, 20, ("voc", "pascalvoc2007")),
    },
    "generalisation": {
        "eurosat": SuiteSet(TOP1, 10),
        "gtsrb": SuiteSet(TOP1, 43),
        "country211": SuiteSet(TOP1, 211),
        "mnist": SuiteSet(TOP1, 10),
        "resisc45": SuiteSet(TOP1, 45),
        "kitti": SuiteSet(TOP1, 4, ("kittidistance",)),
    },
}


@dataclass(frozen=True)
class Suite:
    """A suite as a folder holds it."""

    name: str
    present: Mapping[str, Path]  # set -> where it lies
    missing: list[str] = field(default_factory=list)

    def set(self, name: str) -> SuiteSet:
        """Return what the paper says of a set."""
        return SUITES[self.name][name]


def find(name: str, root: Path) -> Suite:
    """Look for a suite's sets below a folder.

    Raises:
        DataError: no such folder, or none of the sets is in it.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}", expected="a folder that holds the sets of the suite")
    entries = {_plain(entry.name): entry for entry in sorted(root.iterdir())}
    present, missing = {}, []
    for dataset, expected in SUITES[name].items():
        entry = next((entries[n] for n in (dataset, *expected.names) if n in entries), None)
        if entry is None:
            missing.append(dataset)
        else:
            present[dataset] = entry
    if not present:
        raise DataError(
            f"{root} holds no set of the suite {name}",
            got=", ".join(sorted(e.name for e in root.iterdir())[:5]) or "an empty folder",
            expected=", ".join(SUITES[name]),
        )
    return Suite(name, present, missing)


def _plain(name: str) -> str:
    """Return a name without case, signs and ending: FGVC_Aircraft.parquet -> fgvcaircraft."""
    return re.sub(r"[^a-z0-9]", "", name.removesuffix(".parquet").lower())
