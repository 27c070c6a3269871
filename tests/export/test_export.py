"""A backbone in other libraries: opened their way, it computes what it computes here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from synclr_cli.data import describe, storage
from synclr_cli.data.artifacts import Header
from synclr_cli.errors import EngineError, UsageError
from synclr_cli.export import run as exporting
from synclr_cli.export.run import run
from synclr_cli.learning import backbone
from synclr_cli.learning.transforms import EvalTransform

ARCH = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    torch.manual_seed(1)
    model = backbone.build(ARCH, image_size=32, patch_size=8, depth=2)
    header = Header(schema="backbone", config={})
    backbone.save(folder, model, header, arch=ARCH, image_size=32, patch_size=8, depth=2)
    return folder


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((57, 44))


def ours(trained: Path, image: Image.Image) -> torch.Tensor:
    opened = backbone.open_backbone(str(trained))
    view = EvalTransform(32, 32, opened.mean, opened.std, opened.interpolation)
    with torch.no_grad():
        return opened.model.eval().forward_features(view(image)[None])


def test_timm_opens_the_export_by_itself(trained: Path, tmp_path: Path) -> None:
    out = run(str(trained), "timm", tmp_path / "out")
    told = describe.describe(out)
    assert told.json()["schema"] == "export/1" and told.chain()[1].strip().startswith(
        "small: backb"
    )
    model = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=0).eval()
    mine = backbone.open_backbone(str(trained)).model.eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), mine(x))
    assert model.pretrained_cfg["mean"] == list(backbone.IMAGENET_MEAN)


def test_transformers_shows_and_computes_a_image_alike(
    trained: Path, tmp_path: Path, image: Image.Image
) -> None:
    from transformers import AutoImageProcessor, ViTModel

    out = run(str(trained), "transformers", tmp_path / "out")
    model, info = ViTModel.from_pretrained(out, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pixels = AutoImageProcessor.from_pretrained(out)(image, return_tensors="pt")
    with torch.no_grad():
        tokens = model.eval()(**pixels).last_hidden_state
    # The processor resizes 8-bit pixels as we do; a level of rounding apart at most.
    torch.testing.assert_close(tokens, ours(trained, image), rtol=0.02, atol=0.02)


def test_timms_wrapper_in_transformers_opens_the_timm_export(trained: Path, tmp_path: Path) -> None:
    from transformers import TimmWrapperModel

    out = run(str(trained), "timm", tmp_path / "out")
    model = TimmWrapperModel.from_pretrained(out).eval()
    mine = backbone.open_backbone(str(trained)).model.eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = model(pixel_values=x).last_hidden_state
        torch.testing.assert_close(found, mine.forward_features(x), rtol=1e-4, atol=1e-5)


def test_onnx_runs_any_batch(trained: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = run(str(trained), "onnx", tmp_path / "out")
    session = runtime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    mine = backbone.open_backbone(str(trained)).model.eval()
    for batch in (1, 5):
        x = torch.randn(batch, 3, 32, 32)
        cls, patches = session.run(None, {"images": x.numpy()})
        with torch.no_grad():
            tokens = mine.forward_features(x).numpy()
        np.testing.assert_allclose(cls, tokens[:, 0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(patches, tokens[:, 1:], rtol=1e-3, atol=1e-4)


def test_the_same_export_again_is_there_and_another_is_refused(
    trained: Path, tmp_path: Path
) -> None:
    out = run(str(trained), "timm", tmp_path / "out")
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert run(str(trained), "timm", out) == out
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="holds another export"):
        run(str(trained), "transformers", out)
    run(str(trained), "transformers", out, overwrite=True)
    assert storage.read_json(out / "config.json")["model_type"] == "vit"


def test_what_is_there_and_no_export_is_left_alone(trained: Path) -> None:
    with pytest.raises(UsageError, match="is not an export"):
        run(str(trained), "timm", trained, overwrite=True)
    assert (trained / "backbone.safetensors").is_file()


def test_other_features_are_not_kept(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = exporting.timm.features
    monkeypatch.setattr(exporting.timm, "features", lambda f, x: broken(f, x) * 1.01)
    with pytest.raises(EngineError, match="of the largest apart"):
        run(str(trained), "timm", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.onnx, "PACKAGES", ("no_such_package",))
    with pytest.raises(EngineError, match=r"pip install 'synclr\[onnx\]'"):
        run(str(trained), "onnx", tmp_path / "out")
    with pytest.raises(UsageError, match=r"expected timm \| transformers \| onnx"):
        run(str(trained), "coreml", tmp_path / "out")


def test_a_vit_that_transformers_lacks_is_sent_to_timm(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="TimmWrapper"):  # it has layer scale
        run("random:deit3_small_patch16_224", "transformers", tmp_path / "out")
