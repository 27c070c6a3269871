"""The numbers that tell learning from collapse, and the curves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from synclr_cli.data import storage
from synclr_cli.errors import DataError
from synclr_cli.train import metrics, report


def test_the_effective_rank_counts_directions() -> None:
    assert metrics.effective_rank(torch.eye(8)) == pytest.approx(8)
    assert metrics.effective_rank(torch.ones(8, 4) * torch.rand(8, 1)) == pytest.approx(1)
    two = torch.cat([torch.eye(6)[:1].expand(5, -1), torch.eye(6)[1:2].expand(5, -1)])
    assert metrics.effective_rank(two) == pytest.approx(2)


def test_embeddings_of_nothing_are_a_collapse() -> None:
    rank = metrics.effective_rank(torch.zeros(8, 4))
    assert rank == 0 and report.collapse({"step": 5, "effective_rank": rank})


def test_the_similarity_gap_is_that_of_the_pairs() -> None:
    x = torch.randn(9, 5, dtype=torch.float64)
    labels = torch.tensor([7, 7, 7, 2, 2, 2, 2, 5, 5])
    cosine = torch.nn.functional.cosine_similarity(x[:, None], x, dim=-1)
    same, other = labels[:, None] == labels, labels[:, None] != labels
    same.fill_diagonal_(False)
    expected = cosine[same].mean() - cosine[other].mean()
    assert metrics.similarity_gap(x, labels) == pytest.approx(expected.item(), rel=1e-9)


def test_perplexity_counts_what_is_in_use() -> None:
    assert metrics.perplexity(torch.tensor([3.0, 3.0, 0.0, 3.0])) == pytest.approx(3)


@pytest.mark.parametrize(("rank", "said"), [(1.2, True), (9.0, False)])
def test_a_collapse_is_said(rank: float, said: bool) -> None:
    assert ("collapsed" in report.collapse({"step": 5, "effective_rank": rank})) == said


def test_curves_are_drawn_from_the_metrics(tmp_path: Path) -> None:
    for step in range(1, 20):
        line = {"step": step, "loss_global": 4 / step, "lr": 0.1, "grad_norm": 1.0}
        storage.append_line(tmp_path / "metrics.jsonl", line)
    png = report.plot(tmp_path, tmp_path / "curves.png")
    with Image.open(png) as picture:
        assert picture.width > 600 and len(set(picture.convert("L").tobytes())) > 20


def test_a_run_without_metrics_has_no_curves(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Train a few steps first"):
        report.plot(tmp_path, tmp_path / "curves.png")


def test_a_line_that_a_killed_process_began_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2):
        storage.append_line(tmp_path / "metrics.jsonl", {"step": step, "loss_global": 1.0})
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as f:
        f.write('{"step": 3, "loss_gl')
    assert [line["step"] for line in storage.read_lines(tmp_path / "metrics.jsonl")] == [1, 2]
    assert report.plot(tmp_path, tmp_path / "curves.png").is_file()
    assert storage.read_lines(tmp_path / "nothing.jsonl") == []


def test_curves_need_no_torch() -> None:
    program = "import sys; from synclr_cli.train import report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
