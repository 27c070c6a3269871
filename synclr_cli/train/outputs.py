"""What a training run writes that other runs do not.

out/
    damaged.jsonl         the images that did not decode, if any
    skipped.jsonl         the steps whose loss was not finite, if any were skipped
    backbones/step-N/     the backbone of then, every `backbone_steps` updates; a run folder each
    README.md             its card, in Hugging Face's form
    config.json           the backbone's, for timm's `local-dir:`
    backbone.safetensors  the result
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from timm.models import VisionTransformer

from synclr_cli.config import TrainConfig
from synclr_cli.data import cards, storage
from synclr_cli.data.artifacts import Header
from synclr_cli.learning import backbone
from synclr_cli.learning.run_folder import RunFolder
from synclr_cli.train.learner import Learner

DAMAGED_FILE, SKIPPED_FILE, BACKBONES = "damaged.jsonl", "skipped.jsonl", "backbones"


def keep_backbone(folder: RunFolder, learner: Learner, captions: int, steps: int) -> None:
    """Write the teacher's ViT of now beside the result to come."""
    vit = learner.backbone()
    if folder.runtime.is_main:
        place = folder.work / BACKBONES / f"step-{steps:08d}"
        _save_backbone(place, folder.header, vit, learner.config, captions, steps)


def finish(folder: RunFolder, learner: Learner, captions: int, steps: int) -> None:
    """Write the teacher's ViT as the result, and finish the run."""
    vit, config = learner.backbone(), learner.config

    def write(place: Path) -> None:
        facts = {
            "arch": config.arch,
            "image_size": config.image_size,
            "parameters": sum(p.numel() for p in vit.parameters()),
            "steps": steps,
            "captions": captions,
        }
        cards.write_run(place, folder.header, facts)
        _save_backbone(place, folder.header, vit, config, captions, steps)

    folder.finish(write)


def _save_backbone(
    place: Path,
    header: Header,
    vit: VisionTransformer,
    config: TrainConfig,
    captions: int,
    steps: int,
) -> None:
    weights = "teacher" if config.teacher else "student"
    backbone.save(
        place,
        vit,
        replace(header, facts={"steps": steps, "captions": captions, "weights": weights}),
        arch=config.arch,
        image_size=config.image_size,
        patch_size=config.patch_size,
        depth=config.depth,
    )


def list_damaged(folder: Path, images: Sequence[tuple[int, int, str]]) -> None:
    """Append images that did not decode to damaged.jsonl, each once over all resumes."""
    if not images:
        return
    file = folder / DAMAGED_FILE
    known = {(line["caption_id"], line["view"]) for line in storage.read_lines(file)}
    for caption_id, view, what in images:
        if (caption_id, view) not in known:
            known.add((caption_id, view))
            storage.append_line(file, {"caption_id": caption_id, "view": view, "what": what})
