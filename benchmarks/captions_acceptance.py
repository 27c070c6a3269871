"""What a language model's captions are worth: acceptance, variety, and some of them as they come.

    python benchmarks/captions_acceptance.py [--count 1000] [--engine smollm2:] [--shown 50]

The settings are those of the preset `tiny` with the paper's mix of concepts. Prints the figures as
one JSON object, then a Markdown table of captions drawn at random, none left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from synclr_cli import console, presets
from synclr_cli.captions import report
from synclr_cli.captions.run import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--engine", default="smollm2:")
    parser.add_argument("--shown", type=int, default=50)
    arguments = parser.parse_args()
    console.set_quiet(True)
    settings = presets.resolve("captions", preset="tiny", flags={}, sets=()).config
    engine = dataclasses.replace(settings.engine, name=arguments.engine)
    config = dataclasses.replace(settings, concepts="synclr", count=arguments.count, engine=engine)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        out = run(config, Path(folder) / "captions")
        seconds = time.perf_counter() - start
        measured = report.report(out)
        rows = pq.read_table(out).to_pylist()
    refused = measured["refusals"]
    figures = {
        "captions": arguments.count,
        "seconds": round(seconds, 1),
        "accepted_at_first_draw": round(refused["accepted_share"], 3),
        "written_by_rule": round(refused["by_rule"] / arguments.count, 3),
        "refusals": refused["reasons"],
        "distinct_1": round(measured["distinct_1"], 3),
        "distinct_2": round(measured["distinct_2"], 3),
        "words_a_caption": round(measured["words"]["mean"], 1),
    }
    print(json.dumps(figures, indent=1))
    print("\n| concept | background or relation | caption |\n|---|---|---|")
    shown = np.random.default_rng(0).permutation(len(rows))[: arguments.shown]
    for row in (rows[i] for i in shown):
        rule = " (by rule)" if row["engine"] == "template:" != arguments.engine else ""
        caption = row["caption"].replace("|", "\\|")
        print(f"| {row['concept']} | {row['companion']} | {caption}{rule} |")


if __name__ == "__main__":
    main()
