"""Commands that docs/train.md shows resolve to settings, and the released one to the released."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from synclr_cli import presets
from synclr_cli.config import TrainConfig

DOCS = Path(__file__).parents[2] / "docs" / "train.md"
TEXT = DOCS.read_text(encoding="utf-8").replace("\\\n", " ") if DOCS.is_file() else ""
ROWS = dict(re.findall(r"^\| (.+?) \| `\$P(.*?)` \|$", TEXT, flags=re.M))

pytestmark = pytest.mark.skipif(not TEXT, reason="a checkout's documents")


def resolved(arguments: str, preset: str = "vitb-ablation") -> TrainConfig:
    words = shlex.split(arguments)
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    config = presets.resolve("train", preset=preset, sets=sets).config
    assert isinstance(config, TrainConfig)
    return config


def test_the_rows_of_tables_4_and_5_are_all_there() -> None:
    assert len(ROWS) == 7
    found = {
        name: (c.teacher, c.patch_weight > 0, c.local_crops > 0, c.positives, c.objective)
        for name, c in ((name, resolved(text)) for name, text in ROWS.items())
    }
    assert found == {
        "StableRep": (False, False, False, "caption", "contrast"),
        "+ EMA": (True, False, False, "caption", "contrast"),
        "+ EMA + iBOT": (True, True, False, "caption", "contrast"),
        "+ EMA + multi-crop": (True, False, True, "caption", "contrast"),
        "SynCLR, all of it": (True, True, True, "caption", "contrast"),
        "SimCLR: every image a class": (False, False, False, "image", "contrast"),
        "supervised: cross entropy of the concepts": (
            False, False, False, "concept", "cross-entropy",
        ),
    }  # fmt: skip
    # As many crops a step, whatever makes a class.
    assert {c.views * c.global_crops for c in map(resolved, ROWS.values())} == {4}


def test_the_released_command_is_what_the_released_code_was_run_with() -> None:
    (command,) = re.findall(r"^synclr train (.*head_norm=layer.*)$", TEXT, flags=re.M)
    c = resolved(command)
    assert (c.head_norm, c.temperature, c.prototypes) == ("layer", 0.1, 8192)
    assert (c.captions_per_batch, c.views, c.local_crops, c.local_size) == (2048, 4, 4, 96)
    assert (c.mask_first, c.mask_probability, c.mask_ratio) == (True, 0.5, 0.5)
    assert (c.drop_path, c.downsample, c.clip_grad, c.end_lr) == (0, 0, 0, 0)
    assert (c.weight_decay, c.weight_decay_end, c.beta1, c.beta2) == (0.1, 0.1, 0.9, 0.98)
    # base 1.5e-4 x (captions x images x global crops / 2) / 256
    assert c.peak_lr == pytest.approx(1.5e-4 * 2048 * 4 / 2 / 256)
    epoch = 10_000_000 / 2048
    assert c.steps == pytest.approx(15 * epoch, abs=15)
    assert c.warmup_steps == pytest.approx(epoch / 2, abs=1)
    assert c.teacher_temperature_steps == pytest.approx(epoch, abs=1)
    assert (c.ema, c.ema_end, c.sinkhorn_iterations) == (0.994, 1.0, 3)
    assert (c.teacher_temperature, c.teacher_temperature_end) == (0.04, 0.07)
    assert (c.jitter, c.grey, c.blur, c.solarise) == (0.8, 0.2, 1.0, 0.2)
