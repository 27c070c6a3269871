"""Engines: found by scheme, and the embedded ones keep the contract."""

from __future__ import annotations

import importlib
import sys

import pytest
from engine_contract import assert_caption_engine, assert_image_engine

from synclr_cli import engines
from synclr_cli.config import CaptionEngineConfig, RenderEngineConfig
from synclr_cli.engines import Prompt
from synclr_cli.errors import EngineError, UsageError


def test_the_template_engine_keeps_the_contract():
    prompts = [
        Prompt("acorn =>", "acorn", "object", "c", "", "fruit of an oak tree"),
        Prompt("acorn, beach =>", "acorn", "object", "c_bg", "beach"),
        Prompt("acorn, under =>", "acorn", "object", "c_rel", "under"),
        Prompt("harbour =>", "harbour", "place", "c", ""),
        Prompt("woven =>", "woven", "texture", "c", ""),
    ]
    engine = engines.load("caption", CaptionEngineConfig(name="template:"))
    assert_caption_engine(engine, prompts, [3, 1, 4, 1, 5])
    for prompt, text in zip(prompts, engine.generate(prompts, [0] * 5), strict=True):
        assert prompt.concept in text and prompt.companion in text


def test_the_procedural_engine_keeps_the_contract():
    captions = ["A red acorn on a beach.", "A kettle next to a window.", "A blue anchor at night."]
    engine = engines.load("image", RenderEngineConfig(name="procedural:", size=64))
    assert_image_engine(engine, captions, ["acorn", "kettle", "anchor"], [7, 8, 9])


def test_another_packages_engine_is_found_by_its_entry_point(tmp_path, monkeypatch):
    (tmp_path / "shouting.py").write_text(
        "from synclr_cli.engines import CaptionEngine\n"
        "class Engine(CaptionEngine):\n"
        "    revision = '1'\n"
        "    options = frozenset({'end'})\n"
        "    def __init__(self, target, config): self.end = target or config.options['end']\n"
        "    def generate(self, ps, seeds): return [p.concept.upper() + self.end for p in ps]\n"
    )
    info = tmp_path / "shouting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[synclr.caption_engines]\nshout = shouting:Engine\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    assert "shout" in engines.schemes("caption")
    engine = engines.load("caption", CaptionEngineConfig(name="shout:", options={"end": "!"}))
    assert engine.generate([Prompt("", "cat", "object", "c", "")], [0]) == ["CAT!"]
    with pytest.raises(UsageError, match=r"Did you mean shout:\?"):
        engines.require_scheme("caption", "shuot:")
    with pytest.raises(UsageError, match=r"Did you mean captions\.engine\.options\.end\?"):
        engines.load("caption", CaptionEngineConfig(name="shout:x", options={"ends": "!"}))
    assert ("shout", "of the package shouting", "") in [
        (row.scheme, row.meaning, row.install) for row in engines.listed("caption")
    ]
    (tmp_path / "shouting.py").write_text("class Engine:\n    pass\n")
    monkeypatch.delitem(sys.modules, "shouting")
    importlib.invalidate_caches()
    with pytest.raises(EngineError, match=r"lacks batch_size, generate, options, warnings"):
        engines.load("caption", CaptionEngineConfig(name="shout:"))


@pytest.mark.parametrize("kind", ["caption", "image"])
def test_an_option_that_an_engine_would_pass_over_is_refused(kind):
    stage = {"caption": "captions", "image": "render"}[kind]
    config = {"caption": CaptionEngineConfig, "image": RenderEngineConfig}[kind]
    scheme = {"caption": "template", "image": "procedural"}[kind]
    with pytest.raises(UsageError) as e:
        engines.load(kind, config(name=f"{scheme}:", options={"a": 1}))
    assert str(e.value) == (f"{stage}.engine.options.a is not an option of {scheme}:. Leave it out")
    with pytest.raises(UsageError, match=rf"Did you mean {stage}\.engine\.batch_size\?"):
        engines.load(kind, config(name=f"{scheme}:", options={"batchsize": 1}))


def test_overwriting_with_an_engine_that_is_not_there_loses_nothing(synclr, tmp_path):
    (tmp_path / "words.txt").write_text("acorn\nkettle\n")
    captions = ("captions", "-c", "words.txt", "-n", "4", "--engine", "template:")
    assert synclr(*captions, cwd=tmp_path).code == 0
    assert synclr("render", "--engine", "procedural:", "--views", "2", cwd=tmp_path).code == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    again = ("captions", "-c", "words.txt", "--engine", "transformers:./none", "--overwrite")
    assert synclr(*again, cwd=tmp_path).code == 4
    assert synclr("render", "--engine", "diffusers:./none", "--overwrite", cwd=tmp_path).code == 4
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
