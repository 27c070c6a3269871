"""From a captions file to a folder of images: what it holds, and what no accident changes."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_folders import contents, facts, rows_of
from PIL import Image

from synclr_cli import config as configs
from synclr_cli.data import locks
from synclr_cli.data.manifest import open_dataset
from synclr_cli.errors import DataError, EngineError, UsageError
from synclr_cli.render import generate
from synclr_cli.render.run import run
from synclr_cli.render.sheet import contact_sheet

SMALL = {
    "engine.name": "procedural:",
    "engine.size": 32,
    "stored_size": 32,
    "captions_per_part": 4,
    "views": 3,
}


def render_config(**values):
    return configs.build(
        "render", {**SMALL, **{k.replace("__", "."): v for k, v in values.items()}}
    )


def image(row: dict, column: str = "image") -> Image.Image:
    return Image.open(io.BytesIO(row[column]["bytes"]))


def test_every_caption_has_its_views_side_by_side(captions_file, tmp_path):
    out = run(render_config(), captions_file(10), tmp_path / "images")
    rows = rows_of(out)
    assert [(r["caption_id"], r["view"]) for r in rows] == [
        (c, v) for c in range(10) for v in range(3)
    ]
    assert all(image(r).size == (32, 32) and image(r).format == "JPEG" for r in rows)
    assert rows[0]["caption"] == "a red fox in the snow" and rows[0]["concept"] == "red fox"
    dataset = open_dataset(out, "images")
    assert dataset.parts["rows"].to_pylist() == [12, 12, 6] and dataset.rows == 30
    assert dataset.facts["views"] == 3 and dataset.facts["smallest_side"] == 32
    dataset.verify()


def test_a_row_group_never_splits_a_caption(captions_file, tmp_path):
    out = run(render_config(captions_per_part=40, views=2), captions_file(40), tmp_path / "images")
    file = pq.ParquetFile(out / "part-00000.parquet")
    assert file.num_row_groups > 1
    groups = [
        set(file.read_row_group(g, ["caption_id"])["caption_id"].to_pylist())
        for g in range(file.num_row_groups)
    ]
    assert sum(len(g) for g in groups) == len(set.union(*groups)) == 40


def test_masks_hold_the_class_id_of_their_concept(captions_file, tmp_path):
    out = run(render_config(), captions_file(8), tmp_path / "images")
    classes = facts(out)["classes"]
    assert classes == ["fire truck", "red fox", "sunflower", "teapot"]
    for row in rows_of(out):
        mask = np.asarray(image(row, "mask"))
        assert mask.shape == (32, 32)
        assert set(np.unique(mask)) <= {0, 1 + classes.index(row["concept"])}
        assert mask.any()


def test_no_masks_are_kept_if_none_are_wanted(captions_file, tmp_path):
    out = run(render_config(masks=False), captions_file(4), tmp_path / "images")
    assert all(r["mask"] is None for r in rows_of(out))
    assert facts(out)["classes"] == []


def test_more_concepts_than_mask_ids_become_one_class(captions_file, tmp_path):
    captions = captions_file([(f"a thing{i}", f"thing{i}") for i in range(255)])
    config = render_config(views=1, captions_per_part=300, engine__size=8, stored_size=8)
    out = run(config, captions, tmp_path / "images")
    assert facts(out)["classes"] == ["object"]
    assert {i for r in rows_of(out) for i in np.unique(image(r, "mask"))} <= {0, 1}


@pytest.mark.parametrize(("name", "stored"), [("png", "PNG"), ("webp", "WEBP"), ("jpeg", "JPEG")])
def test_images_are_reduced_and_stored_in_the_chosen_format(captions_file, tmp_path, name, stored):
    config = render_config(stored_size=16, image_format=name)
    out = run(config, captions_file(2), tmp_path / "images")
    for row in rows_of(out):
        assert image(row).size == (16, 16) == image(row, "mask").size
        assert image(row).format == stored
        assert (row["width"], row["height"]) == (16, 16)


def test_a_png_at_the_painted_size_holds_the_painted_pixels(captions_file, tmp_path):
    from synclr_cli.engines import load

    config = render_config(image_format="png")
    (first, *_) = rows_of(run(config, captions_file(1), tmp_path / "images"))
    painted = load("image", config.engine).generate(
        [first["caption"]], [first["concept"]], [first["seed"]]
    )[0]
    assert np.array_equal(np.asarray(image(first)), painted.pixels)


def test_a_view_depends_on_neither_its_neighbours_nor_the_batch(captions_file, tmp_path):
    whole = rows_of(run(render_config(), captions_file(9), tmp_path / "whole"))
    some = captions_file(
        [(r["caption"], r["concept"]) for r in whole[::3] if r["caption_id"] in (7, 2)][::1],
        "some.parquet",
        ids=[2, 7],
    )
    config = render_config(engine__batch_size=2, captions_per_part=1)
    again = {
        (r["caption_id"], r["view"]): r["image"] for r in rows_of(run(config, some, tmp_path / "b"))
    }
    wanted = {(r["caption_id"], r["view"]): r["image"] for r in whole}
    assert again and all(again[key] == wanted[key] for key in again)


def test_seeds_differ_between_views_captions_and_runs():
    seeds = {generate.view_seed(s, c, v) for s in range(5) for c in range(50) for v in range(8)}
    assert len(seeds) == 5 * 50 * 8
    assert all(0 <= s < 2**63 for s in seeds)


def test_several_processes_paint_the_same_files_as_one(captions_file, tmp_path, monkeypatch):
    captions = captions_file(10)
    alone = run(render_config(), captions, tmp_path / "alone")
    monkeypatch.setattr(generate, "WORTH_PROCESSES", 1)
    many = run(render_config(), captions, tmp_path / "many")
    assert contents(alone) == contents(many)


def test_the_same_command_again_returns_at_once(captions_file, tmp_path):
    captions = captions_file(4)
    out = run(render_config(), captions, tmp_path / "images")
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    run(render_config(), captions, out)
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before


def test_finished_parts_are_not_made_again(captions_file, tmp_path):
    captions = captions_file(10)
    out = run(render_config(), captions, tmp_path / "images")
    whole = contents(out)
    (out / "_manifest.json").unlink()
    (out / "part-00001.parquet").unlink()
    kept = (out / "part-00000.parquet").stat().st_mtime_ns
    run(render_config(), captions, out)
    assert contents(out) == whole
    assert (out / "part-00000.parquet").stat().st_mtime_ns == kept


def test_a_part_that_was_lost_is_painted_again(captions_file, tmp_path):
    captions = captions_file(10)
    out = run(render_config(), captions, tmp_path / "images")
    whole = contents(out)
    (out / "part-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks part-00001\.parquet. Run synclr render again"):
        open_dataset(out, "images")
    run(render_config(), captions, out)
    assert contents(out) == whole


def test_a_part_that_synclr_did_not_make_is_not_removed(captions_file, tmp_path):
    mine = tmp_path / "images" / "part-mine.parquet"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(UsageError, match=r"part-mine.parquet was not made by synclr here"):
        run(render_config(), captions_file(2), mine.parent, overwrite=True)
    assert mine.read_text() == "precious" and list(mine.parent.iterdir()) == [mine]
    theirs = mine.with_name("_manifest.json")
    theirs.write_text('{"name": "an app"}')
    with pytest.raises(UsageError, match="is not a folder of images"):
        run(render_config(), captions_file(2), mine.parent, overwrite=True)
    assert sorted(mine.parent.iterdir()) == [theirs, mine]
    out = run(render_config(), captions_file(2), tmp_path / "ours")
    mine = mine.rename(out / mine.name)
    with pytest.raises(UsageError, match=r"part-mine.parquet was not made by synclr here"):
        run(render_config(), captions_file(2), out, overwrite=True)
    mine.unlink()
    run(render_config(), captions_file(2), out, overwrite=True)


def test_only_one_process_makes_a_shard(captions_file, tmp_path):
    captions, out = captions_file(4), tmp_path / "images"
    arguments = ["render", captions, "--engine", "procedural:", "-o", out]
    command = [sys.executable, "-m", "synclr_cli", *map(str, arguments)]
    with locks.locked(out / ".lock-1-of-1"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "already in use by another process" in done.stderr
    assert not out.exists()
    with locks.locked(out / ".lock-2-of-3"):
        for shard, code in (("1/1", 2), ("1/2", 2), ("1/3", 0)):
            sharded = [*command, "--shard", shard]
            done = subprocess.run(sharded, capture_output=True, text=True, check=False)
            assert done.returncode == code, done.stderr
            assert code == 0 or "expected a shard of 3 like its own" in done.stderr
    (out / ".lock-2-of-3").touch()  # as one that was killed leaves it
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_other_settings_are_refused_and_overwrite_makes_anew(captions_file, tmp_path):
    captions = captions_file(4)
    out = run(render_config(), captions, tmp_path / "images")
    with pytest.raises(UsageError, match=r"render\.seed differ.*--overwrite"):
        run(render_config(seed=1), captions, out)
    (out / "_manifest.json").unlink()
    with pytest.raises(UsageError, match=r"render\.seed differ"):
        run(render_config(seed=1), captions, out)
    run(render_config(seed=1), captions, out, overwrite=True)
    assert open_dataset(out, "images").header.seed == 1


def test_an_empty_captions_file_is_refused(captions_file, tmp_path):
    with pytest.raises(DataError, match="holds no captions"):
        run(render_config(), captions_file([]), tmp_path / "images")
    assert not (tmp_path / "images").exists()


def test_a_repeated_caption_id_is_refused(captions_file, tmp_path):
    captions = captions_file(3, ids=[4, 1, 4])
    with pytest.raises(DataError, match="caption_id 4 occurs twice"):
        run(render_config(), captions, tmp_path / "images")


def test_captions_in_any_order_are_written_by_id(captions_file, tmp_path):
    out = run(render_config(), captions_file(3, ids=[9, 1, 4]), tmp_path / "images")
    assert [r["caption_id"] for r in rows_of(out)][::3] == [1, 4, 9]


def test_a_file_in_the_place_of_the_folder_is_refused(captions_file, tmp_path):
    (tmp_path / "images").write_text("mine")
    with pytest.raises(UsageError, match="cannot write"):
        run(render_config(), captions_file(2), tmp_path / "images")
    assert (tmp_path / "images").read_text() == "mine"


def test_a_full_disk_is_one_line_and_leaves_only_whole_parts(captions_file, tmp_path):
    # Files of this process may not grow beyond what one part needs: the disk "fills up".
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "sys.path.insert(0, '..')\n"
        "from test_render_run import render_config\n"
        "from synclr_cli.render.run import run\n"
        "run(render_config(), Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    out = tmp_path / "images"
    done = subprocess.run(
        [sys.executable, "-c", program, str(captions_file(10)), str(out)],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "EngineError: no space left" in done.stderr.splitlines()[-1]
    names = {p.name for p in out.rglob("*")}
    assert names <= {"_unfinished", "header.json"}, names


def test_an_interrupted_rendering_says_so_and_exits_130(captions_file, tmp_path):
    out = tmp_path / "images"
    process = subprocess.Popen(
        [sys.executable, "-m", "synclr_cli", "render", str(captions_file(4000)), "--out", str(out),
         "--engine", "procedural:", "--set", "render.captions_per_part=8"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(out.glob("part-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stdout == ""
    assert stderr.splitlines()[-1].startswith("error: interrupted; the same command continues")
    assert not (out / "_manifest.json").exists() and list(out.glob("part-*"))


def _kill_and_continue(captions: Path, out: Path, kills: int, seed: int) -> int:
    """Start the same rendering over and over, killing each; return how many were hit alive."""
    program = (
        "import sys; from pathlib import Path\n"
        "from test_render_run import render_config\n"
        "from synclr_cli.render import generate\n"
        "from synclr_cli.render.run import run\n"
        "generate.WORTH_PROCESSES = int(sys.argv[3])\n"
        "if __name__ == '__main__':\n"
        "    print('begun', flush=True)\n"
        "    config = render_config(captions_per_part=8, duplicate_bits=16)\n"
        "    run(config, Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    script = out.parent / "again.py"
    script.write_text(program)
    rng = random.Random(seed)
    hit = 0
    for i in range(kills):
        many = "1" if i % 2 else "1000000"
        process = subprocess.Popen(
            [sys.executable, str(script), str(captions), str(out), many],
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[1]}",
            },
        )
        process.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.6))
        process.send_signal(signal.SIGKILL)
        hit += process.wait() == -signal.SIGKILL
        process.stdout.close()
    return hit


def _assert_kills_change_nothing(captions_file, tmp_path, kills: int, captions: int) -> None:
    source = captions_file(captions)
    config = render_config(captions_per_part=8, duplicate_bits=16)
    whole = run(config, source, tmp_path / "whole")
    hit = _kill_and_continue(source, tmp_path / "killed", kills, seed=captions)
    assert hit, "every process ended before it could be killed"
    run(config, source, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(whole)


def test_a_killed_rendering_ends_as_if_it_had_not_been_killed(captions_file, tmp_path):
    _assert_kills_change_nothing(captions_file, tmp_path, kills=3, captions=80)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_byte(captions_file, tmp_path):
    _assert_kills_change_nothing(captions_file, tmp_path, kills=20, captions=1200)


def test_datasets_shows_the_images(captions_file, tmp_path):
    import datasets

    out = run(render_config(), captions_file(4), tmp_path / "images")
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(out / "part-*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded[0]["image"].size == (32, 32)
    assert loaded[0]["mask"].mode in ("L", "P")


def test_an_unknown_target_of_procedural_is_refused(captions_file, tmp_path):
    with pytest.raises(UsageError, match="procedural:fish"):
        run(render_config(engine__name="procedural:fish"), captions_file(2), tmp_path / "images")


def test_the_contact_sheet_has_a_row_for_each_caption(captions_file, tmp_path):
    out = run(render_config(), captions_file(10), tmp_path / "images")
    small = Image.open(contact_sheet(out, tmp_path / "small.png", captions=2, views=2))
    large = Image.open(contact_sheet(out, tmp_path / "large.png", captions=6, views=3))
    assert large.height - small.height == 4 * 170 and large.width - small.width == 170
    assert large.convert("L").getextrema()[0] < 60


def test_a_broken_engine_of_another_package_is_not_hidden(captions_file, tmp_path):
    with pytest.raises(EngineError, match="no folder"):
        run(
            render_config(engine__name="diffusers:./absent"),
            captions_file(2),
            tmp_path / "images",
        )
