"""The estimate against what really comes out: rows, bytes, weights, what a GPU keeps, products."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import tracing
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from synclr_cli import presets
from synclr_cli.config import TrainConfig
from synclr_cli.learning.runtime import Runtime
from synclr_cli.plan import memory, models, recipe as recipes, run as estimate
from synclr_cli.train import losses
from synclr_cli.train.reading import Reading
from synclr_cli.train.student_teacher import Student, Teacher

Run = Callable[..., Any]  # the command line in this process
SMALL = [
    "--set=captions.count=40", "--set=render.views=2", "--set=train.views=2",
    "--set=captions.engine.name=template:",
    "--set=captions.concepts=in21k", "--set=render.engine.name=procedural:",
    "--set=train.captions_per_batch=8", "--set=train.image_size=32",
    "--set=train.steps=12", "--set=train.log_steps=4",
    "--set=render.engine.size=32",
]  # fmt: skip


def planned(run: Run, *arguments: object) -> dict[str, Any]:
    outcome = run("plan", *arguments)
    assert outcome.code == 0, outcome.err
    result: dict[str, Any] = json.loads(outcome.out)
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the small recipe really makes."""
    from synclr_cli.cli import app

    root = tmp_path_factory.mktemp("made")
    steps = (["captions"], ["render", str(root / "captions")], ["train", str(root / "render")])
    for command, *source in steps:
        app([command, *source, "-q", "-o", str(root / command), *SMALL], standalone_mode=False)
    return root


def on_disk(folder: Path, pattern: str = "part-*.parquet") -> tuple[int, int]:
    parts = sorted(folder.glob(pattern))
    rows = sum(pq.read_metadata(p).num_rows for p in parts)
    return rows, sum(p.stat().st_size for p in parts)


def test_rows_and_bytes_are_those_of_a_real_run(synclr: Run, made: Path) -> None:
    plan = planned(synclr, *SMALL, "--gpus", 1)
    for stage in ("captions", "render"):
        rows, size = on_disk(made / stage)
        assert plan[stage]["rows"] == rows
        assert plan[stage]["bytes"] == pytest.approx(size, rel=0.3), stage
    of_run = sum(p.stat().st_size for p in (made / "train").rglob("*.safetensors"))
    assert plan["train"]["bytes"] == pytest.approx(of_run, rel=0.3)


def test_measured_speeds_and_sizes_are_those_of_a_real_run(synclr: Run, made: Path) -> None:
    plan = planned(
        synclr, "--measure", *SMALL, "--set=plan.measured_steps=8", "--set=plan.measured_captions=4"
    )
    assert plan["gpus"] == 1 and plan["gpu"].startswith("CPU")
    assert plan["render"]["bytes"] == pytest.approx(on_disk(made / "render")[1], rel=0.3)
    assert all(plan[s]["bound"] == "measured" for s in ("captions", "render"))
    lines = [json.loads(x) for x in (made / "train" / "metrics.jsonl").read_text().splitlines()]
    per_image = lines[-1]["model_tflop_per_s"] * 1e12 / lines[-1]["images_per_s"]
    assert plan["train"]["flop"] == pytest.approx(12 * 8 * 2 * per_image, rel=1e-6)
    seen = plan["measured"]
    hours = plan["train"]["flop"] / seen["train_flops"] / 3600
    assert plan["train"]["hours"] == pytest.approx(hours, rel=1e-6)
    assert plan["captions"]["hours"] == pytest.approx(40 / seen["captions_per_s"] / 3600)
    assert plan["render"]["hours"] == pytest.approx(80 / seen["images_per_s"] / 3600)


