"""Starting from other weights: the first step sees them, whatever they were normalised with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from synclr_cli.data import artifacts, storage
from synclr_cli.errors import DataError, UsageError
from synclr_cli.learning import backbone
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train import init
from synclr_cli.train.learner import Learner
from synclr_cli.train.run import run

ALONE = Runtime(torch.device("cpu"), None)


def bare(folder: Path, *, prefix: str = "", size: int = 32, depth: int = 2) -> Path:
    """Write weights of `small`'s architecture as somebody else would."""
    torch.manual_seed(7)
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=size, patch_size=8, depth=depth
    )
    state = {prefix + k: v.contiguous() for k, v in model.state_dict().items()}
    path = folder / ("weights.pth" if prefix else "weights.safetensors")
    torch.save({"model": state}, path) if prefix else save_file(state, path)
    return path


def test_a_run_starts_from_the_weights_it_is_given(
    images: Path, small: Callable, tmp_path: Path
) -> None:
    path = bare(tmp_path, prefix="module.visual.")
    config = small(init=str(path), steps=1, warmup_steps=0, peak_lr=0.0, backbone_steps=1)
    out = run(config, images, tmp_path / "run")  # at a learning rate of 0 nothing moves
    given = torch.load(path, weights_only=True)["model"]
    made, header = artifacts.read_tensors(out / "backbone.safetensors", "backbone")
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, given[f"module.visual.{name}"], rtol=0, atol=0)
    assert [p["name"] for p in header.parents] == ["images", "weights"]


def test_a_run_continues_another_run(images: Path, small: Callable, tmp_path: Path) -> None:
    first = run(small(steps=2, warmup_steps=0), images, tmp_path / "first")
    second = run(small(steps=2, warmup_steps=0, init=str(first)), images, tmp_path / "second")
    header = artifacts.tensors_header(second / "backbone.safetensors")
    assert header.parents[1]["digest"] == storage.digest(first / "backbone.safetensors")
    # The same run again is finished; from other weights it is another run.
    assert run(small(steps=2, warmup_steps=0, init=str(first)), images, second) == second
    with pytest.raises(UsageError, match=r"train.init"):
        run(small(steps=2, warmup_steps=0, init=str(second)), images, second)


def test_student_and_teacher_start_alike(small: Callable, tmp_path: Path) -> None:
    start = init.open_start(small(init=str(bare(tmp_path))))
    assert start is not None
    learner = Learner(small(), ALONE, start=init.fit(start))
    for model in (learner.student, learner.teacher):
        for name, tensor in model.vit.state_dict().items():
            torch.testing.assert_close(tensor, start.model.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), backbone.IMAGENET_MEAN])
def test_another_normalisation_is_taken_up_by_the_patch_embedding(
    small: Callable, tmp_path: Path, mean: tuple, offset: bool
) -> None:
    start = init.open_start(small(init=str(bare(tmp_path))))
    assert start is not None
    start = dataclasses.replace(start, mean=mean, std=(0.5, 0.4, 0.3))
    if not offset:
        start.model.patch_embed.proj.bias = None
    pixels = torch.rand(2, 3, 32, 32)

    def shown(m: tuple, s: tuple) -> torch.Tensor:
        return (pixels - torch.tensor(m)[:, None, None]) / torch.tensor(s)[:, None, None]

    with torch.no_grad():
        own = start.model.eval().forward_features(shown(mean, start.std))
        start.model.load_state_dict(init.fit(start))
        ours = start.model.forward_features(shown(backbone.IMAGENET_MEAN, backbone.IMAGENET_STD))
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)


def test_the_position_table_is_resized_to_the_crops(small: Callable, tmp_path: Path) -> None:
    start = init.open_start(small(init=str(bare(tmp_path, size=64))))
    assert start is not None and start.model.pos_embed.shape[1] == 1 + 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3}, "got depth 2, expected 3. Add --set train.depth=2"),
        ({"patch_size": 16}, "got patch_size 8, expected 16. Add --set train.patch_size=8"),
        (
            {"arch": "vit_small_patch16_224"},
            "got arch's width 192, expected 384. Name its train.arch",
        ),
    ],
)
def test_weights_of_another_architecture_are_refused(
    small: Callable, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        init.open_start(small(**changes, init=str(bare(tmp_path))))


def test_a_start_that_is_not_there_is_named(small: Callable) -> None:
    with pytest.raises(DataError, match="no backbone nowhere"):
        init.open_start(small(init="nowhere"))
