"""`server:URL`: any server that speaks OpenAI's completions protocol (vLLM, llama.cpp, Ollama ...).

    synclr captions --engine server:http://localhost:8000/v1

`[captions.engine]`'s `batch_size` is the number of requests in flight; `options` may set `model`
(else the server's first), `endpoint` ("completions", or "chat" for servers with nothing else),
`retries` (6, with growing pauses) and `timeout_s` (120). The key comes from OPENAI_API_KEY.
A row's seed is sent along; whether it fixes the answer is up to the server.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from synclr_cli.config import CaptionEngineConfig
from synclr_cli.engines import CaptionEngine, Prompt
from synclr_cli.errors import EngineError, UsageError

try:
    import openai
except ImportError as e:
    raise EngineError(
        "engine server: needs the openai package", do="run pip install 'synclr[server]'"
    ) from e

_OPTIONS = {"model": "", "endpoint": "completions", "retries": 6, "timeout_s": 120.0}
_SEEDS = 2**31  # servers keep seeds in 32 signed bits


class ServerEngine(CaptionEngine):
    """Sends each prompt as one request, many at a time."""

    options = frozenset(_OPTIONS)

    def __init__(self, target: str, config: CaptionEngineConfig):
        if not target.startswith(("http://", "https://")):
            raise UsageError(
                "engine server:", got=repr(target), expected="a URL, http://HOST:PORT/v1"
            )
        options: dict[str, Any] = _OPTIONS | config.options
        if options["endpoint"] not in ("completions", "chat"):
            raise UsageError(
                "captions.engine.options.endpoint",
                got=repr(options["endpoint"]),
                expected="completions | chat",
            )
        self._url, self._config, self._chat = target, config, options["endpoint"] == "chat"
        self._client = openai.OpenAI(
            base_url=target,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            max_retries=int(options["retries"]),
            timeout=float(options["timeout_s"]),
        )
        self._model = options["model"] or self._first_model()
        self.revision = f"{self._model} at {target}"

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        """Return one completion per prompt, in their order."""
        with ThreadPoolExecutor(self._config.batch_size) as pool:
            asked = [pool.submit(self._one, p.text, s) for p, s in zip(prompts, seeds, strict=True)]
            try:
                return [a.result() for a in asked]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _one(self, text: str, seed: int) -> str:
        common: dict[str, Any] = {
            "model": self._model,
            "max_tokens": self._config.max_new_tokens,
            "temperature": self._config.temperature,
            "top_p": self._config.top_p,
            "stop": ["\n"],
            "seed": seed % _SEEDS,
        }
        if self._chat:
            messages = [{"role": "user", "content": f"{_CHAT}\n\n{text}"}]
            answer = self._ask(
                lambda: self._client.chat.completions.create(messages=messages, **common)
            )
        else:
            answer = self._ask(lambda: self._client.completions.create(prompt=text, **common))
        choices = getattr(answer, "choices", None)
        if not choices:
            raise self._garbage(answer)
        written = choices[0].message.content if self._chat else choices[0].text
        if not isinstance(written, str):
            raise self._garbage(answer)
        return written.lstrip(" ").split("\n", 1)[0].strip()

    def _first_model(self) -> str:
        answer = self._ask(lambda: self._client.models.list())
        listed = getattr(answer, "data", None)
        if not listed or not isinstance(getattr(listed[0], "id", None), str):
            raise self._garbage(answer)
        return str(listed[0].id)

    def _ask(self, request: Any) -> Any:
        try:
            return request()
        except openai.APITimeoutError as e:
            raise EngineError(
                f"the server at {self._url} gave no answer in time",
                do="raise captions.engine.options.timeout_s or lower captions.engine.batch_size",
            ) from e
        except openai.APIConnectionError as e:
            raise EngineError(
                f"no server answers at {self._url}", do="start it, or correct the URL"
            ) from e
        except openai.AuthenticationError as e:
            raise EngineError(
                f"the server at {self._url} refused the key", do="set OPENAI_API_KEY"
            ) from e
        except openai.APIStatusError as e:
            raise EngineError(
                f"the server at {self._url} answered {e.status_code} ({str(e.message)[:200]})",
                do="check captions.engine.options: model, endpoint",
            ) from e
        except (openai.OpenAIError, ValueError, AttributeError) as e:
            # The client lets these two out where a body is not JSON, or not an object of it.
            raise self._garbage(e) from e

    def _garbage(self, answer: object) -> EngineError:
        shown = " ".join(str(answer).split())[:80]
        return EngineError(
            f"the server at {self._url} does not speak the OpenAI protocol",
            got=repr(shown),
            expected="a completion",
            do="check that the URL ends in /v1",
        )


_CHAT = "Complete the last line below in the style of the lines above it. Answer with the one line."
