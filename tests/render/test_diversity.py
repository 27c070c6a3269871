"""How far views lie apart: sets whose figures are known."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_folders import replace_part
from PIL import Image
from test_render_run import render_config

from synclr_cli.data import artifacts
from synclr_cli.data.manifest import open_dataset
from synclr_cli.render import diversity
from synclr_cli.render.run import run


def noise(captions, views, width=4000, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(captions * views, width))
    return x, np.repeat(np.arange(captions), views)


def test_independent_views_are_worth_their_number_and_as_far_apart_as_captions():
    found = diversity.spread(*noise(50, 4))
    assert found.effective_views == pytest.approx(4, abs=0.02) and found.views == 4
    assert found.within == pytest.approx(2**0.5, rel=0.01)
    assert found.between == pytest.approx(2**0.5, rel=0.01)
    assert found.cosine == pytest.approx(0, abs=0.02)


def test_equal_views_are_worth_one():
    x, ids = noise(50, 1)
    found = diversity.spread(np.repeat(x, 4, 0), np.repeat(ids, 4))
    assert found.effective_views == pytest.approx(1, abs=1e-6)
    assert found.within == pytest.approx(0, abs=1e-6) and found.cosine == pytest.approx(1)


def test_two_pairs_of_equal_views_are_worth_two():
    x, ids = noise(50, 2)
    found = diversity.spread(np.repeat(x, 2, 0), np.repeat(ids, 2))
    assert found.effective_views == pytest.approx(2, abs=0.02)


def test_spread_is_that_of_loops_over_pairs():
    rng = np.random.default_rng(3)
    ids = np.array([7, 7, 7, 2, 2, 5, 9, 9])  # one caption with one view
    x = rng.normal(3, 2, size=(len(ids), 6))
    within, between = [], []
    for i in range(len(ids)):
        for j in range(i):
            (within if ids[i] == ids[j] else between).append(((x[i] - x[j]) ** 2).mean())
    found = diversity.spread(x, ids)
    assert found.within == pytest.approx(np.mean(within) ** 0.5)
    assert found.between == pytest.approx(np.mean(between) ** 0.5)
    assert found.views == pytest.approx(7 / 3)


def test_cosine_and_effective_views_fit_where_all_pairs_of_views_are_equally_alike():
    # Views = a common part and one of their own: every cosine is c; eigenvalues are then known.
    c, views = 0.9, 4
    common, ids = noise(60, 1, seed=1)
    own, _ = noise(60, views, seed=2)
    x = np.sqrt(c) * np.repeat(common, views, 0) + np.sqrt(1 - c) * own
    found = diversity.spread(x, np.repeat(ids, views))
    first, rest = (1 + (views - 1) * c) / views, (1 - c) / views
    expected = np.exp(-first * np.log(first) - (views - 1) * rest * np.log(rest))
    assert found.cosine == pytest.approx(c, abs=0.01)
    assert found.effective_views == pytest.approx(expected, abs=0.03)  # 1.42


@pytest.mark.parametrize("ids", [[1, 2, 3], [1, 1, 1]])
def test_no_caption_with_two_views_or_one_caption_is_refused(ids):
    with pytest.raises(ValueError, match="two views"):
        diversity.spread(np.eye(3), ids)


def test_a_rendered_folder_is_measured_in_pixels_and_features(captions_file, tmp_path):
    out = run(render_config(views=3), captions_file(20), tmp_path / "images")
    facts = diversity.measure(out, lambda images: diversity.pixels(images)[:, :50])
    assert facts["looked_at"] == 60 and facts["pixels"]["views"] == 3
    assert 1 < facts["pixels"]["effective_views"] < 3
    assert 0 < facts["pixels"]["within"] < facts["pixels"]["between"]
    assert facts["features"] != facts["pixels"]
    assert facts["duplicates"] == {}
    assert diversity.measure(out, looked_at=12)["looked_at"] < 30
    Image.open(diversity.plot(out, tmp_path / "plot.png")).load()


def test_a_backbone_describes_images(captions_file, tmp_path):
    out = run(render_config(views=2), captions_file(4), tmp_path / "images")
    facts = diversity.measure(out, diversity.backbone("random:vit_tiny_patch16_224"))
    assert facts["features"]["views"] == 2


def altered(folder, change):
    """Write a folder's part again with other images."""
    (path,) = open_dataset(folder, "images").paths()
    rows = pq.read_table(path).to_pylist()
    change(rows)
    replace_part(folder, 0, pa.Table.from_pylist(rows, schema=artifacts.arrow_schema("images")))


def test_nearly_alike_views_are_warned_of_and_counted_by_concept(captions_file, tmp_path):
    out = run(render_config(views=4, captions_per_part=64), captions_file(20), tmp_path / "images")
    assert diversity.collapse(out) == ""

    def repeat_first_view(rows):
        for row in rows:
            first = next(r for r in rows if r["caption_id"] == row["caption_id"])
            image = Image.open(io.BytesIO(first["image"]["bytes"]))
            sink = io.BytesIO()
            image.save(sink, "PNG")
            row["image"] = {"bytes": sink.getvalue(), "path": None}

    altered(out, repeat_first_view)
    assert "4 views are worth 1.00" in diversity.collapse(out)
    duplicates = diversity.measure(out)["duplicates"]
    assert sum(duplicates.values()) >= 60 and set(duplicates) <= {
        "red fox", "fire truck", "teapot", "sunflower"
    }  # fmt: skip
