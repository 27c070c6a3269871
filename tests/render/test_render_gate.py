"""The gate, and sets that grow: more views, more captions, several jobs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from image_folders import contents, facts, rejected, rows_of
from PIL import Image
from test_render_run import image, render_config

from synclr_cli.data.manifest import open_dataset
from synclr_cli.errors import DataError, UsageError
from synclr_cli.render import quality
from synclr_cli.render.generate import view_seed
from synclr_cli.render.run import run

PICKY = {"duplicate_bits": 25, "redraws": 2, "least_views": 2}  # so many redraws happen


def jpeg(pixels: np.ndarray, level: int = 95) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=level)
    return sink.getvalue()


def images_of(folder: Path) -> dict[tuple[int, int], bytes]:
    return {(r["caption_id"], r["view"]): r["image"]["bytes"] for r in rows_of(folder)}


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((32, 32, 3), 4, np.uint8), "black"),
        (np.full((32, 32, 3), 130, np.uint8), "blank"),
        (np.repeat(np.uint8([[[0] * 3, [255] * 3]]), 32, 0).repeat(16, 1), "low entropy"),
        (np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8), ""),
    ],
)
def test_a_flawed_image_is_told_from_a_good_one(pixels, reason):
    assert quality.flaw(pixels, render_config()) == reason


def test_entropy_counts_bits():
    four = np.repeat(np.uint8([0, 60, 120, 180]), 64).reshape(16, 16, 1).repeat(3, 2)
    assert quality.entropy(four) == pytest.approx(2.0)


def test_fingerprints_of_one_image_agree_and_of_two_do_not():
    from synclr_cli.render.engines.procedural import scene

    images = [scene.draw("a fox on a beach", "fox", s, 96)[0] for s in range(8)]
    same = [quality.fingerprint(jpeg(p)) ^ quality.fingerprint(jpeg(p, 60)) for p in images]
    prints = [quality.fingerprint(jpeg(p)) for p in images]
    apart = [(a ^ b).bit_count() for i, a in enumerate(prints) for b in prints[:i]]
    assert max(d.bit_count() for d in same) <= 4 and min(apart) > 4


def test_near_duplicates_are_painted_again_from_the_next_seed(captions_file, tmp_path):
    out = run(render_config(**PICKY), captions_file(12), tmp_path / "images")
    views = [e for e in rejected(out) if e["what"] == "rejected view"]
    assert views and all(e["reason"].startswith("duplicate of view") for e in views)
    rows = rows_of(out)
    by_caption: dict[int, list[int]] = {}
    for row in rows:
        prints = by_caption.setdefault(row["caption_id"], [])
        mine = quality.fingerprint(row["image"]["bytes"])
        assert all((mine ^ other).bit_count() > 25 for other in prints)
        prints.append(mine)
        attempts = sum(
            (e["caption_id"], e["view"]) == (row["caption_id"], row["view"]) for e in views
        )
        assert row["seed"] == view_seed(0, row["caption_id"], row["view"], attempts)
    assert any(r["seed"] != view_seed(0, r["caption_id"], r["view"]) for r in rows)
    told = facts(out)
    assert told["rejected"] == {"duplicate": len(views)}


def test_a_caption_with_too_few_views_is_set_aside_and_listed(captions_file, tmp_path):
    config = render_config(duplicate_bits=64, redraws=1)  # any two views are duplicates
    out = run(config, captions_file(3), tmp_path / "images")
    assert rows_of(out) == []
    aside = [e for e in rejected(out) if e["what"] == "caption set aside"]
    assert [e["caption_id"] for e in aside] == [0, 1, 2] and aside[0]["views"] == 1
    assert aside[0]["caption"] == "a red fox in the snow"
    views = [e for e in rejected(out) if e["what"] == "rejected view"]
    assert len(views) == 3 * 2 * 2  # captions x later views x attempts
    assert facts(out)["set_aside"] == 3


def test_no_verdict_depends_on_batches_or_parts(captions_file, tmp_path):
    captions = captions_file(12)
    a = run(render_config(**PICKY), captions, tmp_path / "a")
    b = run(
        render_config(**PICKY, captions_per_part=5, engine__batch_size=7), captions, tmp_path / "b"
    )
    assert images_of(a) == images_of(b) and rejected(a) == rejected(b)


def test_a_view_that_is_not_finite_is_rejected(captions_file, tmp_path, tiny_pipeline):
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
    pipe.save_pretrained(tmp_path / "nan")
    config = render_config(engine__name=f"diffusers:{tmp_path / 'nan'}", engine__steps=1, redraws=0)
    out = run(config, captions_file(2), tmp_path / "images")
    assert {e["reason"] for e in rejected(out) if "reason" in e} == {"not finite"}


def test_more_views_are_added_to_those_that_are_there(captions_file, tmp_path):
    captions = captions_file(10)
    fresh = run(render_config(**PICKY, views=5), captions, tmp_path / "fresh")
    grown = run(render_config(**PICKY, views=2), captions, tmp_path / "grown")
    before = images_of(grown)
    run(render_config(**PICKY, views=5), captions, grown)
    assert contents(grown) == contents(fresh)
    assert before.items() <= images_of(grown).items()


def test_fewer_views_than_there_are_are_refused(captions_file, tmp_path):
    captions = captions_file(3)
    out = run(render_config(views=3), captions, tmp_path / "images")
    with pytest.raises(UsageError, match=r"render\.views differ"):
        run(render_config(views=2), captions, out)


def test_more_captions_continue_the_set(captions_file, tmp_path):
    rows = [(f"a {c} in the snow", c) for c in ("fox", "teapot", "chair", "bee", "zebra", "ant")]
    few, many = captions_file(rows[:5], "few.parquet"), captions_file(rows, "many.parquet")
    fresh = run(render_config(), many, tmp_path / "fresh")
    grown = run(render_config(), few, tmp_path / "grown")
    run(render_config(), many, grown)
    assert rows_of(grown) == rows_of(fresh)  # masks too: "ant" moved every class id
    manifests = [facts(f) for f in (grown, fresh)]
    assert manifests[0]["classes"] == manifests[1]["classes"]
    assert manifests[0]["classes"][0] == "ant"
    ids = {i for r in rows_of(grown) for i in np.unique(np.asarray(image(r, "mask")))}
    assert ids == set(range(7))


def test_parts_that_more_captions_leave_alone_are_not_written_again(captions_file, tmp_path):
    out = run(render_config(), captions_file(8, "few.parquet"), tmp_path / "images")
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("part-*")}
    run(render_config(), captions_file(11, "many.parquet"), out)
    after = {p.name: p.stat().st_mtime_ns for p in out.glob("part-*")}
    assert before.items() < after.items()


def test_other_or_fewer_captions_are_refused(captions_file, tmp_path):
    out = run(render_config(), captions_file(6), tmp_path / "images")
    whole = contents(out)
    other = captions_file([(f"a thing {i}", "thing") for i in range(6)], "other.parquet")
    with pytest.raises(UsageError, match="other captions"):
        run(render_config(), other, out)
    with pytest.raises(UsageError, match="holds more parts than there are to be"):
        run(render_config(), captions_file(3, "fewer.parquet"), out)
    assert contents(out) == whole


def test_jobs_that_share_a_folder_make_the_same_set_as_one(captions_file, tmp_path):
    captions = captions_file(14)
    whole = run(render_config(), captions, tmp_path / "whole")
    shared = tmp_path / "shared"
    run(render_config(shard="2/3"), captions, shared)
    run(render_config(shard="1/3"), captions, shared)
    with pytest.raises(DataError, match="not finished"):
        open_dataset(shared, "images")
    run(render_config(shard="3/3"), captions, shared)
    assert contents(shared) == contents(whole)


def test_a_job_of_several_may_not_clear_the_others_parts(captions_file, tmp_path):
    captions = captions_file(9)
    out = run(render_config(shard="1/2"), captions, tmp_path / "images")
    before = sorted(p.name for p in out.glob("part-*"))
    with pytest.raises(UsageError, match=r"--overwrite with --shard 2/2"):
        run(render_config(shard="2/2"), captions, out, overwrite=True)
    assert before and sorted(p.name for p in out.glob("part-*")) == before


@pytest.mark.parametrize("shard", ["0/0", "3/2", "1/0", "half"])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(UsageError, match=r"render\.shard"):
        render_config(shard=shard)
