"""Licences: from a model's own card before the table; limits are told."""

import pytest

from synclr_cli import licences


@pytest.mark.parametrize(
    ("engine", "name", "limited"),
    [
        ("diffusers:stable-diffusion-v1-5/stable-diffusion-v1-5", "creativeml-openrail-m", False),
        ("diffusers:black-forest-labs/FLUX.2-klein-base-4B", "apache-2.0", False),
        ("diffusers:black-forest-labs/FLUX.2-klein-base-9B", "flux-non-commercial", True),
        ("diffusers:Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
         "nvidia-open-model-license", True),
        ("transformers:Qwen/Qwen3-1.7B-Base", "apache-2.0", False),
        ("vllm:meta-llama/Llama-2-7b-hf", "llama2", True),
        ("pocket:", "apache-2.0", False), ("smollm2:", "apache-2.0", False),
        ("diffusers:nobody/nothing", "", False), ("server:http://localhost:8000/v1", "", False),
    ],
)  # fmt: skip
def test_known_models_have_their_licence(engine, name, limited):
    licence = licences.of(engine)
    assert (licence.name, bool(licence.limits)) == (name, limited)
    assert bool(licences.note(engine)) == limited


@pytest.mark.parametrize(
    ("front", "name", "limited"),
    [
        ("license: mit", "mit", False),
        ("license: cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0", True),
        ("license: other\nlicense_name: flux-1-dev-non-commercial-license",
         "flux-1-dev-non-commercial-license", True),
        ("tags: [x]", "", False),
    ],
)  # fmt: skip
def test_a_folders_own_card_says_it(tmp_path, front, name, limited):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\nlicense: not this\n")
    licence = licences.of(f"diffusers:{tmp_path}")
    assert (licence.name, bool(licence.limits)) == (name, limited)


def test_every_model_of_a_shipped_preset_is_in_the_table():
    from synclr_cli import presets

    for preset in presets.names():
        for stage in ("captions", "render"):
            engine = presets.resolve(stage, preset=preset).config.engine.name
            assert licences.of(engine).name, engine


def test_a_limit_is_said_at_the_start(tmp_path, capsys):
    from synclr_cli.config import RenderEngineConfig
    from synclr_cli.engines import load
    from synclr_cli.errors import EngineError

    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    (tmp_path / "model_index.json").write_text('{"_class_name": "NothingPipeline"}')
    with pytest.raises(EngineError, match="NothingPipeline"):
        load("image", RenderEngineConfig(name=f"diffusers:{tmp_path}"))
    assert "cc-by-nc-4.0 (non-commercial use only)" in capsys.readouterr().err
