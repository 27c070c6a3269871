"""Cards: what they say is what the folder holds, and the command in them makes it again."""

from __future__ import annotations

import itertools
import shlex
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard, ModelCard
from image_folders import contents, write_images

from synclr_cli import config as configs, presets
from synclr_cli.data import cards
from synclr_cli.data.artifacts import Header


@pytest.mark.parametrize("stage", ["captions", "render", "train"])
@pytest.mark.parametrize("sets", [(), ("seed=7",)])
def test_the_command_in_a_card_resolves_to_the_same_settings(stage, sets):
    sets = [f"{stage}.{one}" for one in sets]
    if stage == "captions":
        sets.append('captions.concepts="in1k:0.47,my words.txt:1"')
    recipe = configs.recipe(presets.resolve(stage, preset="vitb", sets=sets).config)
    schema = {"captions": "captions", "render": "images", "train": "backbone"}[stage]
    parent = {"name": "my images", "digest": "sha256:x", "header": None}
    words = shlex.split(cards.command(Header(schema, recipe, parents=(parent,))))
    assert words[:2] == ["synclr", stage]
    assert stage == "captions" or words[2] == "my images"
    preset = words[words.index("--preset") + 1]
    asked = [after for word, after in itertools.pairwise(words) if word == "--set"]
    assert len(asked) <= len(sets) + 1
    again = configs.recipe(presets.resolve(stage, preset=preset, sets=asked).config)
    assert again == recipe


def test_a_card_names_no_folder_of_this_machine():
    recipe = configs.recipe(
        presets.resolve(
            "captions", preset="tiny", sets=['captions.concepts="/home/me/lists/birds.txt:2"']
        ).config
    )
    text = cards.command(Header("captions", recipe))
    assert "/home" not in text and "birds.txt:2" in text


def test_a_folder_with_its_card_reads_as_parquet_and_with_a_readme_it_would_not(tmp_path):
    folder = write_images(tmp_path / "images")
    assert pq.read_table(folder).num_rows == 6
    shutil.copy(folder / cards.FILE, folder / "README.md")
    with pytest.raises(pa.ArrowInvalid):
        pq.read_table(folder)


def test_the_card_of_images_counts_them_and_names_the_models_and_their_licences(tmp_path):
    folder = write_images(tmp_path / "images", captions=5, views=3)
    card = DatasetCard((folder / cards.FILE).read_text())
    assert "| rows | 15 |" in card.content and "| captions | 5 |" in card.content
    assert "| images | `procedural:` | not told | apache-2.0 |" in card.content
    assert card.data.size_categories == ["n<1K"] and "synclr" in card.data.tags


def test_the_same_folder_elsewhere_has_the_same_card(tmp_path):
    one = write_images(tmp_path / "one")
    other = write_images(tmp_path / "deep" / "other")
    assert contents(one) == contents(other)
    assert str(tmp_path) not in (one / cards.FILE).read_text()


def test_the_licence_of_an_ancestors_model_is_told():
    words = Header("captions", {}, engine="transformers:google/gemma-3-1b", revision="abc")
    parent = {"name": "captions", "digest": "sha256:x" * 3, "header": vars(words)}
    header = Header("images", {}, engine="diffusers:black-forest-labs/FLUX.1-dev")
    card = cards.of_parts(
        Header("images", {}, engine=header.engine, parents=(parent,)),
        {"rows": 10, "captions": 5, "bytes": 9, "parts": 1},
        {},
    )
    assert "flux-non-commercial" in card and "| captions | `transformers:google/gemma" in card
    assert "prohibited-use" in card


def test_the_card_of_a_run_is_a_model_card(tmp_path):
    header = Header("backbone", {}, parents=())
    cards.write_run(tmp_path, header, {"arch": "vit_small", "parameters": 21_665_664})
    card = ModelCard((tmp_path / cards.RUN_FILE).read_text())
    assert card.data.library_name == "timm"
    assert "| parameters | 21,665,664 |" in card.content
