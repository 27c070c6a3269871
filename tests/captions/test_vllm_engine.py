"""`vllm:` against vLLM's interface as recorded from its 0.33 release: it needs a GPU to run."""

import sys
import textwrap

import pytest

from synclr_cli.config import CaptionEngineConfig
from synclr_cli.engines import Prompt, load
from synclr_cli.errors import EngineError, UsageError

# vLLM's own signatures, cut to what is used: a keyword it does not know fails here as there.
RECORDED = """
    from dataclasses import dataclass

    __version__ = "0.33.0"

    @dataclass
    class SamplingParams:
        temperature: float = 1.0
        top_p: float = 1.0
        max_tokens: int | None = 16
        stop: str | list[str] | None = None
        seed: int | None = None

    @dataclass
    class CompletionOutput:
        text: str

    @dataclass
    class RequestOutput:
        outputs: list[CompletionOutput]

    class LLM:
        def __init__(self, model: str, *, tensor_parallel_size: int = 1, dtype: str = "auto",
                     seed: int = 0, max_num_seqs: int | None = None,
                     enable_prefix_caching: bool | None = None, disable_log_stats: bool = False):
            if model == "absent/model":
                raise OSError("absent/model is not a local folder\\nand more")
            assert dtype in ("auto", "float32", "bfloat16", "float16")

        def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
            assert len(prompts) == len(sampling_params)
            return [
                RequestOutput([CompletionOutput(f" {p[-5:]} {s.seed} {s.max_tokens} {s.stop}")])
                for p, s in zip(prompts, sampling_params)
            ]
"""


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    (tmp_path / "vllm.py").write_text(textwrap.dedent(RECORDED))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("vllm", "synclr_cli.captions.engines.vllm"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def engine(target, **changes):
    return load("caption", CaptionEngineConfig(name=f"vllm:{target}", max_new_tokens=9, **changes))


def test_each_row_is_sampled_with_its_own_seed_up_to_the_newline(recorded):
    made = engine("org/model", options={"tensor_parallel_size": 2})
    asked = [Prompt(f"owl {i} =>", "owl", "object", "c", "") for i in range(3)]
    assert made.generate(asked, [7, 8, 2**62]) == [
        "0 => 7 9 ['\\n']".strip(), "1 => 8 9 ['\\n']", f"2 => {2**62} 9 ['\\n']"
    ]  # fmt: skip
    assert made.generate([], []) == []
    assert "vllm 0.33.0" in made.revision


def test_a_model_or_option_vllm_refuses_is_one_line(recorded):
    with pytest.raises(EngineError, match="cannot be loaded") as caught:
        engine("absent/model")
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match="cannot be loaded"):
        engine("org/model", options={"tensor_size": 2})
    with pytest.raises(UsageError, match="Name a model"):
        engine("")


def test_without_vllm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "synclr_cli.captions.engines.vllm", raising=False)
    with pytest.raises(EngineError, match=r"pip install 'synclr\[vllm\]'"):
        engine("org/model")
