"""How well an image fits its caption, by any CLIP-like model of transformers.

images [B, H, W, 3] and captions -> the model's two embeddings -> cosine of each pair [B]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from synclr_cli import hub
from synclr_cli.errors import EngineError
from synclr_cli.learning import runtime


class Scorer:
    """Scores images against captions with the model in a folder or on the hub.

    Raises:
        EngineError: no such model, or one that does not embed both images and text.
    """

    def __init__(self, name: str):
        self._name = f"render.score_model {name}"
        if name.startswith((".", "/", "~")) and not Path(name).is_dir():
            raise EngineError(f"{self._name}: no such folder")
        offline = not Path(name).is_dir() and hub.cache_only()
        try:
            self._model = transformers.AutoModel.from_pretrained(
                name, local_files_only=offline
            ).eval()
            self._processor: Any = transformers.AutoProcessor.from_pretrained(
                name, local_files_only=offline
            )
        except (OSError, ValueError, KeyError, ImportError) as e:
            if offline:
                raise hub.absent(self._name, "render.score_model=FOLDER") from e
            first = str(e).strip().split("\n", 1)[0][:200]
            raise EngineError(f"{self._name} cannot be loaded ({first})") from e
        text = getattr(self._model.config, "text_config", None)
        if text is None or not hasattr(self._model.config, "vision_config"):
            raise EngineError(
                f"{self._name}: {type(self._model).__name__} does not compare images with text",
                do="take a CLIP or SigLIP model",
            )
        self._longest = getattr(text, "max_position_embeddings", 77)
        self._device = runtime.pick_device()
        self._model.to(self._device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], captions: Sequence[str]) -> list[float]:
        """Return the cosine similarity of each image [H, W, 3] uint8 with its caption."""
        texts = list(dict.fromkeys(captions))
        inputs = self._processor(
            text=texts, images=list(images), return_tensors="pt", truncation=True,
            padding="max_length", max_length=self._longest,
        )  # fmt: skip
        embeddings = self._model(**inputs.to(self._device))
        seen, read = (
            torch.nn.functional.normalize(e.float(), dim=-1)  # [B, D], [texts, D]
            for e in (embeddings.image_embeds, embeddings.text_embeds)
        )
        pairs = [texts.index(c) for c in captions]
        return (seen * read[pairs]).sum(-1).tolist()
