"""`server:URL`: any server that speaks OpenAI's completions protocol (vLLM, llama.cpp, Ollama ...).

    synclr captions --engine server:http://localhost:8000/v1

`[captions.engine]`'s `batch_size` is the number of requests in flight; `options` may set `model`
(else the server's first), `endpoint` ("completions", or "chat" for servers with nothing else),
`retries` (6, with growing pauses) and `timeout_s` (120). The key comes from OPENAI_API_KEY.
A row's seed is sent along; whether it fixes the answer is up to the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synclr_cli.config import CaptionEngineConfig
from synclr_cli.engines import CaptionEngine, Prompt
from synclr_cli.errors import UsageError
from synclr_cli.servers import OPTIONS, Server

_SEEDS = 2**31  # servers keep seeds in 32 signed bits


class ServerEngine(CaptionEngine):
    """Sends each prompt as one request, many at a time."""

    options = frozenset({*OPTIONS, "endpoint"})

    def __init__(self, target: str, config: CaptionEngineConfig):
        endpoint = config.options.get("endpoint", "completions")
        if endpoint not in ("completions", "chat"):
            raise UsageError(
                "captions.engine.options.endpoint",
                got=repr(endpoint),
                expected="completions | chat",
            )
        self._server = Server("captions", target, config.options)
        self._config, self._chat = config, endpoint == "chat"
        self.revision = f"{self._server.model} at {target}"

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        """Return one completion per prompt, in their order."""
        rows = zip((p.text for p in prompts), seeds, strict=True)
        return self._server.map(lambda row: self._one(*row), rows, self._config.batch_size)

    def _one(self, text: str, seed: int) -> str:
        common: dict[str, Any] = {
            "model": self._server.model,
            "max_tokens": self._config.max_new_tokens,
            "temperature": self._config.temperature,
            "top_p": self._config.top_p,
            "stop": ["\n"],
            "seed": seed % _SEEDS,
        }
        client, request = self._server.client, self._server.request
        if self._chat:
            messages: Any = [{"role": "user", "content": f"{_CHAT}\n\n{text}"}]
            answer = request(lambda: client.chat.completions.create(messages=messages, **common))
        else:
            answer = request(lambda: client.completions.create(prompt=text, **common))
        choices = getattr(answer, "choices", None)
        if not choices:
            raise self._server.garbage(answer, "a completion")
        written = choices[0].message.content if self._chat else choices[0].text
        if not isinstance(written, str):
            raise self._server.garbage(answer, "a completion")
        return written.lstrip(" ").split("\n", 1)[0].strip()


_CHAT = "Complete the last line below in the style of the lines above it. Answer with the one line."
