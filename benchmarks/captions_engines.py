"""SmolLM2's captions a second: ours against plain `generate`, measured in one run.

    python benchmarks/captions_engines.py [--rows 512] [--plain-rows 64]

Plain is what the library's documentation shows: prompts padded to one length, `generate` with the
paper's sampling (temperature 0.8, top-p 0.9) and 40 new tokens, batch 32, in float32; then the same
in bfloat16 with `stop_strings` at the newline. Seconds are of the wall clock and of the CPU: on a
machine that others use too, the ratio of CPU seconds is the steadier one. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from synclr_cli.captions import concepts, prompts, quality
from synclr_cli.captions.engines.smollm2 import SmolLM2Engine
from synclr_cli.captions.generate import prompts_of
from synclr_cli.captions.sampler import RowSampler, noise_seeds
from synclr_cli.config import CaptionEngineConfig
from synclr_cli.learning import smollm2

NEW_TOKENS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--plain-rows", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()

    sampler = RowSampler(
        concepts.read("in1k"), prompts.shipped(), seed=0, shares=(0.44, 0.45, 0.11),
        demonstrations=3, block=256,
    )  # fmt: skip
    rows = sampler.rows(np.arange(arguments.rows))
    requests = prompts_of(rows, sampler)
    seeds = noise_seeds(0, rows.ids, 0).tolist()

    engine = SmolLM2Engine(
        "",
        CaptionEngineConfig(max_new_tokens=NEW_TOKENS, batch_size=arguments.batch_size),
    )
    engine.generate(requests[:8], seeds[:8])  # warm
    ours, made = timed(lambda: engine.generate(requests, seeds), len(requests))
    refused = [
        quality.reason(quality.tidy(c), p.concept) for c, p in zip(made, requests, strict=True)
    ]

    texts = [p.text for p in requests[: arguments.plain_rows]]
    report = {
        "threads": torch.get_num_threads(),
        "rows": arguments.rows,
        "engine": engine.revision,
        "ours": ours,
        "accepted_share": float(np.mean([r == "" for r in refused])),
        "generate_float32": plain(texts, torch.float32, stop=False),
        "generate_bfloat16_stop": plain(texts, torch.bfloat16, stop=True),
    }
    for name in ("generate_float32", "generate_bfloat16_stop"):
        other = report[name]
        report[f"ratio_to_{name}"] = {
            clock: round(other[clock] / ours[clock], 2)
            for clock in ("wall_ms_per_caption", "cpu_ms_per_caption")
        }
    print(json.dumps(report, indent=1))


def plain(texts: list[str], dtype: torch.dtype, *, stop: bool) -> dict[str, float]:
    model, tokenizer = smollm2.read_gguf(smollm2.weights_file(), "sdpa", dtype)
    tokenizer.padding_side = "left"
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    ends = {"stop_strings": ["\n"], "tokenizer": tokenizer} if stop else {}

    def run() -> None:
        for start in range(0, len(texts), 32):
            batch = tokenizer(texts[start : start + 32], padding=True, return_tensors="pt")
            model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                do_sample=True, temperature=0.8, top_p=0.9, top_k=0, max_new_tokens=NEW_TOKENS,
                **ends,
            )  # fmt: skip

    return timed(run, len(texts))[0]


def timed(work: Callable[[], Any], captions: int) -> tuple[dict[str, float], Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    figures = {
        "captions_per_s": round(captions / wall, 2),
        "wall_ms_per_caption": round(1000 * wall / captions, 1),
        "cpu_ms_per_caption": round(1000 * cpu / captions, 1),
    }
    return figures, result


if __name__ == "__main__":
    main()
