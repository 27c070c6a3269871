"""The commands of docs/tutorials/cluster.md, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_executors import contents

from synclr_cli.data.manifest import open_dataset

PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "cluster.md"


def blocks() -> dict[str, str]:
    text = PAGE.read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- run: (\w+) -->\n```sh\n(.*?)```", text, re.DOTALL))


def run(name: str, folder: Path) -> None:
    """Run a block of the page with this Python's synclr."""
    (folder / "synclr").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m synclr_cli "$@"\n')
    (folder / "synclr").chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euc", blocks()[name]], cwd=folder, check=True, env={**os.environ, "PATH": path}
    )
    (folder / "synclr").unlink()


def test_the_page_fits_its_columns():
    assert max(map(len, PAGE.read_text(encoding="utf-8").splitlines())) <= 100


def test_shares_counted_from_0_make_the_whole_folder(tmp_path):
    run("shards", tmp_path)
    assert open_dataset(tmp_path / "images-2", "images").rows == 800


@pytest.mark.slow
def test_an_array_submitted_twice_with_an_offset_makes_the_whole_folder(tmp_path):
    run("offsets", tmp_path)
    assert open_dataset(tmp_path / "captions-3", "captions").rows == 400


@pytest.mark.slow
def test_ray_makes_the_same_folder_as_shares(tmp_path):
    pytest.importorskip("ray")
    run("local", tmp_path)
    run("shards", tmp_path)
    parts = [contents(tmp_path / name) for name in ("images", "images-2")]
    rows = [{n: b for n, b in p.items() if n.startswith("part-")} for p in parts]
    assert rows[0].keys() == rows[1].keys() and len(rows[0]) == 8
    assert open_dataset(tmp_path / "images", "images").rows == 800
