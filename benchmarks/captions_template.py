"""`template:` captions a second and peak memory, on one core.

    python benchmarks/captions_template.py [--count 10000000]

The mix is the paper's (`synclr`), the gate is on, a part has 65,536 captions. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from synclr_cli import console
from synclr_cli.captions.run import run
from synclr_cli.config import CaptionEngineConfig, CaptionsConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    count = parser.parse_args().count
    console.set_quiet(True)
    config = CaptionsConfig(
        concepts="synclr",
        count=count,
        captions_per_part=65536,
        engine=CaptionEngineConfig(name="template:"),
    )
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        out = run(config, Path(folder) / "captions.parquet")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        size = out.stat().st_size
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "count": count,
                "captions_per_wall_s": round(count / wall),
                "captions_per_cpu_s": round(count / cpu),
                "peak_memory_mib": round(peak_kib / 1024),
                "file_mib": round(size / 2**20, 1),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
