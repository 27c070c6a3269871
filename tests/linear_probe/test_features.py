"""Features are computed once, and again whenever anything they depend on changes."""

import numpy as np
import pytest
import torch
from PIL import Image

from synclr_cli.data import labelled
from synclr_cli.errors import DataError
from synclr_cli.learning import (
    backbone as backbones,
    features as backbone_features,
    reports,
    runtime,
)
from synclr_cli.learning.run_folder import RunFolder
from synclr_cli.linear_probe import features


@pytest.fixture
def extract(small, stripes, tmp_path):
    """Extract the features of the stripes and return them with the names of the files."""

    def run(data=stripes, backbone="random:vit_tiny_patch16_224", seed=0, workers=0, **changes):
        config = small(seed=seed, workers=workers, **changes)
        images = labelled.open_data(str(data), validation_share=0.2, seed=seed)
        opened = backbones.open_backbone(backbone, image_size=config.image_size, seed=seed)
        header = reports.header(config, opened, images)
        with runtime.started(config.precision) as rt:
            folder = RunFolder(tmp_path, "linear-probe", header, rt)
            features.make(config, opened, images, folder, rt)
            splits = features.read(opened, images, tmp_path, rt)
        return splits, sorted(p.name for p in tmp_path.glob("features-*"))

    return run


def test_features_are_the_cls_token_of_the_protocols_view(extract, stripes):
    found, _ = extract(precision="float32")
    model = backbones.open_backbone("random:vit_tiny_patch16_224", image_size=32).model.eval()
    image = Image.open(stripes / "test" / "plain" / "1.png")
    x = torch.tensor(np.asarray(image) / 255.0, dtype=torch.float32).permute(2, 0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = model.forward_features(((x - mean[:, None, None]) / std[:, None, None])[None])
    assert torch.allclose(found["test"].x[8 + 1], expected[0, 0], atol=1e-4)
    assert found["test"].y[8 + 1] == 1
    assert found["test"].x.dtype == torch.float32


def test_batches_and_workers_change_nothing(extract, tmp_path):
    one, _ = extract(precision="float32")
    for file in tmp_path.glob("features-*"):
        file.unlink()
    other, _ = extract(precision="float32", batch_size=7, workers=1)
    assert torch.allclose(one["train"].x, other["train"].x, atol=1e-4)


def test_the_same_features_are_found_again(extract, tmp_path):
    _, files = extract()
    before = [(tmp_path / f).stat().st_mtime_ns for f in files]
    _, again = extract()
    assert again == files
    assert len(files) == 3
    assert [(tmp_path / f).stat().st_mtime_ns for f in files] == before


def test_other_weights_are_other_features(extract):
    extract()
    _, files = extract(seed=1)
    assert len(files) == 6


def test_another_size_is_other_features(extract):
    extract()
    _, files = extract(image_size=48)
    assert len(files) == 6


def test_standardising_uses_the_population_and_survives_a_constant_feature():
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    one, other = features.standardise(x, torch.tensor([[4.0, 6.0]]))
    assert one.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert other.tolist() == [[2.0, 1.0]]


def test_a_backbone_that_yields_nan_is_named(extract, monkeypatch):
    opened = backbones.open_backbone("random:vit_tiny_patch16_224", image_size=32)
    with torch.no_grad():
        opened.model.cls_token.fill_(float("nan"))
    monkeypatch.setattr(backbones, "open_backbone", lambda *a, **k: opened)
    with pytest.raises(DataError, match=r"level/0\.png are not finite"):
        extract()


def test_a_kill_loses_one_part_and_leaves_none_behind(extract, tmp_path, monkeypatch):
    whole, _ = extract(precision="float32")
    for file in tmp_path.glob("features-*"):
        file.unlink()
    monkeypatch.setattr(backbone_features, "PART", 10)
    taken, make = [], backbone_features.extract

    def note(model, backbone, split, rows, *rest, **settings):
        taken.append(rows)
        return make(model, backbone, split, rows, *rest, **settings)

    def die_at_the_third(*arguments, **settings):
        if len(taken) == 2:
            raise KeyboardInterrupt
        return note(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(backbone_features, "extract", die_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            extract(precision="float32")
    monkeypatch.setattr(backbone_features, "extract", note)
    again, files = extract(precision="float32")
    assert [rows.start for rows in taken[:4]] == [0, 10, 20, 30]  # of the 36 of train
    assert all(torch.allclose(again[name].x, whole[name].x, atol=1e-4) for name in whole)
    assert files == sorted(p.name for p in tmp_path.iterdir())


def test_damaged_features_are_named_with_the_way_out(extract, tmp_path):
    _, files = extract()
    (tmp_path / files[0]).write_bytes(b"short")
    with pytest.raises(
        DataError, match=r"stored features are damaged.*the same command makes it again"
    ):
        extract()
