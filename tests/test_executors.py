"""Parts made on Ray are those made here, byte for byte; what a cluster lacks is one line."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synclr_cli import cluster
from synclr_cli.config_executor import CaptionsExecutorConfig
from synclr_cli.errors import UsageError

CAPTIONS = ("captions", "-c", "cifar100", "-n", "600", "--set", "captions.engine.name=template:",
            "--set", "captions.captions_per_part=100",
            "--set", "captions.max_similarity=0.4")  # fmt: skip
IMAGES = ("--engine", "procedural:", "--views", "2", "--set", "render.captions_per_part=5",
          "--set", "render.engine.size=32", "--set", "render.stored_size=32")  # fmt: skip
ON_RAY = ("--on", "ray", "--workers", "2")


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Give a runtime of two cores, one for all tests: it takes seconds to start."""
    module = pytest.importorskip("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    module.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
        logging_level="critical", object_store_memory=cluster.OBJECT_STORE_BYTES,
    )  # fmt: skip
    yield module
    module.shutdown()


def test_captions_and_images_of_a_cluster_are_those_of_one_process(ray, synclr, tmp_path):
    for name, on in (("here", ()), ("there", ON_RAY)):
        assert synclr(*CAPTIONS, *on, "-o", f"captions-{name}", cwd=tmp_path).code == 0
    here, there = tmp_path / "captions-here", tmp_path / "captions-there"
    assert len(list(here.glob("part-*"))) == 6
    assert contents(here) == contents(there)
    few = ("-n", "30", "--set", "captions.captions_per_part=1024")
    assert synclr(*CAPTIONS, *few, "-o", "captions").code == 0
    made = synclr("render", *IMAGES, *ON_RAY, "-o", "images-there")
    assert (made.code, made.out) == (0, "images-there\n"), made.err
    assert "processes on 1 hosts" in made.err
    assert synclr("render", *IMAGES, "-o", "images-here").code == 0
    assert contents(tmp_path / "images-here") == contents(tmp_path / "images-there")


@pytest.mark.slow
def test_a_finished_folder_is_topped_up_on_a_cluster_as_it_is_here(ray, synclr, tmp_path):
    few = ("-n", "30", "--set", "captions.captions_per_part=1024")
    assert synclr(*CAPTIONS, *few, "-o", "captions", cwd=tmp_path).code == 0
    for views in ("2", "3"):
        for name, on in (("here", ()), ("there", ON_RAY)):
            command = ("render", *IMAGES, "--views", views, *on, "-o", f"images-{name}")
            assert synclr(*command).code == 0
        assert contents(tmp_path / "images-here") == contents(tmp_path / "images-there")


def test_what_an_engine_fails_with_there_is_the_line_it_is_here(ray, synclr, tmp_path):
    command = [*CAPTIONS, "--set", "captions.engine.name=server:http://127.0.0.1:9/v1"]
    here = synclr(*command, "-o", "captions", cwd=tmp_path)
    there = synclr(*command, *ON_RAY, "-o", "captions")
    assert (here.code, here.error_line) == (4, there.error_line)
    assert there.code == 4
    assert contents(tmp_path) == {}


def test_a_cluster_without_room_for_the_workers_is_told_and_not_waited_for(ray, synclr, tmp_path):
    gpus = ("--set", "executor.num_gpus=1", "--set", "executor.wait=0")
    refused = synclr(*CAPTIONS, *ON_RAY, *_of_captions(gpus), "-o", tmp_path / "c")
    assert refused.code == 4
    assert "2 cores and 0 GPUs has no room" in refused.error_line
    assert "got 0 that fit, expected 2, each with 1 cores and 1 GPUs" in refused.error_line
    many = ("--on", "ray", "--workers", "3:4", *_of_captions(("--set", "executor.wait=0")))
    assert "got 2 that fit, expected 3" in synclr(*CAPTIONS, *many, "-o", tmp_path / "c").error_line


def _of_captions(arguments: tuple[str, ...]) -> list[str]:
    return [a.replace("executor.", "captions.executor.") for a in arguments]


def test_more_workers_than_parts_are_not_started(ray):
    config = CaptionsExecutorConfig(on="ray", workers="1:2")
    assert cluster.pool_size(ray, config, 10) == (1, 2)
    assert cluster.pool_size(ray, config, 1) == (1, 1)
    assert cluster.pool_size(ray, CaptionsExecutorConfig(on="ray"), 10) == (2, 2)
    half = CaptionsExecutorConfig(on="ray", num_cpus=0.5)
    assert cluster.pool_size(ray, half, 10) == (4, 4)


def test_a_place_that_a_node_does_not_see_and_another_version_are_refused(
    ray, tmp_path, monkeypatch
):
    cluster.require_nodes(ray, [tmp_path, tmp_path])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match=r"does not see .*captions of this machine\. Use a folder"):
        cluster.require_nodes(ray, [tmp_path, tmp_path / "captions"])
    monkeypatch.setattr(cluster, "__version__", "99.9")
    with pytest.raises(cluster.EngineError, match=r"synclr on .*, expected 99\.9\. Install"):
        cluster.require_nodes(ray, [tmp_path])


def test_without_ray_the_command_that_installs_it_is_named(synclr_process, tmp_path):
    (tmp_path / "ray.py").write_text("raise ImportError('not installed')")
    ended = synclr_process(*CAPTIONS, *ON_RAY, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert ended.code == 4
    assert ended.err.splitlines()[-1] == (
        "error: --on ray needs the package ray. Pip install 'synclr[ray]'"
    )


def test_an_address_where_no_cluster_is_ends_within_seconds(synclr_process, tmp_path):
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"captions.executor.address=127.0.0.1:{port}"
    ended = synclr_process(*CAPTIONS, *ON_RAY, "--set", address, cwd=tmp_path)
    assert ended.code == 4
    assert f"no Ray cluster at 127.0.0.1:{port}" in ended.error_line
    assert contents(tmp_path) == {}


def test_workers_are_for_ray_and_a_number_or_two(synclr):
    for workers in ("0", "2:1", "a", "1:2:3", "1000000"):
        assert synclr("render", "--on", "ray", "--workers", workers).code == 2
    assert "add --on ray" in synclr("render", "--workers", "2").error_line.lower()
    assert synclr("render", "--on", "slurm").code == 2


@pytest.mark.slow
def test_evaluations_on_a_cluster_are_those_of_one_process(ray, synclr, small_vit, tmp_path):
    command = ("linear-probe", small_vit, f"random:{small_vit}", "--data", "digits:")
    here = synclr(*command, "-o", tmp_path / "here", cwd=tmp_path)
    there = synclr(*command, *ON_RAY, "-o", tmp_path / "there")
    assert (here.code, there.code) == (0, 0), there.err
    assert json.loads(here.out) == json.loads(there.out.splitlines()[-1])
    for name in ("here", "there"):
        assert len(list((tmp_path / name).glob("*/report.json"))) == 2
