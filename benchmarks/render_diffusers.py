"""How much faster `diffusers:` renders than the way the reference code does it.

    python benchmarks/render_diffusers.py [pictures] [rounds] [steps]

A random pipeline in the layout of Stable Diffusion (12.8 M parameters in the UNet, 128 px), made
on the spot: weights do not change the speed. The reference's way: one prompt at a time, text
encoded each time, PNG to disk, DDIM 50 steps, guidance 2.5. The ways take turns in every round, so
that a busy machine slows all of them. Two ratios, medians over rounds: of wall time, and of this
process's CPU time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pyarrow as pa
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from synclr_cli import artifacts, config as configs, console
from synclr_cli.engines import load
from synclr_cli.render import painting
from synclr_cli.render.painting import Row, view_seed

VIEWS = 4
SIZE = 128
WAYS = {
    "batched, text once": {"dtype": "float32"},
    "the same in bfloat16": {"dtype": "bfloat16"},
    "DPM-Solver++ at 2/5 of the steps, bfloat16": {"dtype": "bfloat16", "scheduler": "dpm++"},
}


def make_pipeline(folder: Path) -> Path:
    """Save the random pipeline and return its folder.

    Two attention heads of 32 to 96 channels each; SD 1.5 has them of 40 to 160.
    """
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = [*letters, *(f"{c}</w>" for c in letters), "th", "the</w>"]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=256, intermediate_size=1024,
            num_hidden_layers=6, num_attention_heads=4, max_position_embeddings=77,
            bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=2,
        block_out_channels=(64, 128, 192), cross_attention_dim=256, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 32, 32), layers_per_block=1, norm_num_groups=8,
        latent_channels=4, sample_size=SIZE,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    millions = sum(p.numel() for p in unet.parameters()) / 1e6
    print(f"UNet of {millions:.1f} M parameters, {SIZE} px, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    StableDiffusionPipeline(
        vae, text, CLIPTokenizer(*files, model_max_length=77), unet, scheduler, None, None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "sd")  # fmt: skip
    return folder / "sd"


def rows_to_paint(pictures: int) -> list[Row]:
    """Return the views of made-up captions."""
    return [
        Row(i // VIEWS, i % VIEWS, f"the picture of a {'fox' * (1 + i // VIEWS % 5)} in the snow",
            "fox", view_seed(0, i // VIEWS, i % VIEWS), 1)
        for i in range(pictures)
    ]  # fmt: skip


def reference_way(
    pipe: StableDiffusionPipeline, rows: list[Row], steps: int, out: Path
) -> list[np.ndarray]:
    """Paint one prompt at a time, and save PNGs."""
    painted = []
    for row in rows:
        generator = torch.Generator("cpu").manual_seed(row.seed)
        picture = pipe(
            row.caption, height=SIZE, width=SIZE, num_inference_steps=steps, guidance_scale=2.5,
            generator=generator,
        ).images[0]  # fmt: skip
        picture.save(out / f"{row.caption_id}_{row.view}.png")
        painted.append(np.asarray(picture))
    return painted


def our_way(engine, config: configs.RenderConfig, rows: list[Row], out: Path) -> None:
    """Paint, encode and write as `synclr render` does."""
    header = artifacts.Header(schema="images", config={})
    with painting.painter(engine, config, len(rows)) as painter:
        records = [r for batch in painter.submit(rows) for r in batch.result()]
    table = pa.Table.from_pylist(records, schema=artifacts.arrow_schema("images"))
    artifacts.write_parquet(out / "part.parquet", "images", header, [table], rows_per_group=64)


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, tuple[float, float]]:
    """Return what the work returns, and its wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work(*arguments)
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def main(pictures: int = 16, rounds: int = 3, steps: int = 50) -> None:
    console.set_quiet(True)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sd = make_pipeline(folder)
        pipe = StableDiffusionPipeline.from_pretrained(sd, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        rows = rows_to_paint(pictures)
        ways = {}
        for label, settings in WAYS.items():
            values = {"name": f"diffusers:{sd}", "size": SIZE, "batch_size": 16, **settings}
            values["steps"] = steps * 2 // 5 if "scheduler" in settings else steps
            config = configs.build("render", {f"engine.{k}": v for k, v in values.items()})
            ways[label] = (load("image", config.engine), config)
        reference_way(pipe, rows[:1], steps, folder)
        for engine, config in ways.values():
            engine.paint([r.caption for r in rows[:2]], ["", ""], [1, 2])
            del config
        seconds: dict[str, list[tuple[float, float]]] = {n: [] for n in ["reference", *ways]}
        for _ in range(rounds):
            theirs, took = timed(reference_way, pipe, rows, steps, folder)
            seconds["reference"].append(took)
            for label, (engine, config) in ways.items():
                seconds[label].append(timed(our_way, engine, config, rows, folder)[1])
        first, _ = next(iter(ways.values()))
        ours = first.paint([r.caption for r in rows], [""] * pictures, [r.seed for r in rows])
        pairs = zip(theirs, ours, strict=True)
        levels = np.stack([np.abs(a.astype(int) - b.pixels.astype(int)) for a, b in pairs])
        print(f"{pictures} pictures, {rounds} rounds; our float32 pictures lie within one level of "
              f"the reference's on {(levels <= 1).mean():.4%} of the values")  # fmt: skip
        print(f"{'':42} {'wall s':>8} {'CPU s':>8} {'wall':>6} {'CPU':>6}   (a picture; ratios)")
        for label, times in seconds.items():
            wall, cpu = (statistics.median(t[k] for t in times) / pictures for k in (0, 1))
            pairs = list(zip(seconds["reference"], times, strict=True))
            faster = [statistics.median(a[k] / b[k] for a, b in pairs) for k in (0, 1)]
            print(f"{label:42} {wall:8.3f} {cpu:8.3f} {faster[0]:6.2f} {faster[1]:6.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
