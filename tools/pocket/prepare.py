"""Labelled images -> what `train.py` reads: pixels, and encoded sentences for all attributes.

    python tools/pocket/prepare.py cifar10/train.parquet --written captions --out FOLDER

The Parquet has the Hugging Face layout: `image` {bytes, path} and `label` 0-9 in CIFAR-10's order.
Sentences come from `sentences.py`, and with `--written` from the captions of `synclr captions -c
cifar10-words`, as far as `sentences.read` understands them. They are encoded once (a few minutes).
Writes FOLDER/images.safetensors and FOLDER/texts.safetensors.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import colours
import numpy as np
import pyarrow.parquet as pq
import sentences
import torch
from PIL import Image
from safetensors.torch import save_file

from synclr_cli.render.engines.pocket import weights
from synclr_cli.render.engines.pocket.text import Whitening, mean_states, read_language_model

WIDTH = 128  # numbers a sentence becomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--written", type=Path, help="captions by a language model")
    parser.add_argument("--weights", type=Path, help="encode as this flow reads, to distil it")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    images, labels = read_images(options.images)
    thing, ground = colours.describe(images)
    save_file(
        {
            "images": torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),  # [N, 3, H, W]
            "attributes": torch.from_numpy(
                np.stack([labels, thing, ground], 1)
            ),  # [N, 3], -1: none
        },
        options.out / "images.safetensors",
    )

    texts, described = labelled_sentences(options.written)
    print(f"{len(texts)} sentences to encode", flush=True)
    states = encode(texts)
    if options.weights:
        whitening = weights.load(options.weights).whitening
    else:
        whitening = Whitening.fit(states, WIDTH)
    save_file(
        {
            "vectors": whitening(states),  # [T, 128]
            "attributes": torch.tensor(described),  # [T, 3], -1: not said
            **{f"whitening.{k}": v for k, v in whitening.state_dict().items()},
        },
        options.out / "texts.safetensors",
    )
    (options.out / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")


def read_images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images [N, H, W, 3] uint8 and labels [N]."""
    table = pq.read_table(path, columns=["image", "label"])
    images = [
        np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))
        for image in table["image"].to_pylist()
    ]
    return np.stack(images), table["label"].to_numpy()


def labelled_sentences(written: Path | None) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Return sentences [T], and what each says: class, colour and ground, -1 where it does not."""
    named = ("", *colours.COLOURS)
    texts_of: dict[str, tuple[int, int, int]] = {}

    def add(text: str, kind: str, colour: str, ground: str) -> None:
        said = (sentences.CLASSES.index(kind), named.index(colour) - 1, named.index(ground) - 1)
        texts_of.setdefault(text, said)

    for kind in sentences.CLASSES:
        for colour in named:
            for ground in ("", *colours.GROUNDS):
                few = 48 if not colour or not ground else 8
                for text in sentences.captions(kind, colour, ground, few):
                    add(text, kind, colour, ground)
    if written:
        table = pq.read_table(written, columns=["caption", "engine"])
        texts = [r["caption"] for r in table.to_pylist() if not r["engine"].startswith("template")]
        understood = [(text, said) for text in texts if (said := sentences.read(text))]
        for text, said in understood:
            add(text, *said)
        print(f"{len(understood)} of {len(texts)} written captions were understood", flush=True)
    return list(texts_of), list(texts_of.values())


def encode(texts: list[str]) -> torch.Tensor:
    """Return the mean hidden states of sentences [T, 576]."""
    return mean_states(*read_language_model(), texts)


if __name__ == "__main__":
    main()
