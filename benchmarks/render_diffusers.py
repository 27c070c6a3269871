"""How much faster `diffusers:` renders than the way the reference code does it.

    python benchmarks/render_diffusers.py [images] [rounds] [steps]
    python benchmarks/render_diffusers.py gpu [images] [steps]

A random pipeline in the layout of Stable Diffusion (12.8 M parameters in the UNet, 128 px), made
on the spot: weights do not change the speed. The reference's way: one prompt at a time, text
encoded each time, PNG to disk, DDIM 50 steps, guidance 2.5. The ways take turns in every round.
Ratios are medians over rounds of wall time, and of this process's CPU time, which other work on the
machine disturbs less.

`gpu`: a UNet and a VAE of Stable Diffusion 1.5's size with random weights at 512 px in bfloat16:
images a second, the ratio to the naive loop, and the share of wall time in which the denoiser's
kernels ran, by the profiler.
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

from synclr_cli import config as configs, console
from synclr_cli.data import artifacts
from synclr_cli.engines import load
from synclr_cli.render import generate
from synclr_cli.render.generate import Row, view_seed
from synclr_cli.render.run import CAPTIONS_PER_GROUP

VIEWS = 4
SIZE = 128
WAYS = {
    "batched, text once": {"dtype": "float32"},
    "the same in bfloat16": {"dtype": "bfloat16"},
    "DPM-Solver++ at 2/5 of the steps, bfloat16": {"dtype": "bfloat16", "scheduler": "dpm++"},
}


def make_pipeline(folder: Path, full_size: bool = False) -> Path:
    """Save the random pipeline and return its folder.

    Two attention heads of 32 to 96 channels each; SD 1.5 has 8 of 40 to 160, as `full_size` does.
    """
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = [*letters, *(f"{c}</w>" for c in letters), "th", "the</w>"]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    width, layers = (768, 12) if full_size else (256, 6)
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=width, intermediate_size=4 * width,
            num_hidden_layers=layers, num_attention_heads=width // 64, max_position_embeddings=77,
            bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1,
        )
    )  # fmt: skip
    if full_size:
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)  # SD 1.5's otherwise
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            sample_size=512, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    else:
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
    print(f"UNet of {millions:.1f} M parameters, {512 if full_size else SIZE} px, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads")  # fmt: skip
    StableDiffusionPipeline(
        vae, text, CLIPTokenizer(*files, model_max_length=77), unet, scheduler, None, None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "sd")  # fmt: skip
    return folder / "sd"


def rows_to_generate(images: int) -> list[Row]:
    """Return the views of made-up captions."""
    return [
        Row(i // VIEWS, i % VIEWS, f"the image of a {'fox' * (1 + i // VIEWS % 5)} in the snow",
            "fox", view_seed(0, i // VIEWS, i % VIEWS), 1)
        for i in range(images)
    ]  # fmt: skip


def reference_way(
    pipe: StableDiffusionPipeline, rows: list[Row], steps: int, out: Path, side: int = SIZE
) -> list[np.ndarray]:
    """Paint one prompt at a time, and save PNGs."""
    painted = []
    for row in rows:
        generator = torch.Generator("cpu").manual_seed(row.seed)
        image = pipe(
            row.caption, height=side, width=side, num_inference_steps=steps, guidance_scale=2.5,
            generator=generator,
        ).images[0]  # fmt: skip
        image.save(out / f"{row.caption_id}_{row.view}.png")
        painted.append(np.asarray(image))
    return painted


def our_way(engine, config: configs.RenderConfig, rows: list[Row], out: Path) -> None:
    """Generate, encode and write as `synclr render` does."""
    header = artifacts.Header(schema="images", config={})
    with generate.image_generator(engine, config, len(rows)) as generator:
        records = [r for batch in generator.submit(rows) for r in batch.result()]
    columns = artifacts.COLUMNS["images"]
    table = pa.Table.from_pylist(
        [{c: r[c] for c in columns} for r in records], schema=artifacts.arrow_schema("images")
    )
    artifacts.write_parquet(
        out / "part.parquet", "images", header, [table], rows_per_group=CAPTIONS_PER_GROUP * VIEWS
    )


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, tuple[float, float]]:
    """Return what the work returns, and its wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work(*arguments)
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def main(images: int = 16, rounds: int = 3, steps: int = 50) -> None:
    """Print the ratios of our ways to the reference's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sd = make_pipeline(folder)
        pipe = StableDiffusionPipeline.from_pretrained(sd, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        rows = rows_to_generate(images)
        ways = {}
        for label, settings in WAYS.items():
            values = {"name": f"diffusers:{sd}", "size": SIZE, "batch_size": 16, **settings}
            values["steps"] = steps * 2 // 5 if "scheduler" in settings else steps
            config = configs.build("render", {f"engine.{k}": v for k, v in values.items()})
            ways[label] = (load("image", config.engine), config)
        reference_way(pipe, rows[:1], min(steps, 5), folder)
        seconds: dict[str, list[tuple[float, float]]] = {n: [] for n in ["reference", *ways]}
        for _ in range(rounds):
            theirs, took = timed(reference_way, pipe, rows, steps, folder)
            seconds["reference"].append(took)
            for label, (engine, config) in ways.items():
                seconds[label].append(timed(our_way, engine, config, rows, folder)[1])
        painted = {
            label: engine.generate([r.caption for r in rows], [""] * images, [r.seed for r in rows])
            for label, (engine, _) in ways.items()
        }
    print(f"{images} images, {rounds} rounds, {steps} steps")
    for label, ours in painted.items():
        pairs = zip(theirs, ours, strict=True)
        levels = np.stack([np.abs(a.astype(int) - b.pixels.astype(int)) for a, b in pairs])
        print(f"{label:42} {(levels <= 1).mean():9.4%} of values within one level of the "
              f"reference's, mean difference {levels.mean() / 255:.4f}, "
              f"standard deviation {np.std(theirs) / 255:.3f}")  # fmt: skip
    print(f"{'':42} {'wall s':>8} {'CPU s':>8} {'wall':>6} {'CPU':>6}   (an image; ratios)")
    for label, times in seconds.items():
        wall, cpu = (statistics.median(t[k] for t in times) / images for k in (0, 1))
        pairs = list(zip(seconds["reference"], times, strict=True))
        faster = [statistics.median(a[k] / b[k] for a, b in pairs) for k in (0, 1)]
        print(f"{label:42} {wall:8.3f} {cpu:8.3f} {faster[0]:6.2f} {faster[1]:6.2f}")


def gpu(images: int = 64, steps: int = 50) -> None:
    """Print speed, ratio and the denoiser's share of wall time on the GPU."""
    if not torch.cuda.is_available():
        sys.exit("no GPU here")
    with tempfile.TemporaryDirectory() as name:
        sd = make_pipeline(Path(name), full_size=True)
        values = {"name": f"diffusers:{sd}", "size": 512, "batch_size": 16, "steps": steps,
                  "dtype": "bfloat16"}  # fmt: skip
        config = configs.build("render", {f"engine.{k}": v for k, v in values.items()})
        engine = load("image", config.engine)
        rows = rows_to_generate(images)
        our_way(engine, config, rows[:16], Path(name))  # warm up
        _, (wall, _) = timed(our_way, engine, config, rows, Path(name))
        busy, profiled = denoiser_time(engine, config, rows, Path(name))
        pipe = StableDiffusionPipeline.from_pretrained(
            sd, safety_checker=None, torch_dtype=torch.bfloat16
        ).to("cuda")
        pipe.set_progress_bar_config(disable=True)
        few = rows[:4]
        reference_way(pipe, few[:1], steps, Path(name), side=512)
        _, (naive, _) = timed(reference_way, pipe, few, steps, Path(name), 512)
    print(f"{images / wall:.2f} images/s, {naive / len(few) * images / wall:.2f} times the "
          f"naive loop; denoiser busy {busy / profiled:.1%} of wall time")  # fmt: skip


def denoiser_time(engine, config: configs.RenderConfig, rows: list[Row], out: Path):
    """Return the seconds in which the UNet's kernels ran, and those of the whole work."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile, record_function

    unet, ranges = engine._pipe.unet, []

    def begin(*_: Any) -> None:
        ranges.append(record_function("denoiser"))
        ranges[-1].__enter__()

    def end(*_: Any) -> None:
        ranges.pop().__exit__(None, None, None)

    hooks = [unet.register_forward_pre_hook(begin), unet.register_forward_hook(end)]
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            start = time.perf_counter()
            our_way(engine, config, rows, out)
            torch.cuda.synchronize()
            wall = time.perf_counter() - start
    finally:
        for hook in hooks:
            hook.remove()
    # The range shows up on the device, too; on the CPU's side it sums the kernels it started.
    spent = [
        e.device_time_total for e in profiler.key_averages()
        if e.key == "denoiser" and e.device_type == DeviceType.CPU
    ]  # fmt: skip
    return sum(spent) / 1e6, wall


if __name__ == "__main__":
    console.set_quiet(True)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    if sys.argv[1:2] == ["gpu"]:
        gpu(*map(int, sys.argv[2:]))
    else:
        main(*map(int, sys.argv[1:]))
