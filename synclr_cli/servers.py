"""A server that speaks OpenAI's protocol: what the `server:` engines of captions and render share.

    target and options -> `Server` -> requests, a bounded number at a time -> answers | one line

The `openai` package retries 408, 409, 429, 5xx and lost connections with growing pauses, as the
server's Retry-After says if it does. The key comes from OPENAI_API_KEY; it is in no message and in
no file, and a URL that holds a password is refused, since engine names are stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from synclr_cli.errors import EngineError, UsageError

if TYPE_CHECKING:
    import openai

CONNECT_S = 3.0  # a host that is up takes a connection at once
GREETING_S = 20.0  # for the list of models, the first question
OPTIONS = {"model": "", "retries": 6, "timeout_s": 120.0}

Row = TypeVar("Row")
Answer = TypeVar("Answer")


class Server:
    """A client for one server and one of its models.

    Args:
        stage: whose engine it is, captions or render; for messages.
        target: the URL, http://HOST:PORT/v1.
        options: the engine's: `model` (else the server's first), `retries`, `timeout_s`, and what
            is the engine's own.

    Raises:
        UsageError: a URL that cannot be.
        EngineError: no openai package, or no server answers; within seconds.
    """

    def __init__(self, stage: str, target: str, options: Mapping[str, Any]):
        self._key = f"{stage}.engine.options"
        _require_url(target)
        self.options: dict[str, Any] = {**OPTIONS, **options}
        self.url = target
        self._secret = os.environ.get("OPENAI_API_KEY", "")
        self._openai = _package()
        self.client: openai.OpenAI = self._openai.OpenAI(
            base_url=target,
            api_key=self._secret or "none",
            max_retries=int(self.options["retries"]),
            timeout=self._openai.Timeout(float(self.options["timeout_s"]), connect=CONNECT_S),
        )
        self.model = self._greet()

    def map(
        self, function: Callable[[Row], Answer], rows: Iterable[Row], at_once: int
    ) -> list[Answer]:
        """Return the function of each row, in their order, with so many requests in flight."""
        with ThreadPoolExecutor(at_once) as pool:
            futures = [pool.submit(function, row) for row in rows]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def request(self, send: Callable[[], Any]) -> Any:
        """Return a request's answer.

        Raises:
            EngineError: what went wrong, in one line.
        """
        package = self._openai
        try:
            return send()
        except package.APITimeoutError as e:
            raise EngineError(
                f"the server at {self.url} gave no answer in time",
                do=f"raise {self._key}.timeout_s or lower the engine's batch_size",
            ) from e
        except package.APIConnectionError as e:
            raise EngineError(
                f"no server answers at {self.url}", do="start it, or correct the URL"
            ) from e
        except package.AuthenticationError as e:  # its words may hold the key
            raise EngineError(
                f"the server at {self.url} refused the key", do="set OPENAI_API_KEY"
            ) from e
        except package.APIStatusError as e:
            raise EngineError(
                f"the server at {self.url} answered {e.status_code} ({self.plain(e.message)})",
                do=f"check the URL and {self._key}.model",
            ) from e
        except (package.OpenAIError, ValueError, AttributeError) as e:
            # The client lets these two out where a body is not JSON, or not an object of it.
            raise self.garbage(e) from e

    def garbage(self, answer: object, expected: str = "an answer") -> EngineError:
        """Return the error for an answer that is none of the protocol's."""
        return EngineError(
            f"the server at {self.url} does not speak the OpenAI protocol",
            got=repr(self.plain(answer)[:80]),
            expected=expected,
            do="check that the URL ends in /v1",
        )

    def plain(self, text: object) -> str:
        """Return a server's words as one short line without the key."""
        line = " ".join(str(text).split())
        return (line.replace(self._secret, "***") if self._secret else line)[:200]

    def _greet(self) -> str:
        """Ask for the models, without patience; return the one to use."""
        hasty = self.client.with_options(
            max_retries=1, timeout=self._openai.Timeout(GREETING_S, connect=CONNECT_S)
        )
        wish = str(self.options["model"])
        try:
            answer = self.request(hasty.models.list)
        except EngineError as e:
            # Not every server lists its models; one that is not there can do nothing else either.
            if wish and not isinstance(e.__cause__, self._openai.APIConnectionError):
                return wish
            raise
        if wish:
            return wish
        listed = getattr(answer, "data", None)
        if not listed or not isinstance(getattr(listed[0], "id", None), str):
            raise self.garbage(answer, "a list of models")
        return str(listed[0].id)


def _require_url(target: str) -> None:
    """Refuse what is not a plain URL, and one that holds a secret; never repeat that."""
    try:
        parts = urlsplit(target)
        secret = bool(parts.username or parts.password or parts.query)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        secret = fits = False
    if secret:
        raise UsageError(
            "engine server: a URL with a user name, password or query would be stored with every "
            "file",
            do="give the URL alone, and the key as OPENAI_API_KEY",
        )
    if not fits:
        raise UsageError("engine server:", got=repr(target), expected="a URL, http://HOST:PORT/v1")


def _package() -> Any:
    try:
        import openai
    except ImportError as e:
        raise EngineError(
            "engine server: needs the openai package", do="run pip install 'synclr[server]'"
        ) from e
    return openai
