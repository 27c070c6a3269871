"""`server:URL`: images from a server that speaks OpenAI's protocol (vLLM-Omni, SGLang-Diffusion).

    synclr render --engine server:http://localhost:8000/v1

One request an image, `[render.engine]`'s `batch_size` of them in flight: model, prompt, size and
seed, and `steps`, `guidance` and `negative_prompt` as those servers name them. `options` may set
`model` (else the server's first), `retries` (6, with growing pauses), `timeout_s` (120), `extra`
(more fields of the request, as JSON: '{"true_cfg_scale": 4}') and `seeded` (true; false leaves out
all that OpenAI's own images do not know). The key comes from OPENAI_API_KEY.

api.openai.com takes no seed, steps or guidance: its images cannot be made again, and resuming gives
others. That is said at the start.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from synclr_cli import console
from synclr_cli.config import RenderEngineConfig
from synclr_cli.data import images
from synclr_cli.engines import GeneratedImage, ImageEngine
from synclr_cli.errors import DataError, EngineError, UsageError
from synclr_cli.servers import OPTIONS, Server

SIDE = 512  # pixels, unless the settings say
_SEEDS = 2**31  # servers keep seeds in 32 signed bits
MOST_BYTES = 64 << 20  # of one encoded image; 2048 x 2048 of noise as PNG has 12 MiB
MOST_SIDE = 4096  # pixels
_REFUSALS = ("moderation_blocked", "content_policy_violation", "content_filter")


class ServerEngine(ImageEngine):
    """Sends each caption as one request, many at a time."""

    options = frozenset({*OPTIONS, "extra", "seeded"})

    def __init__(self, target: str, config: RenderEngineConfig):
        self._config = config = config.filled(size=SIDE)
        self._more = _fields(str(config.options.get("extra", "{}")))
        self._server = Server("render", target, config.options)
        openai = urlsplit(target).hostname == "api.openai.com"
        self._seeded = bool(config.options.get("seeded", not openai))
        self.revision = f"{self._server.model} at {target}"
        if not self._seeded:
            console.warn(f"{target} takes no seed: its images cannot be made again")

    def generate(
        self, captions: Sequence[str], concepts: Sequence[str], seeds: Sequence[int]
    ) -> list[GeneratedImage]:
        """Return one image per caption, in their order.

        What the server refuses to show, and what is not an image, has a flaw.

        Raises:
            EngineError: no server, or one that does not speak the protocol.
        """
        del concepts  # the caption says it
        rows = zip(captions, seeds, strict=True)
        return self._server.map(lambda row: self._one(*row), rows, self._config.batch_size)

    def _one(self, caption: str, seed: int) -> GeneratedImage:
        size = f"{self._config.size}x{self._config.size}"
        fields: dict[str, Any] = {"model": self._server.model, "prompt": caption, "n": 1}
        fields |= {"size": size, "extra_body": self._extra(seed)}
        client = self._server.client
        try:
            answer = self._server.request(lambda: client.images.generate(**fields))
        except EngineError as e:
            if _is_refusal(e.__cause__):
                return self._flawed("refused")
            raise
        data = getattr(answer, "data", None)
        if not data:
            raise self._server.garbage(answer, "an image")
        encoded = getattr(data[0], "b64_json", None)
        if not isinstance(encoded, str):
            raise self._server.garbage(answer, "an image in b64_json")
        return self._decoded(encoded)

    def _extra(self, seed: int) -> dict[str, Any]:
        """Return the fields that OpenAI's own images do not have."""
        config = self._config
        extra: dict[str, Any] = dict(self._more)
        if not self._seeded:
            return extra
        own: dict[str, Any] = {
            "response_format": "b64_json",
            "seed": seed % _SEEDS,
            "guidance_scale": config.guidance,
        }
        if config.steps:
            own["num_inference_steps"] = config.steps
        if config.negative_prompt:
            own["negative_prompt"] = config.negative_prompt
        return own | extra

    def _decoded(self, encoded: str) -> GeneratedImage:
        if len(encoded) > MOST_BYTES * 4 // 3:
            return self._flawed("too many bytes")
        try:
            image = images.decode(base64.b64decode(encoded, validate=True), "an answer")
        except (binascii.Error, DataError):
            return self._flawed("not an image")
        if max(image.size) > MOST_SIDE:
            return self._flawed("too large")
        return GeneratedImage(np.asarray(image))

    def _flawed(self, flaw: str) -> GeneratedImage:
        side = self._config.size
        return GeneratedImage(np.zeros((side, side, 3), np.uint8), flaw=flaw)


def _fields(text: str) -> dict[str, Any]:
    """Return the fields of a JSON object.

    Raises:
        UsageError: it is none.
    """
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise UsageError(
            "render.engine.options.extra", got=repr(text), expected="a JSON object as text"
        )
    return fields


def _is_refusal(error: BaseException | None) -> bool:
    """Return whether a server's error is about what a caption says, not about the request."""
    status, code = getattr(error, "status_code", 0), getattr(error, "code", None)
    words = str(getattr(error, "message", "")).lower()
    return status in (400, 403, 422) and (code in _REFUSALS or "safety system" in words)
