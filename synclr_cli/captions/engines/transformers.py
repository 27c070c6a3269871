"""`transformers:NAME`: any causal language model of the Hugging Face library, hub id or folder.

The paper's is Llama-2 7B (`transformers:meta-llama/Llama-2-7b-hf`).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import transformers

from synclr_cli import hub
from synclr_cli.captions.engines.local.attention import Attention
from synclr_cli.captions.engines.local.decoding import Decoder, computing
from synclr_cli.config import CaptionEngineConfig
from synclr_cli.errors import EngineError, UsageError


class TransformersEngine(Decoder):
    """Completes prompts with a causal language model."""

    options = None  # of from_pretrained

    def __init__(self, target: str, config: CaptionEngineConfig):
        if not target:
            raise UsageError(
                "engine transformers:", do="name a model: transformers:ORG/MODEL or a folder"
            )
        attention = Attention()
        device, dtype = computing(config.dtype)
        model, tokenizer = _load(target, attention.name, dtype, config)
        super().__init__(model.to(device), tokenizer, attention, config)
        commit = getattr(model.config, "_commit_hash", None) or "local"
        name = str(dtype).removeprefix("torch.")
        self.revision = f"{target} {commit} {name} transformers {transformers.__version__}"


def _load(
    target: str, attention: str, dtype: torch.dtype, config: CaptionEngineConfig
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    engine = f"engine transformers:{target}"
    if ("/" in target or os.sep in target) and target.startswith((".", "/", "~")):
        target = str(Path(target).expanduser())
        if not Path(target).is_dir():
            raise EngineError(f"{engine}: no folder {target}")
    offline = not Path(target).is_dir() and hub.cache_only()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            target,
            torch_dtype=dtype,
            attn_implementation=attention,
            **({"local_files_only": offline} | config.options),
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(target, local_files_only=offline)
    except OSError as e:  # what the library raises for absent and gated models alike
        if offline:
            raise hub.absent(engine, "transformers:FOLDER") from e
        raise EngineError(
            f"{engine} cannot be loaded ({_first_line(e)})",
            do="check the name; for a gated model accept its licence on the hub and log in with "
            "hf auth login",
        ) from e
    except (ValueError, ImportError, TypeError) as e:  # TypeError: an option it does not know
        raise EngineError(
            f"{engine} is not a causal language model that can run here ({_first_line(e)})"
        ) from e
    return model, tokenizer


def _first_line(e: Exception) -> str:
    return str(e).strip().split("\n", 1)[0][:200]
