"""What GPUs can do, from their makers' data sheets; a number here is a ceiling, not a measurement.

A GPU is named as torch names it ("NVIDIA H100 80GB HBM3") or as people do ("h100", "rtx-4090").
"""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from synclr_cli.errors import UsageError


class Gpu(NamedTuple):
    """One device."""

    tflops: float  # dense bfloat16 on tensor cores, no sparsity
    memory_gb: float  # 10^9 bytes
    bandwidth: float  # of that memory, 10^12 bytes/s
    link: float  # to the others of its node, 10^9 bytes/s in one direction


# Sources: the makers' data sheets of these names; variants of one name: SXM, the larger memory.
GPUS = {
    "B200": Gpu(2250.0, 180, 8.0, 900),
    "GH200": Gpu(989.0, 96, 4.0, 450),
    "H200": Gpu(989.0, 141, 4.8, 450),
    "H100": Gpu(989.0, 80, 3.35, 450),
    "H100 PCIe": Gpu(756.0, 80, 2.0, 64),
    "H100 NVL": Gpu(835.0, 94, 3.9, 300),
    "H20": Gpu(148.0, 96, 4.0, 450),
    "A100": Gpu(312.0, 80, 2.04, 300),
    "A800": Gpu(312.0, 80, 2.04, 200),
    "A40": Gpu(149.7, 48, 0.696, 32),
    "A30": Gpu(165.0, 24, 0.933, 32),
    "A10": Gpu(125.0, 24, 0.6, 32),
    "A10G": Gpu(70.0, 24, 0.6, 32),
    "L40S": Gpu(362.0, 48, 0.864, 32),
    "L40": Gpu(181.0, 48, 0.864, 32),
    "L4": Gpu(121.0, 24, 0.3, 32),
    "RTX 6000 Ada": Gpu(364.0, 48, 0.96, 32),
    "RTX A6000": Gpu(154.8, 48, 0.768, 32),
    "RTX 4090": Gpu(165.2, 24, 1.008, 32),
    "RTX 3090": Gpu(71.0, 24, 0.936, 32),
    "MI300X": Gpu(1307.0, 192, 5.3, 448),
    "MI250X": Gpu(191.5, 64, 1.6, 50),  # of one of its two dies, which is what torch calls a device
}


def of_device(name: str) -> Gpu | None:
    """Return the GPU that torch gives this name, None if it is not listed.

    The longest listed name that is part of it counts: an "H100 PCIe" is no "H100".
    """
    words = f" {name.replace('-', ' ').replace('_', ' ')} "
    fitting = [known for known in GPUS if f" {known} " in words]
    return GPUS[max(fitting, key=len)] if fitting else None


def name_of(text: str) -> str:
    """Return the listed name of what somebody calls a GPU: h100, rtx4090, 4090.

    Raises:
        UsageError: it is not listed; names the nearest.
    """
    plain = {_plain(name): name for name in GPUS}
    key = _plain(text)
    if key in plain:
        return plain[key]
    endings = [name for short, name in plain.items() if len(key) > 2 and short.endswith(key)]
    if len(endings) == 1:
        return endings[0]
    near = [plain[k] for k in difflib.get_close_matches(key[:99], plain, n=1, cutoff=0.4)]
    shown = text if len(text) < 40 else f"{text[:37]}..."
    raise UsageError(
        f"unknown GPU {shown}",
        do=f"did you mean {near[0]}?" if near else f"listed are {', '.join(GPUS)}",
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+|nvidia|amd|geforce|instinct", "", name.lower())
