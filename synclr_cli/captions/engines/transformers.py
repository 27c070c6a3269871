"""`transformers:NAME`: any causal language model of the Hugging Face library, hub id or folder.

The paper's is Llama-2 7B (`transformers:meta-llama/Llama-2-7b-hf`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from synclr_cli.captions.decoding import Attention, Decoder
from synclr_cli.config import CaptionEngineConfig
from synclr_cli.engines import Prompt
from synclr_cli.errors import EngineError, UsageError


class TransformersEngine:
    """Completes prompts with a causal language model."""

    def __init__(self, target: str, config: CaptionEngineConfig):
        if not target:
            raise UsageError(
                "engine transformers:", do="name a model: transformers:ORG/MODEL or a folder"
            )
        attention = Attention()
        device, dtype = computing(config.dtype)
        model, tokenizer = _load(target, attention.name, dtype, config)
        self._decoder = Decoder(
            model.to(device),
            tokenizer,
            attention,
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
        )
        commit = getattr(model.config, "_commit_hash", None) or "local"
        name = str(dtype).removeprefix("torch.")
        self.revision = f"{target} {commit} {name} transformers {transformers.__version__}"

    def complete(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        """Return one completion per prompt."""
        return self._decoder.complete([p.text for p in prompts], seeds)


def computing(dtype: str) -> tuple[torch.device, torch.dtype]:
    """Return where a language model runs, and in which number format; "auto" asks the hardware."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dtype != "auto":
        return device, getattr(torch, dtype)
    if device.type == "cuda":
        return device, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return device, torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # no Linux: nothing known, so the format that is never slow
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def _load(
    target: str, attention: str, dtype: torch.dtype, config: CaptionEngineConfig
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    engine = f"engine transformers:{target}"
    if ("/" in target or os.sep in target) and target.startswith((".", "/", "~")):
        target = str(Path(target).expanduser())
        if not Path(target).is_dir():
            raise EngineError(f"{engine}: no folder {target}")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            target, torch_dtype=dtype, attn_implementation=attention, **config.options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    except OSError as e:  # what the library raises for absent, gated and unreachable models alike
        raise EngineError(
            f"{engine} cannot be loaded ({_first_line(e)})",
            do="check the name; for a gated model accept its licence on the hub and log in with "
            "hf auth login",
        ) from e
    except (ValueError, ImportError) as e:
        raise EngineError(
            f"{engine} is no causal language model we can run ({_first_line(e)})"
        ) from e
    return model, tokenizer


def _first_line(e: Exception) -> str:
    return str(e).strip().split("\n", 1)[0][:200]