@pytest.mark.slow
def test_measured_hours_are_those_of_a_real_run(synclr: Run, tmp_path: Path) -> None:
    longer = [*SMALL, "--set=train.steps=300", "--set=captions.count=512"]
    synclr("captions", "-o", tmp_path / "c", *longer)
    synclr("render", tmp_path / "c", "-o", tmp_path / "i", *longer)
    synclr("train", tmp_path / "i", "-o", tmp_path / "r", *longer)
    plan = planned(synclr, "--measure", *longer, "--set=plan.measured_steps=60")
    lines = [json.loads(x) for x in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    seconds = 300 * 16 / np.median([line["images_per_s"] for line in lines[1:]])
    assert plan["train"]["hours"] * 3600 == pytest.approx(seconds, rel=0.3)


def test_weights_are_those_of_student_and_teacher() -> None:
    for sets in ([], ["train.head_norm=layer"], ["train.teacher=false", "train.patch_weight=0"]):
        config = train_config("tiny", *sets)
        alone = Runtime(torch.device("cpu"), None)
        student = Student(config, alone)
        teacher = Teacher(config, alone, student)
        told = memory.Weights.of(config, estimate.build(config))
        for count, module in ((told.student, student), (told.teacher, teacher)):
            own = sum(p.numel() for p in module.parameters())
            assert count == pytest.approx(own, rel=0.01), sets


def train_config(preset: str, *sets: str) -> TrainConfig:
    config = presets.resolve("train", preset=preset, sets=sets).config
    assert isinstance(config, TrainConfig)
    return config


def test_activations_are_what_a_backward_pass_on_a_gpu_keeps() -> None:
    config = replace(train_config("vitb"), compile=False, prototypes=64)

    def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
        attended: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
        return attended

    def kept(student: Student, n: int, rt: Runtime) -> int:
        """Return the bytes that autograd keeps of n images, the weights' copies included."""
        own = {p.untyped_storage()._cdata for p in student.parameters()}
        seen: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            if x.untyped_storage()._cdata not in own:
                seen[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
            return x

        crops = [torch.empty(n, 3, 224, 224, device=rt.device),
                 torch.empty(4 * n, 3, 96, 96, device=rt.device)]  # fmt: skip
        masks = np.zeros((n, 196), bool)
        masks[: n // 2, :98] = True
        reading = Reading.of([masks, None], [(n, 197), (4 * n, 37)]).to(rt)
        hidden = torch.empty(n, 196, dtype=torch.bool, device=rt.device)
        dropped = torch.empty(12, 2, 5 * n, device=rt.device)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), rt.autocast():
            student(crops, [hidden, None], reading, dropped)
        return sum(seen.values())

    with (
        tracing.fake_gpu() as device,
        mock.patch.object(F, "scaled_dot_product_attention", flash),
    ):
        rt = Runtime(device, torch.bfloat16)
        student = tracing.build(Student, config, rt)
        of_image = (kept(student, 8, rt) - kept(student, 4, rt)) / 4
    told = memory.activations_of_image(config, estimate.build(config))
    assert told == pytest.approx(of_image, rel=0.1)


def test_blocks_of_scores_are_those_of_the_losses() -> None:
    assert memory.BLOCK_ON_GPU == losses.BLOCK_ON_GPU
    assert memory.KEPT_ON_GPU == losses.KEPT_ON_GPU


def test_stable_diffusion_costs_what_torch_counts() -> None:
    import diffusers

    model = models.IMAGE_MODELS["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    with torch.device("meta"), torch.no_grad():
        unet = diffusers.UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8
        )
        with FlopCounterMode(display=False) as counted:
            unet(torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 768))
    assert model.denoiser_flops == pytest.approx(counted.get_total_flops(), rel=0.01)
    once = model.image_flops(512, 50, 1.0) - model.decoder_flops
    assert model.image_flops(512, 50, 2.5) - model.decoder_flops == pytest.approx(2 * once)


def test_a_language_model_in_a_folder_is_counted(tmp_path: Path, synclr: Run) -> None:
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=500,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        own = sum(p.numel() for p in transformers.LlamaForCausalLM(config).parameters())
    engine = f"--set=captions.engine.name=transformers:{tmp_path}"
    plan = planned(synclr, "-p", "vitb", engine)
    assert plan["memory"]["captions"]["weights"] == pytest.approx(2 * own, rel=0.01)
    (tmp_path / "config.json").write_text('{"hidden_size": "x"}')
    outcome = synclr("plan", "-p", "vitb", engine)
    assert outcome.code == 3 and "plan.caption_billions" in outcome.error_line


def test_hours_halve_on_twice_the_gpus_where_nothing_else_is_waited_for(synclr: Run) -> None:
    sets = "--set=plan.overlap=1", "--set=train.compile=true"
    one, two = (planned(synclr, "-p", "vitb", "--gpus", n, *sets) for n in (4, 8))
    for stage in ("captions", "render", "train"):
        assert one[stage]["hours"] == pytest.approx(2 * two[stage]["hours"], rel=1e-6), stage
    assert one["total"]["gpu_hours"] == pytest.approx(two["total"]["gpu_hours"], rel=1e-6)


def test_what_does_not_fit_is_said_with_a_cure_that_fits(synclr: Run) -> None:
    plan = planned(synclr, "-p", "vitb", "--gpus", 8, "--gpu", "a100")
    (problem,) = plan["problems"]
    assert problem["key"] == "train.micro_batch"
    cure = problem["do"].split()
    again = planned(synclr, "-p", "vitb", "--gpus", 8, "--gpu", "a100", *cure)
    assert again["problems"] == []
    assert again["memory"]["train"]["total"] < again["memory"]["usable"]
    assert again["train"]["hours"] > plan["train"]["hours"]  # recomputing costs time


def test_a_batch_the_gpus_do_not_divide_is_said(synclr: Run) -> None:
    (problem,) = planned(synclr, "-p", "vits", "--gpus", 6)["problems"][:1]
    assert problem["key"] == "train.captions_per_batch" and "--gpus 4" in problem["do"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--gpu", "h10"], "unknown GPU h10. Did you mean H100?"),
        (["--gpus", "0"], "plan.gpus: got 0, expected from 1 to 100_000"),
        (["--set", "captions.count=1e12"], "captions.count: got 1000000000000"),
        (["--set", "plan.train_shar=1"], "unknown key plan.train_shar. Did you mean"),
        (["-p", "{small}"], "has no table captions"),
        (["-p", "{none}"], "nothing to plan"),
    ],
)
def test_a_users_mistake_is_one_line(
    synclr: Run, tmp_path: Path, arguments: list[str], line: str
) -> None:
    (tmp_path / "small.toml").write_text("[train]\nsteps = 100\nwarmup_steps = 1\n")
    (tmp_path / "none.toml").write_text("[segment]\nsteps = 100\nwarmup_steps = 1\n")
    names = {"small": tmp_path / "small.toml", "none": tmp_path / "none.toml"}
    outcome = synclr("plan", *(a.format(**names) for a in arguments))
    assert outcome.code == 2 and line in outcome.error_line


def test_a_preset_of_fewer_stages_is_planned_without_the_others(
    synclr: Run, tmp_path: Path
) -> None:
    path = tmp_path / "small.toml"
    path.write_text("[train]\nsteps = 100\nwarmup_steps = 1\n")
    sets = "--set=captions.count=10_000", "--set=captions.engine.name=template:"
    plan = planned(synclr, "-p", path, *sets)
    assert "render" not in plan and plan["train"]["epochs"] == pytest.approx(20.48)
    assert plan["total"]["without"] == ["captions"]
    outcome = synclr("plan", "-p", path, *sets, "--measure")
    assert outcome.code == 2 and "no table render" in outcome.error_line


def test_a_recipe_is_read_as_its_commands_read_it() -> None:
    recipe = recipes.read("vitb", ["render.views=2", "train.steps=90_000"])
    assert recipe.render and recipe.train
    assert (recipe.count, recipe.render.views, recipe.train.steps) == (150_000_000, 2, 90_000)
