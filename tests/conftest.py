"""What every test may use: the command line in this process, and as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests need no network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads than free cores are slower


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """Return the one error line; fail if there is none or it is not the last."""
        last = self.err.strip().splitlines()[-1]
        assert last.startswith("error: "), self.err
        return last


@pytest.fixture
def synclr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Run one synclr command line in this process."""
    from synclr_cli import console
    from synclr_cli.cli import main

    def run(*arguments: object, cwd: Path | None = None, stdin: str | None = None) -> Outcome:
        import io

        if cwd:
            monkeypatch.chdir(cwd)
        if stdin is not None:
            monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        try:
            main([str(a) for a in arguments])
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 0
        finally:
            console.set_quiet(False)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def synclr_process() -> Callable[..., Outcome]:
    """Run one synclr command line as a process of its own."""

    def run(*arguments: object, cwd: Path | None = None, **environment: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "synclr_cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, "COLUMNS": "100", **environment},
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def small_vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run folder with a ViT of two blocks, for images of 32 pixels."""
    from synclr_cli.data.artifacts import Header
    from synclr_cli.learning import backbone, runtime

    folder = tmp_path_factory.mktemp("small_vit")
    arch, sizes = "vit_tiny_patch16_224", {"image_size": 32, "patch_size": 8, "depth": 2}
    with runtime.seeded("test", 0):
        model = backbone.build(arch, **sizes)
    backbone.save(folder, model, Header("backbone", config={}), arch=arch, **sizes)
    return str(folder)
