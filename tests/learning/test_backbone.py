"""Backbones: saved and opened again, by us and by timm; official files; what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from synclr_cli.data.artifacts import Header
from synclr_cli.errors import DataError, UsageError
from synclr_cli.learning import backbone

ARCH = "vit_tiny_patch16_224"
HEADER = Header(schema="backbone", config={})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    torch.manual_seed(0)
    model = backbone.build(ARCH, image_size=32, patch_size=8, depth=2)
    backbone.save(folder, model, HEADER, arch=ARCH, image_size=32, patch_size=8, depth=2)
    return folder


def features(model: torch.nn.Module, size: int = 32) -> torch.Tensor:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.eval().forward_features(x)


def test_a_run_opens_as_it_was_saved(run: Path) -> None:
    by_folder = backbone.open_backbone(str(run))
    by_file = backbone.open_backbone(str(run / "backbone.safetensors"))
    assert torch.equal(features(by_folder.model), features(by_file.model))
    assert by_folder.digest == by_file.digest and by_folder.name == "small"
    assert (by_folder.image_size, by_folder.patch_size) == (32, 8)
    theirs = timm.create_model(f"local-dir:{run}", num_classes=0, pretrained=True)
    torch.testing.assert_close(features(theirs), features(by_folder.model))


def test_random_is_the_same_architecture_with_weights_from_the_seed(run: Path) -> None:
    trained = backbone.open_backbone(str(run))
    drawn = [backbone.open_backbone(f"random:{run}", seed=s) for s in (1, 1, 2)]
    assert drawn[0].digest == drawn[1].digest != drawn[2].digest
    assert features(drawn[0].model).shape == features(trained.model).shape
    assert not torch.allclose(features(drawn[0].model), features(trained.model))


def test_another_image_size_resizes_the_position_table(run: Path) -> None:
    larger = backbone.open_backbone(str(run), image_size=48)
    assert larger.model.pos_embed.shape[1] == 1 + 36
    assert features(larger.model, 48).shape == (2, 37, 192)


def test_a_smaller_position_table_is_bicubic_without_antialiasing(run: Path) -> None:
    whole = backbone.open_backbone(str(run)).model.pos_embed[:, 1:]  # [1, 4 x 4, D]
    grid = whole.unflatten(1, (4, 4)).permute(0, 3, 1, 2)  # [1, D, 4, 4]
    expected = torch.nn.functional.interpolate(
        grid, size=(2, 2), mode="bicubic", align_corners=False, antialias=False
    )
    smaller = backbone.open_backbone(str(run), image_size=16).model.pos_embed[:, 1:]  # [1, 4, D]
    assert torch.equal(smaller, expected.permute(0, 2, 3, 1).flatten(1, 2))


@pytest.mark.parametrize("outer", ["model", "state_dict", ""])
@pytest.mark.parametrize("prefix", ["module.visual.", "visual.", ""])
def test_released_checkpoints_are_read_whatever_their_keys(
    tmp_path: Path, outer: str, prefix: str
) -> None:
    model = timm.create_model(ARCH, num_classes=0)
    state = {prefix + k: v for k, v in model.state_dict().items()}
    state |= {prefix + "mask_token": torch.zeros(1, 1, 192), "epoch": 3}
    path = tmp_path / "released.pth"
    torch.save({outer: state} if outer else state, path)
    opened = backbone.open_backbone(str(path))
    torch.testing.assert_close(features(opened.model, 224), features(model, 224))


class Harm:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("harm-was-done"),))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Harm()}, "evil.pth")
    with pytest.raises(DataError, match="without running code"):
        backbone.open_backbone("evil.pth")
    assert not Path("harm-was-done").exists()


@pytest.mark.parametrize("text", ["hello", "just some text", "", "not a checkpoint at all"])
def test_a_text_is_no_checkpoint(tmp_path: Path, text: str) -> None:
    (tmp_path / "notes.pth").write_text(text)
    with pytest.raises(DataError, match=r"notes.pth is not a checkpoint that can be read"):
        backbone.open_backbone(str(tmp_path / "notes.pth"))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("nowhere", DataError, "no backbone nowhere"),
        ("random:vit_tinny_patch16_224", UsageError, "vit_tiny_patch16_224"),
        ("random:resnet18", UsageError, "ViT"),
        ("timm:no_such_model", UsageError, "no model no_such_model"),
    ],
)
def test_what_is_no_backbone_is_refused(spec: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        backbone.open_backbone(spec)


def test_a_folder_without_a_backbone_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Name a run folder, or a file of weights"):
        backbone.open_backbone(str(tmp_path))
    (tmp_path / "export.json").touch()
    with pytest.raises(DataError, match=r"Name the backbone that it was made from"):
        backbone.open_backbone(str(tmp_path))
    (tmp_path / "export.json").rename(tmp_path / "run.json")
    with pytest.raises(DataError, match=r"holds no backbone.safetensors. Finish its training"):
        backbone.open_backbone(str(tmp_path))


def test_weights_of_another_shape_are_named(run: Path, tmp_path: Path) -> None:
    state = dict(backbone.open_backbone(str(run)).model.state_dict())
    del state["norm.weight"]
    state["extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(DataError, match=r"missing norm.weight; unknown extra"):
        backbone.open_backbone(str(tmp_path / "wrong.pth"))


def test_a_bare_state_dict_tells_its_own_depth_patch_and_size(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    mine = backbone.open_backbone(str(run))
    state = {k: v.contiguous() for k, v in mine.model.state_dict().items()}
    save_file(state, tmp_path / "bare.safetensors")
    torch.save({"state_dict": state}, tmp_path / "bare.pth")
    for name in ("bare.safetensors", "bare.pth"):
        opened = backbone.open_backbone(str(tmp_path / name))
        assert (opened.image_size, opened.patch_size, len(opened.model.blocks)) == (32, 8, 2)
        torch.testing.assert_close(features(opened.model), features(mine.model))


def test_heads_and_arguments_beside_released_weights_are_passed_over(tmp_path: Path) -> None:
    import argparse

    model = timm.create_model(ARCH, num_classes=0)
    state = {f"module.visual.{k}": v for k, v in model.state_dict().items()}
    state["module.image_mlp.layer1.weight"] = torch.zeros(4, 192)  # StableRep's projector
    state["module.logit_scale"] = torch.zeros(())
    path = tmp_path / "stablerep.pth"
    torch.save({"state_dict": state, "args": argparse.Namespace(epochs=35), "epoch": 35}, path)
    opened = backbone.open_backbone(str(path))
    torch.testing.assert_close(features(opened.model, 224), features(model, 224))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"conv1.weight": torch.zeros(2)}, "is not a ViT checkpoint: got keys like conv1.weight"),
        ({"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}, "expected pos_embed"),
        (
            {
                "patch_embed.proj.weight": torch.zeros(8, 3, 4, 4),
                "pos_embed": torch.zeros(1, 17, 8),
            },
            "width 8, unknown to timm",
        ),
        ({"epoch": 3}, "got keys like no tensor"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    tmp_path: Path, state: dict, message: str
) -> None:
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(DataError, match=message):
        backbone.open_backbone(str(tmp_path / "other.pth"))
