"""Patches as colours and nearest pictures: the numbers, and the sheets that are drawn."""

import numpy as np
import pytest
import torch
from PIL import Image

from synclr_cli.show import run


def test_the_components_are_those_of_a_singular_value_decomposition():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 5)) * [5, 3, 2, 1, 0.5])
    found = run.components(x)
    centred = x.numpy() - x.numpy().mean(0)
    _, _, basis = np.linalg.svd(centred, full_matrices=False)
    for k in range(3):
        expected = centred @ basis[k]
        inside = (found[:, k] > 0) & (found[:, k] < 1)  # not cut off by the stretching
        assert abs(np.corrcoef(found[inside, k], expected[inside])[0, 1]) > 1 - 1e-9
    assert found.min() == 0 and found.max() == 1


def test_a_pictures_nearest_are_others_by_cosine():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.1], [0.0, 1.0], [1.0, 1.0]])
    assert run.nearest(x, torch.tensor([0, 2]), 2).tolist() == [[1, 3], [3, 1]]


def test_show_draws_a_row_of_colours_for_each_backbone(tmp_path, synclr):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (50, 40), (80 * i, 30, 200 - 60 * i)).save(folder / f"{i}.png")
    backbones = "random:vit_tiny_patch16_224", "random:vit_small_patch32_224"
    done = synclr("show", *backbones, "--images", folder, "-o", tmp_path / "out", "-q")
    assert done.code == 0, done.err
    patches, near = (Image.open(line) for line in done.out.split())
    assert patches.width == near.width == 3 * 196 + 4  # three pictures; one and its two nearest
    assert patches.height == 3 * (16 + 144 + 4) + 4  # the pictures, then a row a backbone
    assert near.height == 2 * (16 + 3 * 148) + 4


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pictures_are_refused(tmp_path, synclr, count):
    for i in range(count):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    done = synclr("show", "random:vit_tiny_patch16_224", "--images", tmp_path)
    assert done.code == 3 and f"got {count}, expected two or more" in done.error_line
