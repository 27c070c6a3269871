"""Checkpoints: what goes in comes out, the newest are kept, a broken one is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from synclr_cli.data.artifacts import Header
from synclr_cli.errors import DataError, UsageError
from synclr_cli.learning import checkpoint

HEADER = Header(schema="checkpoint", config={"steps": 3})


def groups(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"student": {"a": torch.full((2, 3), value)}, "teacher": {"a.b": torch.tensor([value])}}


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, groups(0.1), HEADER, state={"best": 0.25})
    loaded = checkpoint.load(path)
    assert loaded.step == 7 and loaded.state == {"best": 0.25}
    assert set(loaded.groups) == {"student", "teacher"}
    assert torch.equal(loaded.groups["student"]["a"], groups(0.1)["student"]["a"])


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 100):
        checkpoint.save(tmp_path, step, groups(step), HEADER, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000015", "step-00000100"]
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and checkpoint.load(newest).step == 100


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".step-00000009.partial").mkdir()
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("file", ["state.json", "student.safetensors"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, file: str) -> None:
    path = checkpoint.save(tmp_path, 1, groups(1), HEADER)
    content = (path / file).read_bytes()
    (path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=file):
        checkpoint.load(path)


def test_an_optimiser_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    def optimiser(seed: int) -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(seed)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def update(model: torch.nn.Linear, optimizer: torch.optim.AdamW, step: int) -> None:
        model(torch.full((1, 3), float(step))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    straight, optimizer = optimiser(0)
    for step in range(3):
        update(straight, optimizer, step)
    saved = {
        "model": straight.state_dict(), "optimizer": checkpoint.optimizer_tensors(optimizer)
    }  # fmt: skip
    path = checkpoint.save(tmp_path, 3, saved, HEADER)
    for step in range(3, 6):
        update(straight, optimizer, step)

    resumed, optimizer = optimiser(1)
    loaded = checkpoint.load(path)
    resumed.load_state_dict(dict(loaded.groups["model"]))
    checkpoint.restore_optimizer(optimizer, loaded.groups["optimizer"])
    for step in range(3, 6):
        update(resumed, optimizer, step)
    assert torch.equal(resumed.weight, straight.weight)


def test_a_writer_saves_what_was_there_when_it_was_asked(tmp_path: Path) -> None:
    writer, live = checkpoint.Writer(), {"student": {"w": torch.zeros(1000)}}
    for step in (1, 2):
        live["student"]["w"].fill_(step)
        writer.save(tmp_path, step, live, HEADER, keep=1)
        live["student"]["w"].fill_(-1)  # training goes on meanwhile
    writer.settle()
    (only,) = tmp_path.iterdir()
    saved = checkpoint.load(only)
    assert saved.step == 2 and (saved.groups["student"]["w"] == 2).all()


def test_a_writer_tells_with_the_next_call_what_went_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    writer = checkpoint.Writer()
    writer.save(tmp_path / "file", 1, {"student": {"w": torch.zeros(1)}}, HEADER)
    with pytest.raises(UsageError, match="cannot write"):
        writer.settle()
    writer.settle()  # told once
