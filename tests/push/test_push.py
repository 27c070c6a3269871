"""Pushing to a hub of our own, and loading from it, as a process of a user's would."""

from __future__ import annotations

import io
import json
import time

import pyarrow.parquet as pq
import pytest
from fake_hub import TOKEN, serve
from huggingface_hub import DatasetCard, ModelCard
from image_folders import contents, write_images

from synclr_cli.data.storage import digest, write_json
from synclr_cli.push import run as push


@pytest.fixture
def hub():
    with serve() as served:
        yield served


@pytest.fixture
def online(hub, tmp_path, synclr_process):
    """Run a command line that sees the fake hub, with a token unless told otherwise."""

    def run(*arguments, token=TOKEN, endpoint=hub.address):
        return synclr_process(
            *arguments, cwd=tmp_path, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0",
            HF_TOKEN=token, HF_HOME=str(tmp_path / "hf"), HF_HUB_DISABLE_XET="1",
        )  # fmt: skip

    return run


def test_a_pushed_run_is_loaded_by_timm_and_by_us(hub, online, small_vit, tmp_path):
    done = online("push", small_vit, "user/small")
    assert done.code == 0, done.err
    assert done.out.strip() == f"{hub.address}/user/small" and TOKEN not in done.out + done.err
    files = hub.repositories["models/user/small"]
    assert {"model.safetensors", "config.json", "README.md"} <= set(files)
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "timm" and "hf-hub:user/small" in card.content
    script = tmp_path / "load.py"
    script.write_text(
        "import sys, torch, timm\n"
        "from synclr_cli import load_backbone\n"
        "x = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)\n"
        "ours, _, header = load_backbone('hf://user/small')\n"
        "local, _, _ = load_backbone(sys.argv[1])\n"
        "theirs = timm.create_model('hf-hub:user/small', pretrained=True, num_classes=0).eval()\n"
        "with torch.no_grad():\n"
        "    assert torch.equal(ours(x), local(x))\n"
        "    assert torch.allclose(theirs.forward_features(x)[:, 0], local(x), atol=1e-5)\n"
        "print(header.schema)\n"
    )
    import os
    import subprocess
    import sys

    environment = {
        **os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    loaded = subprocess.run(
        [sys.executable, str(script), small_vit],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.strip() == "backbone"


def test_pushed_images_are_the_folder_with_its_card_as_readme(hub, online, tmp_path):
    folder = write_images(tmp_path / "images")
    done = online("push", folder, "user/foxes", "--private")
    assert done.code == 0, done.err
    files = hub.repositories["datasets/user/foxes"]
    assert hub.private["datasets/user/foxes"]
    local = contents(folder)
    assert files["part-00001.parquet"] == local["part-00001.parquet"]
    assert files["_manifest.json"] == local["_manifest.json"]
    assert "_README.md" not in files
    card = DatasetCard(files["README.md"].decode())
    assert card.data.configs == [{"config_name": "default", "data_files": "part-*.parquet"}]
    assert "procedural:" in card.content and "_contact-sheet.png" in card.content
    assert files["_contact-sheet.png"][:4] == b"\x89PNG"
    rows = pq.read_table(io.BytesIO(files["part-00000.parquet"])).num_rows
    assert rows == 4 and hub.commits[-1][-1] == "README.md"


def test_a_dry_run_lists_and_sends_nothing(hub, online, tmp_path):
    folder = write_images(tmp_path / "images")
    done = online("push", folder, "user/foxes", "--dry-run", token="")
    told = json.loads(done.out)
    sizes = {file["name"]: file["bytes"] for file in told["files"]}
    assert sizes["part-00000.parquet"] == (folder / "part-00000.parquet").stat().st_size
    assert told["bytes"] == sum(sizes.values()) and told["kind"] == "dataset"
    assert not hub.repositories


def test_grades_of_just_these_weights_are_in_the_card(small_vit, tmp_path):
    import shutil

    run = tmp_path / "runs" / "small"
    shutil.copytree(small_vit, run)
    for name, of in (("a", digest(run / "backbone.safetensors")), ("b", "sha256:other")):
        write_json(
            tmp_path / "runs" / "linear-probe" / name / "report.json",
            {
                "task": "linear-probe", "protocol": "knn", "metric": "top1", "n": 200,
                "value": 61.25 if name == "a" else 99.0, "interval": [58.0, 64.0],
                "backbone": {"digest": of}, "data": {"name": "pets"},
            },
        )  # fmt: skip
    card = push.plan(run, "user/x").files[-1].content.decode()
    assert "| pets | linear-probe knn | top1 | 61.2 | 58.0 to 64.0 | 200 |" in card
    assert "99.0" not in card


@pytest.mark.parametrize(
    ("token", "words"), [("", "no token of the hub"), ("hf_wrong", "the token is not valid")]
)
def test_a_missing_or_wrong_token_is_one_line(online, small_vit, token, words):
    done = online("push", small_vit, "user/small", token=token)
    assert done.code == 4 and words.lower() in done.error_line.lower()
    assert "hf_wrong" not in done.err


def test_what_the_hub_forbids_is_one_line(hub, online, small_vit):
    hub.forbidden = True
    done = online("push", small_vit, "user/small")
    assert done.code == 4 and "may not write there" in done.error_line


def test_a_hub_that_is_not_there_is_one_line_within_seconds(online, small_vit):
    began = time.monotonic()
    done = online("push", small_vit, "user/small", endpoint="http://127.0.0.1:9")
    assert done.code == 4 and "no model hub answers" in done.error_line
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("repository", "code", "words"),
    [("user/nothing", 4, "has no model user/nothing"), ("nothing", 2, "hf://USER/NAME")],
)
def test_a_backbone_the_hub_has_not_is_one_line(online, tmp_path, repository, code, words):
    folder = write_images(tmp_path / "images")
    done = online("embed", f"hf://{repository}", "--data", folder, "--out", tmp_path / "x.npy")
    assert done.code == code and words in done.error_line


@pytest.mark.parametrize("name", ["one", "a/b/c", "user/na me", "/x"])
def test_no_name_of_a_repository_is_a_usage_error(synclr, small_vit, name):
    assert synclr("push", small_vit, name, "--dry-run").code == 2


def test_a_folder_that_is_none_of_ours_is_named(synclr, tmp_path):
    done = synclr("push", tmp_path, "user/x", "--dry-run")
    assert done.code == 3 and "cannot be pushed" in done.error_line


def test_a_run_takes_its_checkpoints_along_only_if_asked(small_vit, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(small_vit, run)
    saved = run / "checkpoints" / "step-00000001"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text("{}")
    names = [[f.name for f in push.plan(run, "u/x", checkpoints=c).files] for c in (False, True)]
    assert "checkpoints/step-00000001/state.json" not in names[0]
    assert "checkpoints/step-00000001/state.json" in names[1]
