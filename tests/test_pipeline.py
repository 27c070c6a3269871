"""The road as typed: words | captions | images | backbone | grade."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORDS = ("acorn", "anchor", "bagel", "candle")
QUICK = [
    "train.steps=4",
    "train.warmup_steps=1",
    "train.captions_per_batch=8",
    "train.depth=2",
    "train.prototypes=64",
    "train.log_steps=1",
]


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which `synclr` is this interpreter's."""
    function = f'synclr() {{ "{sys.executable}" -m synclr_cli "$@"; }}; '
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", function + line],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Return the folder and outcome of one whole pipe."""
    folder = tmp_path_factory.mktemp("road")
    (folder / "words.txt").write_text("\n".join(WORDS))
    sets = " ".join(f"--set {s}" for s in QUICK)
    made = shell(
        "synclr captions -c words.txt -n 24 --engine template: -o heldout-captions && "
        "synclr render heldout-captions --engine procedural: --views 2 --seed 9 -o heldout",
        folder,
    )
    assert made.returncode == 0, made.stderr
    done = shell(
        "synclr captions -c words.txt -n 16 --seed 3 --engine template: "
        f"| synclr render - --engine procedural: | synclr train - --preset tiny {sets} "
        "| synclr linear-probe - --data heldout",
        folder,
    )
    return folder, done


def test_the_pipe_ends_with_one_json_object(road):
    _, done = road
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    low, high = report["interval"]
    assert 0 <= low <= report["top1"] <= high <= 100 and high > 1, "top1 is in percent"
    # A fifth of 24 captions by class, two views each.
    assert report["n"] == 10 and set(report["data"]) >= {"digest", "splits"}
    assert done.stdout.count("\n") == 1


def test_every_default_path_is_there_and_nothing_half_written(road):
    folder, _ = road
    assert (folder / "captions" / "_manifest.json").is_file()
    assert (folder / "images" / "_manifest.json").is_file()
    assert (folder / "runs" / "tiny" / "backbone.safetensors").is_file()
    assert list(folder.rglob("*.partial")) == []


def test_the_same_command_again_returns_the_same_report_at_once(road, synclr):
    folder, done = road
    again = synclr("linear-probe", "runs/tiny", "--data", "heldout", cwd=folder)
    assert again.code == 0, again.err
    assert json.loads(again.out) == json.loads(done.stdout)


def test_other_settings_in_the_same_place_are_refused_by_name(road, synclr):
    folder, _ = road
    sets = [word for s in QUICK for word in ("--set", s)]
    outcome = synclr("train", "images", *sets, "--set", "train.ema=0.9", cwd=folder)
    assert outcome.code == 2
    assert "train.ema" in outcome.error_line and "--overwrite" in outcome.error_line


def test_timm_opens_the_run_with_no_code_of_ours(road):
    folder, _ = road
    import timm
    import torch

    from synclr_cli.learning.backbone import cls_features, open_backbone

    run = folder / "runs" / "tiny"
    theirs = timm.create_model(f"local-dir:{run}", pretrained=True, num_classes=0).eval()
    ours = open_backbone(str(run)).model.eval()
    image = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(theirs(image), cls_features(ours, image))


def test_datasets_shows_the_images(road):
    folder, _ = road
    import datasets

    files = str(folder / "images" / "part-*.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(folder / "cache")
    )
    assert loaded[0]["image"].size == (64, 64)
    assert loaded[0]["caption"] and loaded.num_rows == 16 * 4


def test_inspect_tells_the_chain_from_backbone_to_word_list(road, synclr):
    folder, _ = road
    outcome = synclr("inspect", "runs/tiny/backbone.safetensors", cwd=folder)
    assert outcome.code == 0, outcome.err
    chain = json.loads(outcome.out)["chain"]
    assert [line.strip().split(":")[0].split(" (")[0] for line in chain] == [
        "backbone.safetensors",
        "images",
        "captions",
        "words.txt",
    ]


@pytest.mark.parametrize(
    "artifact",
    [
        "captions",
        "captions/part-00000.parquet",
        "captions/_manifest.json",
        "captions/_rejected",
        "images",
        "images/part-00000.parquet",
        "images/_manifest.json",
        "runs/tiny",
        "runs/tiny/run.json",
        "runs/tiny/checkpoints/step-00000004",
    ],
)
def test_inspect_describes_every_artifact(road, synclr, artifact):
    folder, _ = road
    outcome = synclr("inspect", artifact, cwd=folder)
    assert outcome.code == 0, outcome.err
    described = json.loads(outcome.out)
    assert described["schema"] and described["chain"]
    if "image" in described:
        assert (folder / described["image"]).read_bytes().startswith(b"\x89PNG")
