"""`smollm2:`: SmolLM2-135M-Instruct from a Python package, as a plain language model."""

from __future__ import annotations

from synclr_cli.captions.engines.local.attention import Attention
from synclr_cli.captions.engines.local.decoding import Decoder, computing
from synclr_cli.config import CaptionEngineConfig
from synclr_cli.data import storage
from synclr_cli.errors import UsageError
from synclr_cli.learning import smollm2


class SmolLM2Engine(Decoder):
    """Completes prompts with SmolLM2-135M-Instruct as a plain language model (no chat format)."""

    def __init__(self, target: str, config: CaptionEngineConfig):
        if target:
            raise UsageError("engine smollm2:", got=repr(target), expected="nothing after it")
        path = smollm2.weights_file()
        attention = Attention()
        device, dtype = computing(config.dtype)
        model, tokenizer = smollm2.read_gguf(path, attention.name, dtype)
        super().__init__(model.to(device), tokenizer, attention, config)
        precision = str(dtype).removeprefix("torch.")
        self.revision = f"{path.name} {storage.short_digest(path)} {precision}"
