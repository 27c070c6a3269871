"""A `pocket:` model as a diffusers folder, opened again and compared before it is kept.

    pocket: --write--> unet/ few_steps/ scheduler/ whitening/ model_index.json pipeline.py

    PocketPipeline.from_pretrained(FOLDER)            or, through pipeline.py,
    DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)

The language model is not copied: the pipeline reads it from SmolLM2's package.
"""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch

from synclr_cli import console
from synclr_cli.data import artifacts, exports, storage
from synclr_cli.errors import EngineError
from synclr_cli.render.engines.pocket import weights
from synclr_cli.render.engines.pocket.pipeline import SHAPE, PocketPipeline

TOLERANCE = 1e-4  # of values in -1..1; where a tensor lies in memory changes the last bits
_PIPELINE = """# What DiffusionPipeline.from_pretrained looks for; the package synclr has it.
from synclr_cli.render.engines.pocket.pipeline import PocketPipeline  # noqa: F401
"""


def run(target: str, out: Path, *, overwrite: bool = False) -> Path:
    """Write the model of `pocket:TARGET` to `out` and return it; the same one there stays.

    Raises:
        UsageError: `out` holds something else.
        EngineError: there are no such weights, or diffusers makes other images with them.
    """
    path = Path(target).expanduser() if target else weights.SHIPPED
    pipe = weights.load(path)
    few_steps = path.with_name(weights.FEW_STEPS)
    record = {
        "to": "diffusers",
        "weights": storage.digest(path),
        "few_steps": storage.digest(few_steps) if pipe.few_steps is not None else "",
    }
    with exports.new_folder(out, record, overwrite=overwrite) as partial:
        if partial is None:
            return out
        diffusers.utils.logging.disable_progress_bar()
        diffusers.utils.logging.set_verbosity_error()
        pipe.save_pretrained(partial)
        (partial / "pipeline.py").write_text(_PIPELINE, encoding="utf-8")
        again = PocketPipeline.from_pretrained(partial)
        for part in ("unet", "few_steps"):
            if getattr(pipe, part) is not None:
                opened = diffusers.UNet2DConditionModel.from_pretrained(partial, subfolder=part)
                setattr(again, part, opened)
        apart = (_images(pipe) - _images(again)).abs().max().item()
        if not apart < TOLERANCE:
            raise EngineError(
                f"{path} in diffusers: its images differ",
                do="report it with the versions of torch and diffusers",
            )
        exports.record_export(partial, record, artifacts.parent(path, None, record["weights"]))
    console.note("diffusers makes the same images")
    return out


def _images(pipe: PocketPipeline) -> torch.Tensor:
    """Return images of a made-up sentence by the flow and by few steps, [2, 12, 16, 16]."""
    pipe.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(0)
    text = torch.randn(1, pipe.whitening.config.width, generator=draw)
    noise = torch.randn(1, *SHAPE, generator=draw)
    images = [
        pipe(
            prompt_embeds=text, latents=noise, num_inference_steps=2, guidance_scale=guidance,
            output_type="latent",
        ).images
        for guidance in (1.5, None)
    ]  # fmt: skip
    return torch.cat(images)
