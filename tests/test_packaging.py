"""The wheel: built from the sdist, it carries presets and word banks, and runs from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = {".py", ".toml", ".txt", ".json", ".md", ".typed"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel's content: sdist -> wheel -> unpacked, no network."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not in a checkout")
    work = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(work)]
    subprocess.run([*build, "-t", "sdist"], cwd=ROOT, check=True, capture_output=True)
    (sdist,) = work.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(work, filter="data")
    source = work / sdist.name.removesuffix(".tar.gz")
    subprocess.run([*build, "-t", "wheel"], cwd=source, check=True, capture_output=True)
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        z.extractall(work / "site")
    return work / "site"


def run_installed(site: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_is_what_runs(installed):
    done = run_installed(installed, "-c", "import synclr_cli; print(synclr_cli.__file__)")
    assert done.stdout.startswith(str(installed))


def test_presets_are_in_the_wheel(installed):
    names = {p.stem for p in (installed / "synclr_cli" / "_presets").glob("*.toml")}
    assert names == {p.stem for p in (ROOT / "presets").glob("*.toml")}
    done = run_installed(installed, "-m", "synclr_cli", "train", "-p", "vitl", "--print-config")
    assert done.returncode == 0 and "vit_large_patch14_224" in done.stdout


def test_word_banks_are_in_the_wheel_and_write_captions_from_the_root_folder(installed, tmp_path):
    done = run_installed(
        installed, "-m", "synclr_cli", "captions", "-c", "synclr", "-n", "20",
        "--engine", "template:", "-o", str(tmp_path / "captions"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "captions")


def test_the_weights_of_pocket_are_in_the_wheel_with_their_words(installed):
    shipped = Path("synclr_cli", "render", "engines", "pocket")
    for name in ("pocket.safetensors", "words.txt"):
        assert (installed / shipped / name).read_bytes() == (ROOT / shipped / name).read_bytes()
    assert (installed / shipped / "pocket.safetensors").stat().st_size <= 25 * 2**20


def test_the_sdist_carries_what_trained_them(installed):
    (source,) = (p for p in installed.parent.glob("synclr-*") if p.is_dir())
    tools = {p.name for p in (ROOT / "tools" / "pocket").glob("*.py")}
    assert tools == {p.name for p in (source / "tools" / "pocket").glob("*.py")} != set()


def test_nothing_but_source_is_in_the_wheel(installed):
    strange = [
        str(p.relative_to(installed))
        for p in (installed / "synclr_cli").rglob("*")
        if p.is_file()
        and p.suffix not in SOURCE
        and p.name not in ("pocket.safetensors", "digits.parquet")
    ]
    assert strange == []
