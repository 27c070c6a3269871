"""Backbones: build one, save one, open anybody's.

A backbone is a timm ViT without a head. Saved, it is `backbone.safetensors` under timm's key names
with a `config.json` beside it, so `timm.create_model("local-dir:runs/vitb", num_classes=0,
pretrained=True)` opens a run folder with no code of ours.

    spec --open_backbone--> Backbone(model, mean, std, image size, ...)
    spec: run folder | .safetensors, ours or bare | .pth of the released code or of others
          | hf://USER/NAME | timm:NAME | random:ARCH or random:RUN
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor

from synclr_cli.data import artifacts, exports, storage
from synclr_cli.data.artifacts import Header
from synclr_cli.errors import DataError, EngineError, UsageError
from synclr_cli.learning import hub_files, runtime, weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS_FILE = "backbone.safetensors"
CONFIG_FILE = "config.json"  # beside it, for timm


@dataclass(frozen=True)
class Backbone:
    """A ViT and how to show it an image."""

    model: VisionTransformer
    spec: str  # as the user named it
    name: str  # short, for files and tables
    digest: str  # of the weights
    image_size: int  # pixels
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str
    header: Header | None = None
    arch: str = ""  # timm's name
    arguments: Mapping[str, int] = field(default_factory=dict)  # that it was built with

    @property
    def patch_size(self) -> int:
        """Return the side of a patch in pixels."""
        return int(self.model.patch_embed.patch_size[0])


def build(
    arch: str,
    *,
    image_size: int,
    patch_size: int = 0,
    depth: int = 0,
    drop_path: float = 0.0,
    pretrained: bool = False,
    any_size: bool = True,
) -> VisionTransformer:
    """Build a timm ViT without head.

    Args:
        arch: name of a timm ViT.
        image_size: pixels; the position table is made for it.
        patch_size, depth: 0 for the arch's own.
        any_size: it also takes smaller square crops.

    Raises:
        UsageError: no such arch, or not a plain ViT.
        EngineError: pretrained weights cannot be fetched.
    """
    arguments = _arguments(image_size, patch_size, depth)
    try:
        model = timm.create_model(
            arch,
            pretrained=pretrained,
            num_classes=0,
            drop_path_rate=drop_path,
            dynamic_img_size=any_size,
            **arguments,
        )
    except (OSError, ConnectionError) as e:
        raise EngineError(
            f"cannot fetch the weights of {arch} ({type(e).__name__}: {e})",
            do="connect to the network once, or name a local file",
        ) from e
    except (RuntimeError, TypeError, ValueError, AssertionError) as e:
        near = difflib.get_close_matches(arch, timm.list_models("*vit*"), n=3, cutoff=0.5)
        hint = ", ".join(near or ["vit_base_patch16_224"])
        raise UsageError(f"cannot build {arch} ({e})", do=f"name a timm ViT, such as {hint}") from e
    if not isinstance(model, VisionTransformer) or model.cls_token is None:
        raise UsageError(
            f"arch {arch}", got=type(model).__name__, expected="a ViT with a cls token"
        )
    return model


def _arguments(image_size: int, patch_size: int, depth: int) -> dict[str, int]:
    given = {"img_size": image_size, "patch_size": patch_size, "depth": depth}
    return {name: value for name, value in given.items() if value}


def of_fixed_size(opened: Backbone) -> VisionTransformer:
    """Return the ViT for images of its own size alone, whose graph has no size to look at."""
    model = build(
        opened.arch,
        image_size=opened.image_size,
        patch_size=opened.arguments.get("patch_size", 0),
        depth=opened.arguments.get("depth", 0),
        any_size=False,
    )
    load_weights(model, opened.model.state_dict(), Path(opened.spec))
    return model


def timm_config(opened: Backbone) -> dict[str, Any]:
    """Return the `config.json` that timm's `local-dir:` reads."""
    size = opened.image_size
    return {
        "architecture": opened.arch.partition(".")[0],  # without the tag of its weights
        "num_classes": 0,
        "num_features": opened.model.num_features,
        "model_args": dict(opened.arguments),
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "interpolation": opened.interpolation,
            "crop_pct": 1.0,
            "mean": list(opened.mean),
            "std": list(opened.std),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def cls_features(model: VisionTransformer, images: Tensor) -> Tensor:
    """Return the cls token after the final norm, [B, D], from images [B, 3, S, S]."""
    return model.forward_features(images)[:, 0]  # [B, D]


def save(
    folder: Path,
    model: VisionTransformer,
    header: Header,
    *,
    arch: str,
    image_size: int,
    patch_size: int = 0,
    depth: int = 0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    interpolation: str = "bicubic",
) -> Path:
    """Write `backbone.safetensors` and the `config.json` that timm's `local-dir:` reads."""
    file = folder / WEIGHTS_FILE
    facts: dict[str, Any] = {
        "arch": arch,
        "arch_arguments": _arguments(image_size, patch_size, depth),
        "patch_size": int(model.patch_embed.patch_size[0]),
        "image_size": image_size,
        "mean": list(mean),
        "std": list(std),
        "interpolation": interpolation,
        **(header.facts or {}),
    }
    described = Header(**{**vars(header), "schema": "backbone", "facts": facts})
    opened = Backbone(
        model=model, spec=str(folder), name=folder.name, digest="", image_size=image_size,
        mean=mean, std=std, interpolation=interpolation, arch=arch,
        arguments=facts["arch_arguments"],
    )  # fmt: skip
    storage.write_json(folder / CONFIG_FILE, timm_config(opened))
    artifacts.write_tensors(file, model.state_dict(), described)
    return file


def open_backbone(
    spec: str, *, image_size: int = 0, drop_path: float = 0.0, seed: int = 0
) -> Backbone:
    """Open any backbone by its name.

    Args:
        spec: run folder | file.safetensors | file.pth | hf://USER/NAME, which `synclr push` sent |
            timm:NAME | random:ARCH | random:RUN (the same architecture as a run, with new weights
            drawn from `seed`). A file without a synclr header is a state dict under timm's names,
            as the released weights are.
        image_size: pixels to build it for, its position table resized; 0 for its own.

    Raises:
        UsageError: no such scheme or arch.
        DataError: the file is missing, damaged, or its keys are not a ViT's.
        EngineError: weights cannot be fetched.
    """
    scheme, colon, target = spec.partition(":")
    if colon and scheme == "timm":
        return _open_timm(spec, target, image_size, drop_path)
    if colon and scheme == "random":
        return _open_random(spec, target, image_size, drop_path, seed)
    path = hub_files.fetch(spec) if colon and scheme == "hf" else Path(spec)
    if path.is_dir():
        if not (path / WEIGHTS_FILE).is_file():
            raise DataError(f"{spec} holds no {WEIGHTS_FILE}", do=_instead_of(path))
        path = path / WEIGHTS_FILE
    if not path.is_file():
        raise DataError(
            f"no backbone {spec}",
            expected="a run folder, a .safetensors or .pth file, hf://USER/NAME, timm:NAME or"
            " random:ARCH",
            got="none of these",
        )
    if path.suffix in (".pth", ".pt", ".bin"):
        return _open_bare(spec, path, weights.unpickled(path), image_size, drop_path)
    if not artifacts.is_ours(path):
        return _open_bare(spec, path, artifacts.tensors_of(path), image_size, drop_path)
    return _open_saved(spec, path, image_size, drop_path)


def _instead_of(folder: Path) -> str:
    """Return what somebody may do who named a folder without a backbone."""
    if (folder / exports.EXPORT_FILE).is_file() or (folder / "report.json").is_file():
        return "name the backbone that it was made from"
    if any((folder / name).is_file() for name in ("run.json", "state.json")):
        return "finish its training: run synclr train again"
    return "name a run folder, or a file of weights"


def _open_saved(spec: str, path: Path, image_size: int, drop_path: float) -> Backbone:
    tensors, header = artifacts.read_tensors(path, "backbone")
    facts = weights.facts(header, path)
    model = _from_facts(facts, image_size, drop_path)
    load_weights(model, tensors, path)
    return Backbone(
        model=model,
        spec=spec,
        name=_name(spec, path),
        digest=storage.digest(path),
        image_size=image_size or facts["image_size"],
        mean=facts["mean"],
        std=facts["std"],
        interpolation=facts["interpolation"],
        header=header,
        arch=facts["arch"],
        arguments=facts["arch_arguments"] | {"img_size": image_size or facts["image_size"]},
    )


def _name(spec: str, path: Path) -> str:
    if spec.startswith("hf://"):
        return spec.rstrip("/").rpartition("/")[2]
    return path.parent.resolve().name if path.name == WEIGHTS_FILE else path.stem


def _from_facts(facts: Mapping[str, Any], image_size: int, drop_path: float) -> VisionTransformer:
    arguments = facts["arch_arguments"]
    return build(
        facts["arch"],
        image_size=image_size or facts["image_size"],
        patch_size=arguments.get("patch_size", 0),
        depth=arguments.get("depth", 0),
        drop_path=drop_path,
    )


def _open_random(spec: str, target: str, image_size: int, drop_path: float, seed: int) -> Backbone:
    runtime.seed_everything(seed)
    path = Path(target) / WEIGHTS_FILE if Path(target).is_dir() else Path(target)
    if path.suffix == ".safetensors":
        header = artifacts.tensors_header(path)
        facts = weights.facts(header, path)
        model = _from_facts(facts, image_size, drop_path)
        size, name = image_size or facts["image_size"], facts["arch"]
        arguments = facts["arch_arguments"] | {"img_size": size}
    else:
        size = image_size or 224
        model, name = build(target, image_size=size, drop_path=drop_path), target
        arguments = _arguments(size, 0, 0)
    return Backbone(
        model=model,
        spec=spec,
        name=f"random-{name}-seed{seed}",
        digest=_state_digest(model),
        image_size=size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        interpolation="bicubic",
        arch=name,
        arguments=arguments,
    )


def _open_timm(spec: str, name: str, image_size: int, drop_path: float) -> Backbone:
    own = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if own is None:
        raise UsageError(f"timm has no model {name}")
    size = image_size or own.input_size[-1]
    model = build(name, image_size=size, drop_path=drop_path, pretrained=True)
    return Backbone(
        model=model,
        spec=spec,
        name=name,
        digest=_state_digest(model),
        image_size=size,
        mean=own.mean,
        std=own.std,
        interpolation=own.interpolation or "bicubic",
        arch=name,
        arguments=_arguments(size, 0, 0),
    )


def _open_bare(
    spec: str, path: Path, state: Mapping[str, Tensor], image_size: int, drop_path: float
) -> Backbone:
    """Open a bare state dict: the released SynCLR or StableRep weights, or timm's own."""
    tensors = {k.removeprefix("module."): v for k, v in state.items()}
    visual = {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")}
    tensors = visual or tensors  # beside `visual.` lie heads, which nobody asks for here
    arch, arguments = weights.arch_of(tensors, path)
    arguments["image_size"] = image_size or arguments["image_size"]
    model = build(arch, drop_path=drop_path, **arguments)  # type: ignore[arg-type]
    load_weights(model, tensors, path)
    return Backbone(
        model=model,
        spec=spec,
        name=path.stem,
        digest=storage.digest(path),
        image_size=image_size or arguments["image_size"],
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        interpolation="bicubic",
        arch=arch,
        arguments=_arguments(**arguments | {"image_size": image_size or arguments["image_size"]}),
    )


def load_weights(model: VisionTransformer, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict, its position table resized to the model's; heads and mask token dropped.

    Raises:
        DataError: keys or shapes do not match; the first of them are listed.
    """
    state = {k: v for k, v in tensors.items() if not k.startswith("head.") and k != "mask_token"}
    table = state.get("pos_embed")
    if table is not None and table.shape != model.pos_embed.shape:
        state["pos_embed"] = resample_abs_pos_embed(
            table, new_size=list(model.patch_embed.grid_size), num_prefix_tokens=1, antialias=False
        )
    expected = model.state_dict()
    wrong = [
        *(f"missing {k}" for k in expected if k not in state),
        *(f"unknown {k}" for k in state if k not in expected),
        *(
            f"{k} is {list(v.shape)}, not {list(expected[k].shape)}"
            for k, v in state.items()
            if k in expected and v.shape != expected[k].shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DataError(f"{path} does not fit the model: {'; '.join(wrong[:5])}{more}")
    model.load_state_dict(state)


def _state_digest(model: VisionTransformer) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return f"sha256:{total.hexdigest()}"
