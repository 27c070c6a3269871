"""Presets: complete, sourced, and the paper's where they say so."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from synclr_cli import config as configs, presets
from synclr_cli.errors import UsageError

SHIPPED = presets.names()


def test_the_shipped_presets_are_the_promised_ones():
    assert {
        "tiny", "cifar", "vits", "vitb", "vitl", "vitb-ablation", "sd15-fast", "modern", "turbo"
    } <= set(SHIPPED)  # fmt: skip


@pytest.mark.parametrize("stage", configs.STAGES)
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_preset_states_every_key_of_the_recipe_with_a_source(name, stage):
    resolved = presets.resolve(stage, preset=name)
    for key, setting in configs.keys(stage).items():
        origin = resolved.origins[key]
        if setting.running:
            assert origin == "default", f"{name} says how a machine runs it: {stage}.{key}"
        else:
            assert origin.startswith(f"preset {name}: "), f"{name} {stage}.{key}: {origin}"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_preset_header_tells_paper_command_expectation_and_measurement(name):
    text = (presets.folder() / f"{name}.toml").read_text()
    for word in ("# Paper:", "# Command:", "# Expected:", "# Measured:"):
        assert word in text


def test_vitb_is_the_papers_table_12():
    t = presets.resolve("train", preset="vitb").config
    assert (t.arch, t.image_size, t.local_crops) == ("vit_base_patch16_224", 224, 4)
    assert (t.peak_lr, t.steps, t.warmup_steps) == (2e-3, 500_000, 80_000)
    assert (t.weight_decay, t.weight_decay_end, t.beta1, t.beta2) == (0.04, 0.2, 0.9, 0.999)
    assert (t.temperature, t.ema, t.ema_end, t.drop_path) == (0.08, 0.994, 1.0, 0.1)
    assert (t.captions_per_batch, t.views, t.prototypes) == (8192, 4, 65536)
    assert (t.teacher_temperature, t.teacher_temperature_end) == (0.04, 0.07)
    assert (t.mask_probability, t.mask_ratio, t.teacher_temperature_steps) == (0.5, 0.5, 4000)


def test_vitl_differs_where_the_paper_says():
    t = presets.resolve("train", preset="vitl").config
    assert (t.arch, t.peak_lr, t.drop_path) == ("vit_large_patch14_224", 1.5e-3, 0.4)
    assert t.local_size % 14 == 0
    f = presets.resolve("finetune", preset="vitl").config
    assert (f.epochs, f.warmup_epochs, f.layer_decay, f.drop_path) == (50, 5, 0.8, 0.3)
    assert (f.label_smoothing, f.test_crop) == (0.2, 1.0)
    s = presets.resolve("segment", preset="vitl").config
    assert (s.image_size, s.steps, s.batch_size, s.layer_decay) == (518, 160_000, 16, 0.8)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_print_config_shows_is_a_preset_that_resolves_to_the_same(tmp_path, name):
    again = tmp_path / "again.toml"
    for stage in configs.STAGES:
        resolved = presets.resolve(stage, preset=name)
        again.write_text(resolved.toml())
        assert presets.resolve(stage, preset=str(again)).config == resolved.config
        tomllib.loads(resolved.toml())


@pytest.mark.parametrize(
    "item",
    [
        'render.engine.options={"a key" = 1, "dotted.key" = [1.5, "x # y"], n = true}',
        "render.engine.negative_prompt=a # b",
        'render.engine.negative_prompt="a # b"',
        r'render.engine.negative_prompt="line\nnext \"quoted\" \u001b[31m"',
        "render.engine.negative_prompt='''three\nlines'''",
        "render.least_entropy=1e-07",
        "render.seed=18446744073709551615",
    ],
)
def test_what_a_set_changed_is_printed_as_a_preset_that_resolves_to_the_same(tmp_path, item):
    resolved = presets.resolve("render", preset="tiny", sets=[item])
    assert resolved.config != presets.resolve("render", preset="tiny").config
    again = tmp_path / "again.toml"
    again.write_text(resolved.toml())
    assert presets.resolve("render", preset=str(again)).config == resolved.config
    assert tomllib.loads(resolved.toml())["render"]["views"] == 4  # other readers read it, too


def test_the_origin_of_a_value_is_its_comment_whatever_the_value_holds(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "render.views = 3  # dotted\n"
        "[render.engine]\n"
        'negative_prompt = "a # b"\n'
        'name = "diffusers:x#y"  # the model # of mine\n'
        "options = { a = [1, 2] }  # inline\n"
    )
    origins = presets.resolve("render", preset=str(path)).origins
    assert origins["engine.negative_prompt"] == "preset mine"
    assert origins["engine.name"] == "preset mine: the model # of mine"
    assert origins["engine.options"] == "preset mine: inline"
    assert origins["views"] == "preset mine: dotted"


def test_every_setting_has_a_row_for_the_settings_page():
    for stage in configs.STAGES:
        rows = list(presets.setting_rows(stage))
        assert [row.key for row in rows] == [f"{stage}.{key}" for key in configs.keys(stage)]
        for row in rows:
            assert row.meaning and row.type
            assert set(row.presets) == (set() if row.running else set(SHIPPED))
    by_key = {row.key: row for row in presets.setting_rows("train")}
    assert by_key["train.peak_lr"].presets["vitb"] == (
        "0.002", "Table 12: 2e-3; released command 2.4e-3",
    )  # fmt: skip
    assert by_key["train.head_norm"].bound == "batch | layer"
    assert (by_key["train.steps"].type, by_key["train.steps"].default) == ("whole number", "500000")


def test_values_join_from_left_to_right():
    resolved = presets.resolve(
        "train",
        preset="vitb",
        flags={"seed": ("--seed", 3)},
        sets=["train.steps=200000", "train.steps=300000", "captions.count=5"],
    )
    assert (resolved.config.seed, resolved.config.steps) == (3, 300_000)
    assert resolved.origins["seed"] == "--seed"
    assert resolved.origins["steps"] == "--set train.steps=300000"


def test_a_partial_preset_takes_the_rest_by_default(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nsteps = 100_000  # mine\n[render.engine]\nname = 'procedural:'\n")
    resolved = presets.resolve("train", preset=str(path))
    assert resolved.config.steps == 100_000 and resolved.origins["steps"] == "preset mine: mine"
    assert resolved.origins["ema"] == "default"
    assert presets.resolve("render", preset=str(path)).config.engine.name == "procedural:"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[train]\nstpes = 1", "unknown key train.stpes. Did you mean train.steps?"),
        ("[trian]\nsteps = 1", "unknown table trian. Did you mean train?"),
        ("steps = 1", "unknown table steps"),
        ("[train]\nsteps = ", "is not valid TOML"),
        ("[train]\nsteps = 'x'", "train.steps: got 'x', expected a whole number"),
        ("[train]\nlocal_scale = [0.5]", "expected a list of 2 numbers"),
        ("[train]\nprecision = 'fp16'", "expected auto | float32 | bfloat16"),
        ("[captions]\nshare_c = 0.9", "expected 1"),
        ("[train]\npeak_lr = inf", "train.peak_lr: got inf, expected a finite number"),
        ("[train]\nimage_size = 0", "train.image_size: got 0, expected from 1 to 4096"),
        ("[train]\nlocal_size = -8", "train.local_size: got -8, expected from 1 to 4096"),
        ("[train]\nbeta1 = 1", "train.beta1: got 1, expected from 0 to below 1"),
        ("[train]\ndrop_path = 1", "train.drop_path: got 1, expected from 0 to below 1"),
        ("[finetune]\nbeta2 = 1", "finetune.beta2: got 1, expected from 0 to below 1"),
        ("[train]\nseed = 18446744073709551616", "a whole number from 0 to below 2^64"),
        ("[train]\ntrackers = 'wandb'", """expected a list, such as ["a", "b"]"""),
        (
            "[train]\ncaptions_per_batch = 1\nviews = 1\npositives = 'concept'",
            "a batch of at least 2 images with train.head_norm = batch",
        ),
    ],
)
def test_a_wrong_preset_is_refused_in_one_line(tmp_path, text, says):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as e:
        presets.resolve("segment", preset=str(path))
    assert says in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "text",
    [
        "[render.engine]\noptions = " + "{a = " * 3000 + "1" + "}" * 3000,
        "[train]\ntrackers = " + "[" * 3000 + "]" * 3000,
        "[" + "a." * 3000 + "b]\n",
        "[train]\nsteps = " + "9" * 5000,
        "[train]\nsteps = 0x" + "f" * 5000,
        "[train]\nsteps = 1e999",
        "[train]\n" + "a" * 5000 + " = 1",
        "[train]\nsteps = 1\nsteps = 2",
        "[[train]]\nsteps = 1",
        "[train]\nsteps = 1979-05-27T07:32:00Z",
        "[train]\narch = '" + "x" * 100_000 + "'",
        "[train]\nsteps = 1\x00",
        "[captions.engine]\noptions = {a = nan}",
    ],
)
def test_a_preset_that_nobody_would_write_is_one_line(tmp_path, text):
    path = tmp_path / "odd.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as e:
        presets.resolve("train", preset=str(path))
    assert "\n" not in str(e.value) and len(str(e.value)) < 300 + len(str(path))


def test_every_preset_is_toml_a_person_can_load_without_us():
    for name in SHIPPED:
        path = Path(presets.folder()) / f"{name}.toml"
        assert set(tomllib.loads(path.read_text())) == set(configs.STAGES)


@pytest.mark.parametrize(
    ("stage", "preset", "sets", "warmup"),
    [
        ("train", "tiny", ["train.steps=60"], 4),  # 60 of 900
        ("train", "tiny", ["train.steps=1"], 0),
        ("train", "vitb", ["train.steps=7000"], 1120),  # 80,000 of 500,000
        ("segment", "tiny", ["segment.steps=10"], 2),  # 20 of 100
        ("finetune", "vitb", ["finetune.epochs=10"], 2.0),  # 20 of 100
        ("train", "tiny", ["train.steps=61"], 60),  # fits as it is
        ("train", "tiny", ["train.steps=100", "train.warmup_steps=60"], 60),
    ],
)
def test_a_presets_warmup_keeps_its_share_of_a_length_it_does_not_fit(
    stage: str,
    preset: str,
    sets: list[str],
    warmup: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    resolved = presets.resolve(stage, preset=preset, sets=sets)
    key = "warmup_epochs" if stage == "finetune" else "warmup_steps"
    assert getattr(resolved.config, key) == warmup
    scaled = resolved.origins[key].startswith("scaled with ")
    noted = f"{stage}.{key} = {warmup:g}: scaled with " in capsys.readouterr().err
    assert scaled == noted == (warmup != 60)


def test_a_warmup_that_the_user_set_is_refused_where_it_does_not_fit() -> None:
    with pytest.raises(UsageError, match=r"train.warmup_steps: got 60, expected less than 60"):
        presets.resolve("train", preset="tiny", sets=["train.steps=60", "train.warmup_steps=60"])


def test_a_set_of_another_stage_is_checked_with_that_stages_preset() -> None:
    sets = ["train.steps=60"]  # less than the default's warm-up, and than the preset's
    assert presets.resolve("captions", preset="tiny", sets=sets).config.count == 1000
    with pytest.raises(UsageError, match=r"train.warmup_steps: got 60, expected less than 60"):
        presets.resolve("captions", preset="tiny", sets=[*sets, "train.warmup_steps=60"])
