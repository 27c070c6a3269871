"""How often a language model's rows change with the batch they are computed in.

    python benchmarks/captions_ties.py [--rows 256]

Concept, template, examples and noise are functions of (seed, caption_id); only sums that are taken
in another order can differ, and they turn a row only where two tokens are a rounding apart. Each
number format is run in batches of 128, and again of 17. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from synclr_cli.captions import concepts, prompts
from synclr_cli.captions.engines import smollm2
from synclr_cli.captions.generate import prompts_of
from synclr_cli.captions.sampler import RowSampler, noise_seeds
from synclr_cli.config import CaptionEngineConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    count = parser.parse_args().rows
    sampler = RowSampler(
        concepts.read("in1k"), prompts.shipped(), seed=0, shares=(0.44, 0.45, 0.11),
        demonstrations=3, block=256,
    )  # fmt: skip
    rows = sampler.rows(np.arange(count))
    requests = prompts_of(rows, sampler)
    seeds = noise_seeds(0, rows.ids, 0).tolist()
    report: dict[str, object] = {"rows": count}
    for dtype in ("bfloat16", "float32"):
        made = []
        for batch_size in (128, 17):
            config = CaptionEngineConfig(max_new_tokens=40, batch_size=batch_size, dtype=dtype)
            made.append(smollm2.SmolLM2Engine("", config).generate(requests, seeds))
        differing = sum(a != b for a, b in zip(*made, strict=True))
        report[dtype] = {"rows_that_differ": differing, "share": round(differing / count, 4)}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
