"""How far the views of a caption lie apart, engine by engine: pixels and a backbone's features.

python benchmarks/render_diversity.py [--captions 60] [--views 4] [--backbone SPEC] [--only ROW]

The same captions for all: CIFAR-10's concepts in places, which `pocket:` knows. Prints a Markdown
table; `cosine`, `worth` (effective number of views) and the spreads are `diversity.spread`'s.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

import numpy as np
from PIL import Image

from synclr_cli import engines, rng
from synclr_cli.config import RenderEngineConfig
from synclr_cli.render import diversity

CONCEPTS = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
PLACES = ("in the snow", "on a road", "on green grass", "at night", "in front of trees", "on sand")
ENGINES = {  # with a guidance pocket: takes 10 steps
    "pocket:, as it comes": ("pocket:", -1.0),
    **{f"pocket:, guidance {g:g}": ("pocket:", g) for g in (1.0, 1.5, 2.5, 4.0)},
    "procedural:": ("procedural:", 2.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=60)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--backbone", help="also its features: run folder, file, timm:NAME")
    parser.add_argument("--only", help="rows whose name holds this")
    arguments = parser.parse_args()
    rows = [
        (f"a {CONCEPTS[i % 10]} {PLACES[i // 10 % 6]}", CONCEPTS[i % 10], i)
        for i in range(arguments.captions)
        for _ in range(arguments.views)
    ]
    seeds = [
        rng.seed("render.view", 0, i, n % arguments.views, 0) for n, (*_, i) in enumerate(rows)
    ]
    describe = diversity.backbone(arguments.backbone) if arguments.backbone else None
    print(f"{len(rows) // arguments.views} captions, {arguments.views} views of each\n")
    extra = " features: cosine | worth |" if describe else ""
    print(f"| engine | within | between | cosine | worth |{extra}")
    print("|---|---|---|---|---|" + ("---|---|" if describe else ""))
    for name, (engine_name, guidance) in ENGINES.items():
        if arguments.only and arguments.only not in name:
            continue
        start = time.monotonic()
        config = replace(RenderEngineConfig(name=engine_name), guidance=guidance, batch_size=32)
        engine = engines.load("image", config)
        captions, concepts, ids = zip(*rows, strict=True)
        images = [
            Image.fromarray(i.pixels) for i in engine.generate(captions, concepts, seeds)
        ]  # fmt: skip
        found = diversity.spread(diversity.pixels(images), ids)
        figures = f"{found.within:.1f} | {found.between:.1f} | {found.cosine:.2f}"
        line = f"| {name} | {figures} | {found.effective_views:.2f} |"
        if describe:
            seen = diversity.spread(np.asarray(describe(images)), ids)
            line += f" {seen.cosine:.2f} | {seen.effective_views:.2f} |"
        print(line, flush=True)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
