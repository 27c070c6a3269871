"""How fast `procedural:` draws, and what a classifier can tell from its pixels.

    python benchmarks/render_procedural.py speed
    python benchmarks/render_procedural.py classes

`speed`: images per second of one core, masks included, and what the gate, JPEG and the mask's
PNG add. `classes`: held-out accuracy of a linear classifier on raw 32 px pixels and of a small CNN,
for colour words and for concepts (other captions and other seeds than in training). Colour should
be linear in the pixels; the concept should need shape and texture.
"""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from synclr_cli import config as configs
from synclr_cli.engines import GeneratedImage
from synclr_cli.render import generate
from synclr_cli.render.engines.procedural import scene
from synclr_cli.render.generate import Row

COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange")
CONCEPTS = (
    "dog", "horse", "hummingbird", "owl", "goldfish", "shark", "bee", "tarantula", "cobra",
    "robot", "fire truck", "bicycle", "airliner", "canoe", "teapot", "vase", "chair", "piano",
    "castle", "lighthouse", "oak tree", "palm", "daisy", "orchid", "apple", "burger", "hammer",
    "violin", "wreath", "clock", "starfish", "cactus", "camera", "backpack", "qwxyz", "plorb",
)  # fmt: skip
PLACES = ("in the snow", "on a beach", "in a kitchen", "in the forest", "on the street",
          "in a field", "on a table", "in a room", "in the mountains", "")  # fmt: skip


def speed() -> None:
    """Print images per second at the two sizes that matter, and what storing them adds."""
    for side, number in ((64, 600), (224, 120)):
        settings = {"engine.size": side, "stored_size": side}
        config = configs.build("render", settings)
        unmasked = configs.build("render", {**settings, "masks": False})
        scene.draw("a dog", "dog", 0, side)  # tiles are made once
        rows = [
            Row(i, 0, f"a {COLOURS[i % 8]} {CONCEPTS[i % 36]} {PLACES[i % 10]}",
                CONCEPTS[i % 36], i, 1 + i % 36)
            for i in range(number)
        ]  # fmt: skip
        start = time.process_time()
        painted = [GeneratedImage(*scene.draw(r.caption, r.concept, r.seed, side)) for r in rows]
        drawn = time.process_time()
        generate.encode(painted, rows, config)
        stored = time.process_time()
        generate.encode(painted, rows, unmasked)
        end = time.process_time()
        pixels, masks = stored - drawn, (stored - drawn) - (end - stored)
        print(
            f"{side} px, one core: {number / (drawn - start):.0f} images/s with their masks; "
            f"gate and JPEG take {1000 * (pixels - masks) / number:.2f} ms an image, the mask's "
            f"PNG {1000 * masks / number:.2f} ms; all together {number / (stored - start):.0f} "
            "images/s"
        )


def _set(concepts: tuple[str, ...], number: int, seed: int, coloured: bool):
    rng = np.random.default_rng(seed)
    images, colour_of, concept_of = [], [], []
    for _ in range(number):
        k, c, p = (int(rng.integers(n)) for n in (len(concepts), len(COLOURS), len(PLACES)))
        word = f"{COLOURS[c]} " if coloured else ""
        caption = f"a {word}{concepts[k]} {PLACES[p]}".strip()
        images.append(scene.draw(caption, concepts[k], int(rng.integers(1 << 62)), 64)[0])
        colour_of.append(c)
        concept_of.append(k)
    return np.stack(images), np.array(colour_of), np.array(concept_of)


def _linear(x: np.ndarray, y: np.ndarray, x2: np.ndarray, y2: np.ndarray) -> float:
    def flat(a: np.ndarray) -> np.ndarray:  # [B, 32 * 32 * 3]
        small = a.reshape(len(a), 32, 2, 32, 2, 3).mean((2, 4))
        return small.reshape(len(a), -1) / 127.5 - 1

    best = 0.0
    for strength in (1e-4, 1e-3, 1e-2):
        model = LogisticRegression(C=strength, max_iter=300).fit(flat(x), y)
        best = max(best, float(model.score(flat(x2), y2)))
    return best


def _cnn(x: np.ndarray, y: np.ndarray, x2: np.ndarray, y2: np.ndarray, epochs: int) -> float:
    torch.manual_seed(0)

    def block(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(),
            nn.Conv2d(b, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU(),
        )  # fmt: skip

    model = nn.Sequential(
        block(3, 24), block(24, 48), block(48, 96), block(96, 128), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(128, int(y.max()) + 1),
    )  # fmt: skip
    images = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.from_numpy(y)
    steps = epochs * (len(x) // 64)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        batch = images[rows]
        flip = torch.rand(64, 1, 1, 1) < 0.5
        batch = torch.where(flip, batch.flip(3), batch)
        loss = nn.functional.cross_entropy(model(batch), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        test = torch.from_numpy(x2).permute(0, 3, 1, 2).float() / 127.5 - 1
        return float((model(test).argmax(1).numpy() == y2).mean())


def classes() -> None:
    """Print held-out accuracies for colour words and concepts."""
    for concepts in (CONCEPTS[::4], CONCEPTS):
        n = 250 * len(concepts)
        x, colour, concept = _set(concepts, n, 1, coloured=True)
        x2, colour2, concept2 = _set(concepts, 1000, 2, coloured=True)
        print(f"{len(concepts)} concepts x {len(COLOURS)} colours, {n} images to learn from")
        print(f"  colour word, linear on pixels: {_linear(x, colour, x2, colour2):.3f}"
              f" (chance {1 / len(COLOURS):.3f})")  # fmt: skip
        chance = 1 / len(concepts)
        linear, cnn = _linear(x, concept, x2, concept2), _cnn(x, concept, x2, concept2, 12)
        print(f"  concept, linear on pixels:     {linear:.3f} (chance {chance:.3f})")
        print(f"  concept, small CNN:            {cnn:.3f}", flush=True)


if __name__ == "__main__":
    {"speed": speed, "classes": classes}[sys.argv[1] if len(sys.argv) > 1 else "speed"]()
