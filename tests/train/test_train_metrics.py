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


def lines() -> list[dict[str, float]]:
    return [
        {"step": 2 * i, "loss_global": 4 / i, "loss_local": 5 / i, "lr": 0.1 * i, "grad_norm": i}
        | ({"knn_top1": 10.0 + i} if i % 3 == 0 else {})
        for i in range(1, 20)
    ]


def test_curves_show_each_number_at_its_step_under_its_name() -> None:
    figure = report.figure(lines(), "my run")
    axes = {axis.get_title(): axis for axis in figure.axes if axis.axison}
    assert figure.get_suptitle() == "my run"
    assert set(axes) == {"contrast", "k nearest neighbours, top-1 %", "gradient norm",
                         "learning rate"}  # fmt: skip

    def curve(title: str, label: str) -> dict[float, float]:
        (line,) = [x for x in axes[title].get_lines() if x.get_label() == label]
        x, y = line.get_data()
        return dict(zip(map(float, x), map(float, y), strict=True))

    steps = range(1, 20)
    assert curve("contrast", "global crops") == {2 * i: 4 / i for i in steps}
    assert curve("contrast", "local crops") == {2 * i: 5 / i for i in steps}
    assert curve("learning rate", "AdamW") == {2 * i: 0.1 * i for i in steps}
    assert curve("gradient norm", "all weights") == {2 * i: i for i in steps}
    graded = {2 * i: 10.0 + i for i in steps if i % 3 == 0}
    assert curve("k nearest neighbours, top-1 %", "teacher") == graded
    assert axes["gradient norm"].get_yscale() == "log"
    assert axes["learning rate"].get_yscale() == "linear"
    legend = axes["contrast"].get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["global crops", "local crops"]


def test_a_collapse_is_marked_in_every_panel_from_its_step_on() -> None:
    ranks = [8.0, 1.1, 8.0, 1.1, 1.0]  # back from the first one
    own = [{"step": 10 * i, "lr": 0.1, "effective_rank": r} for i, r in enumerate(ranks, 1)]
    figure = report.figure(own, "my run")
    assert figure.get_suptitle() == "my run: collapsed at step 40"
    for axis in (axis for axis in figure.axes if axis.axison):
        assert [list(x.get_xdata()) for x in axis.get_lines()][-1] == [40, 40]


def test_the_curves_are_written_as_one_image(tmp_path: Path) -> None:
    for line in lines():
        storage.append_line(tmp_path / "metrics.jsonl", line)
    with Image.open(report.plot(tmp_path, tmp_path / "curves.png")) as image:
        assert image.format == "PNG" and image.size == (1496, 286)  # four panels of 374 x 286


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


def test_a_verdict_needs_neither_torch_nor_matplotlib() -> None:
    program = (
        "import sys; from synclr_cli.train import report; report.collapse({'step': 1});"
        "sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
