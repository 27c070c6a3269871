"""Settings: every field has a bound that holds, and what is out of it is one line."""

from __future__ import annotations

import math
from typing import Any

import pytest

from synclr_cli import config as configs
from synclr_cli.errors import UsageError
from synclr_cli.fields import Interval

ODD = {
    "a word": "odd", "nothing": "", "nan": math.nan, "inf": math.inf, "-inf": -math.inf,
    "-1": -1, "-1.5": -1.5, "0": 0, "0.0": 0.0, "half": 0.5, "huge": 1e30, "many": 10**7,
    "5,000 digits": 10**5000, "minus these": -(10**5000), "list": [], "list of lists": [[1], [2]],
    "two": [-1.0, 2.0], "nan twice": [math.nan, math.nan], "infinite": [0.5, math.inf],
    "words": ["a", "b"], "long list": [0.5] * 10_000, "table": {}, "deep": {"a": {"b": 1}},
    "true": True, "false": False, "none": None, "bytes": b"x", "long": "x" * 2_000_000,
    "lines": "a\nb", "complex": 1j,
}  # fmt: skip
KEYS = [(stage, key) for stage in configs.TABLES for key in configs.keys(stage)]


def refused(stage: str, key: str, value: Any) -> str | None:
    """Return the line a value is refused with, None if it is taken."""
    try:
        configs.build(stage, {key: value})
    except UsageError as e:
        assert "\n" not in str(e) and len(str(e)) < 300, str(e)
        assert str(e).startswith(stage), f"{stage}.{key}: {e}"
        return str(e)
    return None


@pytest.mark.parametrize("stage", configs.TABLES)
def test_whatever_a_setting_is_set_to_is_taken_or_refused_in_one_line(stage):
    for key in configs.keys(stage):
        for value in ODD.values():
            refused(stage, key, value)


@pytest.mark.parametrize(("stage", "key"), KEYS)
def test_a_number_out_of_its_bounds_and_a_value_of_another_type_are_refused(stage, key):
    setting, default = configs.keys(stage)[key], configs.flatten(configs.TABLES[stage]())[key]
    for name in ("none", "complex", "bytes", "5,000 digits", "minus these", "deep", "long"):
        assert refused(stage, key, ODD[name]), name
    if isinstance(setting.bound, Interval):
        for name in ("a word", "nothing", "nan", "inf", "-inf", "huge", "true", "table", "words"):
            assert refused(stage, key, ODD[name]), name
        for number in {setting.bound.low - 1, setting.bound.high * 2} - {setting.bound.also}:
            line = refused(stage, key, [number, number] if isinstance(default, list) else number)
            assert line and line.startswith(f"{stage}.{key}: got")
    elif isinstance(setting.bound, tuple):
        for name in ("a word", "nothing", "0"):
            assert refused(stage, key, [ODD[name]] if isinstance(default, list) else ODD[name])


@pytest.mark.parametrize(("stage", "key"), KEYS)
def test_every_number_has_an_upper_bound_and_every_setting_a_meaning(stage, key):
    setting, default = configs.keys(stage)[key], configs.flatten(configs.TABLES[stage]())[key]
    assert setting.meaning
    numbers = default if isinstance(default, list) else [default]
    if any(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        assert isinstance(setting.bound, Interval) and setting.bound.high < math.inf


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        ("train", "teacher_temperature_end", 0),
        ("train", "teacher_temperature_end", -1),
        ("train", "workers", 10**7),
        ("train", "depth", 10**7),
        ("train", "prototypes", 10**7),
        ("train", "local_crops", 10**7),
        ("train", "head_hidden", 1e30),
        ("captions", "examples_block", 1e30),
        ("captions", "count", 1e30),
        ("captions", "share_c", 0.9),
        ("train", "warmup_steps", 500_000),
        ("render", "engine.size", 7),
        ("render", "shard", "65/64"),
        ("render", "shard", "\u00b2/4"),
        ("linear-probe", "lowest_penalty", 1e6),
        ("linear-probe", "base_lrs", []),
        ("finetune", "crop_scale", [0.9, 0.1]),
        ("segment", "stride", 513),
    ],
)
def test_a_slip_of_the_finger_is_refused(stage, key, value):
    assert refused(stage, key, value)


@pytest.mark.parametrize(
    ("text", "inside", "outside", "words"),
    [
        ("[0, 1]", [0, 0.5, 1], [-1e-9, 1.0001, math.nan], "from 0 to 1"),
        ("(0, 1]", [1e-300, 1], [0, 2], "above 0 to 1"),
        ("[0, 1)", [0, 0.999], [1], "from 0 to below 1"),
        ("[1, 1e9]", [1, 10**9], [0, 10**9 + 1], "from 1 to 1_000_000_000"),
        ("0 or [8, 4096]", [0, 8, 4096], [1, 7, 4097], "0 or from 8 to 4096"),
        ("[0, 2^64)", [0, 2**64 - 1], [2**64, -1], "from 0 to below 2^64"),
    ],
)
def test_an_interval_is_read_as_it_is_written(text, inside, outside, words):
    interval = Interval.parse(text)
    assert all(value in interval for value in inside)
    assert not any(value in interval for value in outside)
    assert str(interval) == words


def test_a_number_becomes_what_its_field_says():
    config = configs.build("train", {"steps": 1e5, "warmup_steps": 10, "ema": 1})
    assert (config.steps, config.ema) == (100_000, 1.0)
    assert type(config.steps) is int and type(config.ema) is float
    assert configs.build("train", {"local_scale": [0.1, 1]}).local_scale == (0.1, 1.0)


def test_values_survive_being_flattened_and_built_again():
    for stage, config_type in configs.TABLES.items():
        assert configs.build(stage, configs.flatten(config_type())) == config_type()


def test_a_recipe_is_what_is_made_and_not_how_a_machine_runs_it():
    a = configs.build("train", {"workers": 3, "log_steps": 7, "micro_batch": 8})
    b = configs.build("train", {"trackers": ["wandb"], "stop_after_minutes": 3})
    assert configs.recipe(a) == configs.recipe(b) and "workers" not in configs.recipe(a)
    assert configs.recipe(a) != configs.recipe(configs.build("train", {"ema": 0.9}))


def test_where_a_word_list_lies_is_no_difference_but_its_weight_is():
    def differing(old: str, new: str) -> list[str]:
        one, other = ({"concepts": name} for name in (old, new))
        return configs.differing_keys("captions", one, other)

    assert differing("m.txt", "./m.txt") == []
    assert differing("a/m.txt:2,dtd:1", "/b/m.txt:2,dtd:1") == []
    assert differing("m.txt:2,dtd:1", "m.txt:1,dtd:1") == ["captions.concepts"]
    assert differing("m.txt", "n.txt") == ["captions.concepts"]
