"""`template:` captions a second and peak memory, on one core.

    python benchmarks/captions_template.py [--count 10000000] [--similarity 0.8]

The mix is the paper's (`synclr`), the gate is on, a part has 16,384 captions as in the paper's
presets. The rate counts reading the concept lists and writing the file. Prints one JSON object.
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
from synclr_cli.data import manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--similarity", type=float, default=1.0, help="1: exact duplicates only")
    arguments = parser.parse_args()
    count = arguments.count
    console.set_quiet(True)
    config = CaptionsConfig(
        concepts="synclr",
        count=count,
        captions_per_part=16_384,
        max_similarity=arguments.similarity,
        engine=CaptionEngineConfig(name="template:"),
    )
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        out = run(config, Path(folder) / "captions")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        size = manifest.open_dataset(out, "captions").bytes
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "count": count,
                "max_similarity": arguments.similarity,
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
