"""The Python API: light to import, and what it gives is what the files hold."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from image_folders import rows_of, write_images
from PIL import Image
from torch.utils.data import DataLoader

import synclr_cli
from synclr_cli import load_backbone, load_captions, load_images
from synclr_cli.errors import DataError, UsageError


def test_importing_the_package_imports_no_heavy_package():
    code = (
        "import sys, synclr_cli; print(synclr_cli.__version__, dir(synclr_cli));"
        "heavy = {'torch', 'pyarrow', 'numpy', 'timm', 'PIL', 'typer'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert synclr_cli.__version__ in done.stdout and "load_backbone" in done.stdout


def test_a_name_it_has_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="load_everything"):
        _ = synclr_cli.load_everything


def test_a_backbone_comes_with_its_view_and_its_header(small_vit):
    model, transform, header = load_backbone(small_vit)
    image = Image.fromarray(np.full((40, 50, 3), 128, np.uint8))
    x = transform(image)
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    assert x.shape == (3, 32, 32) and torch.allclose(x[:, 5, 5], expected, atol=1e-5)
    assert header.schema == "backbone" and not model.training
    with torch.no_grad():
        tokens = model.forward_features(x[None])
        assert torch.equal(model(x[None]), tokens[:, 0])


def test_random_weights_have_no_header_and_follow_the_seed():
    models = [
        load_backbone("random:vit_tiny_patch16_224", image_size=32, seed=s) for s in (0, 0, 1)
    ]
    weights = [one.model.cls_token for one in models]
    assert models[0].header is None
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_captions_are_a_table_of_all_parts(tmp_path, synclr):
    (tmp_path / "words.txt").write_text("heron\nfox\nbridge\n")
    made = synclr(
        "captions", "--concepts", tmp_path / "words.txt", "--engine", "template:", "-n", 5,
        "--set", "captions.captions_per_part=2", "--out", tmp_path / "captions",
    )  # fmt: skip
    assert made.code == 0, made.err
    table = load_captions(tmp_path / "captions")
    assert table["caption_id"].to_pylist() == [0, 1, 2, 3, 4]
    assert (
        table["caption"].to_pylist() == pq.read_table(tmp_path / "captions")["caption"].to_pylist()
    )
    with pytest.raises(DataError, match="captions"):
        load_captions(tmp_path)


def test_images_are_a_dataset_that_torch_batches(tmp_path, small_vit):
    folder = write_images(tmp_path / "images")
    images = load_images(folder)
    rows = rows_of(folder)
    assert len(images) == len(rows) == 6
    assert images[4]["caption"] == rows[4]["caption"] and images[-1]["view"] == rows[5]["view"]
    assert images[0]["image"].size == (rows[0]["width"], rows[0]["height"])
    with pytest.raises(IndexError):
        images[6]
    model, transform, _ = load_backbone(small_vit)
    batch = next(iter(DataLoader(load_images(folder, transform), batch_size=4)))
    assert model(batch["image"]).shape == (4, 192)
    assert batch["caption_id"].tolist() == [0, 0, 1, 1]


def test_an_unknown_scheme_is_our_error():
    with pytest.raises((UsageError, DataError)):
        load_backbone("nowhere:vit")
