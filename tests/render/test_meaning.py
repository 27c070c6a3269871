"""Words that an engine does not know stop it before the first image, with the ways out."""

from __future__ import annotations

import dataclasses

import pytest

from synclr_cli import presets
from synclr_cli.config import RenderEngineConfig
from synclr_cli.errors import UsageError
from synclr_cli.render.meaning import require_known

MUSHROOMS = ["fly agaric", "penny bun", "stinkhorn", "sulphur tuft"]


def rows(*concepts):
    return [{"caption_id": i, "caption": f"A {c}.", "concept": c} for i, c in enumerate(concepts)]


def test_mostly_unknown_words_are_refused_and_may_be_allowed():
    asked = ["render.engine.options={allow_unknown = true}"]
    allowed = presets.resolve("render", preset="tiny", sets=asked).config.engine
    config = RenderEngineConfig(name="pocket:")
    require_known(config, rows(*MUSHROOMS[:2], "horse", "ship"))
    mostly = rows(*MUSHROOMS, "horse")
    with pytest.raises(UsageError, match=r"4 of 5 captions .* fly agaric.*diffusers:") as caught:
        require_known(config, mostly)
    assert asked[0] in str(caught.value)
    require_known(dataclasses.replace(allowed, name="pocket:"), mostly)


def test_unknown_words_of_procedural_are_told(capsys):
    require_known(RenderEngineConfig(name="procedural:"), rows(*MUSHROOMS, "tabby cat"))
    told = capsys.readouterr().err
    assert "knows 483 nouns; 4 of 5 captions" in told and "fly agaric" in told
    require_known(RenderEngineConfig(name="procedural:"), rows("horse", "tabby cats"))
    require_known(RenderEngineConfig(name="procedural:"), rows("", ""))  # of others, no concept
    require_known(RenderEngineConfig(name="diffusers:org/model"), rows(*MUSHROOMS))
    assert capsys.readouterr().err == ""


def test_render_stops_before_the_first_image(tmp_path, synclr):
    (tmp_path / "words.txt").write_text("\n".join(MUSHROOMS))
    made = synclr(
        "captions", "--concepts", tmp_path / "words.txt", "--engine", "template:", "-n", 8,
        "--out", tmp_path / "captions",
    )  # fmt: skip
    assert made.code == 0, made.err
    asked = "--engine", "pocket:", "-o", tmp_path / "images"
    done = synclr("render", tmp_path / "captions", *asked)
    assert done.code == 2 and "8 of 8 captions" in done.error_line
    assert not (tmp_path / "images").exists()
