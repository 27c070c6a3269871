"""`vllm:NAME`: a language model on GPUs through vLLM's offline batch interface.

vLLM finds the prefixes that prompts share by itself (`enable_prefix_caching`), so even with
`examples_block = 1` only the last line of a prompt is new work once its examples were seen.
`[captions.engine] options` go to vLLM's `LLM` (`tensor_parallel_size`, `max_model_len`, ...).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synclr_cli.config import CaptionEngineConfig
from synclr_cli.engines import CaptionEngine, Prompt
from synclr_cli.errors import EngineError, UsageError

try:
    import vllm
except ImportError as e:
    raise EngineError(
        f"engine vllm: needs the vllm package ({e})", do="run pip install 'synclr[vllm]'"
    ) from e


class VllmEngine(CaptionEngine):
    """Hands all prompts of a call to vLLM at once; it schedules them."""

    batch_size = 256  # as vLLM's own
    options = None  # of vllm.LLM

    def __init__(self, target: str, config: CaptionEngineConfig):
        if not target:
            raise UsageError("engine vllm:", do="name a model: vllm:ORG/MODEL or a folder")
        self._config = config
        arguments: dict[str, Any] = {
            "model": target,
            "dtype": config.dtype,
            "max_num_seqs": config.batch_size,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
        }
        try:
            self._model = vllm.LLM(**(arguments | config.options))
        except (OSError, ValueError, RuntimeError, TypeError) as e:
            # OSError: no such model; ValueError, TypeError: options, architecture; RuntimeError: no
            # device, or its memory is too small.
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
            raise EngineError(f"engine vllm:{target} cannot be loaded ({reason})") from e
        self.revision = f"{target} {config.dtype} vllm {vllm.__version__}"

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        """Return one completion per prompt."""
        if not prompts:
            return []
        config = self._config
        sampling = [
            vllm.SamplingParams(
                temperature=config.temperature,
                top_p=config.top_p,
                max_tokens=config.max_new_tokens,
                stop=["\n"],
                seed=seed,
            )
            for seed in seeds
        ]
        answers = self._model.generate([p.text for p in prompts], sampling, use_tqdm=False)
        return [answer.outputs[0].text.split("\n", 1)[0].strip() for answer in answers]
