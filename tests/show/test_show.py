"""Patches as colours and nearest images: the numbers, and the sheets that are drawn."""

import numpy as np
import pytest
import torch
from PIL import Image
from reference import Array, unit

from synclr_cli.learning import backbone
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


def test_a_images_nearest_are_others_by_cosine():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.1], [0.0, 1.0], [1.0, 1.0]])
    assert run.nearest(x, torch.tensor([0, 2]), 2).tolist() == [[1, 3], [3, 1]]


TILE, GAP, TITLE = (192, 144), 4, 16  # pixels: a tile's width and height, between, a heading


def tile(sheet: Image.Image, top: int, column: int) -> Array:
    left = GAP + column * (TILE[0] + GAP)
    return np.asarray(sheet.crop((left, top, left + TILE[0], top + TILE[1])).convert("RGB"))


def tokens_of(spec: str, images: list[Image.Image]) -> Array:
    """Return the ViT's tokens [n, 1 + N, D] of images at 336 x 448 where it was trained at 224."""
    opened = backbone.open_backbone(spec, seed=0)
    size = opened.image_size * 448 // 224, opened.image_size * 336 // 224
    mode = getattr(Image.Resampling, opened.interpolation.upper())
    x = np.stack([np.asarray(image.resize(size, mode)) / 255 for image in images])
    x = (x - np.array(opened.mean)) / np.array(opened.std)
    with torch.inference_mode():
        batch = torch.from_numpy(x).permute(0, 3, 1, 2).float()
        return opened.model.eval().forward_features(batch).double().numpy()


def colours_of(patches: Array) -> Array:
    """Return patches [n, N, D] as 8-bit colours [n, N, 3]: components by SVD, 1st to 99th part."""
    flat = patches.reshape(-1, patches.shape[-1])
    centred = flat - flat.mean(0)
    _, _, basis = np.linalg.svd(centred, full_matrices=False)
    shares = []
    for direction in basis[:3]:
        along = centred @ (direction * np.sign(direction[np.abs(direction).argmax()]))
        low, high = np.quantile(along, [0.01, 0.99])
        shares.append(((along - low) / (high - low)).clip(0, 1))
    return (255 * np.stack(shares, -1)).round().reshape(*patches.shape[:2], 3)


def test_the_sheets_show_the_components_of_the_patches_and_the_nearest_images(tmp_path, synclr):
    folder, images = tmp_path / "photos", []
    folder.mkdir()
    for i, colour in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200), (190, 60, 20)]):
        noise = np.random.default_rng(i).normal(0, 30, (36, 48, 3)) + colour
        images.append(Image.fromarray(noise.clip(0, 255).astype(np.uint8)))
        images[-1].save(folder / f"{i}.png")
    spec = "random:vit_tiny_patch16_224"
    done = synclr("show", spec, "--images", folder, "-o", tmp_path / "out", "-q")
    assert done.code == 0, done.err
    patches, near = (Image.open(line) for line in done.out.split())
    tokens = tokens_of(spec, images)

    def colour(pixels: Array) -> Array:
        return pixels.reshape(-1, 3).mean(0)

    first, second = GAP + TITLE, GAP + TITLE + TILE[1] + GAP + TITLE
    expected = colours_of(tokens[:, 1:]).reshape(4, 21, 28, 3)
    rows = (np.arange(21) + 0.5) * TILE[1] / 21  # middles of the patches
    columns = (np.arange(28) + 0.5) * TILE[0] / 28
    for i, image in enumerate(images):
        assert np.abs(colour(tile(patches, first, i)) - colour(np.asarray(image))).max() < 2
        shown = tile(patches, second, i)[rows.astype(int)[:, None], columns.astype(int)]
        assert np.abs(shown - expected[i]).max() <= 2  # of 255; float32 against float64

    cls = np.stack([unit(row) for row in tokens[:, 0]])
    top = GAP + TITLE  # one heading, above the first row
    for i in range(4):
        order = [j for j in np.argsort(-(cls @ cls[i])) if j != i]
        for column, j in enumerate([i, *order]):
            mean = colour(tile(near, top, column))
            nearest = min(
                range(4), key=lambda k: np.abs(mean - colour(np.asarray(images[k]))).sum()
            )
            assert nearest == j, (i, column)
        top += TILE[1] + GAP


def test_show_draws_a_row_for_each_backbone(tmp_path, synclr):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (48, 36), (80 * i, 30, 200 - 60 * i)).save(folder / f"{i}.png")
    backbones = "random:vit_tiny_patch16_224", "random:vit_small_patch32_224"
    done = synclr("show", *backbones, "--images", folder, "-o", tmp_path / "out", "-q")
    assert done.code == 0, done.err
    patches, near = (Image.open(line) for line in done.out.split())
    assert patches.width == near.width == 3 * 196 + 4  # three images; one and its two nearest
    assert patches.height == 3 * (16 + 144 + 4) + 4  # the images, then a row a backbone
    assert near.height == 2 * (16 + 3 * 148) + 4


@pytest.mark.parametrize(("size", "tile"), [((40, 40), (192, 192)), ((30, 90), (144, 192))])
def test_images_keep_their_shape_and_long_ones_are_cropped(tmp_path, synclr, size, tile):
    folder = tmp_path / "photos"
    folder.mkdir()
    x = np.zeros((size[1], size[0], 3), np.uint8)
    middle, radius = (size[1] / 2, size[0] / 2), 10
    y, z = np.mgrid[: size[1], : size[0]] + 0.5
    x[(y - middle[0]) ** 2 + (z - middle[1]) ** 2 < radius**2] = 255  # a disc
    for i in range(2):
        Image.fromarray(x).save(folder / f"{i}.png")
    done = synclr("show", "random:vit_tiny_patch16_224", "--images", folder, "-o", tmp_path / "x")
    sheet = Image.open(done.out.split()[0])
    assert sheet.width == 2 * (tile[0] + 4) + 4
    first = np.asarray(sheet.crop((4, 20, 4 + tile[0], 20 + tile[1])).convert("L")) > 128
    rows, columns = first.any(1).sum(), first.any(0).sum()
    assert abs(int(rows) - int(columns)) <= 2  # it is as high as it is wide


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_refused(tmp_path, synclr, count):
    for i in range(count):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    done = synclr("show", "random:vit_tiny_patch16_224", "--images", tmp_path)
    assert done.code == 3 and f"got {count}, expected two or more" in done.error_line
