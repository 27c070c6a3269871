"""A hub that is not there is told within seconds, in one line; one that answers is asked."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from synclr_cli import engines, hub
from synclr_cli.config import CaptionEngineConfig, RenderEngineConfig
from synclr_cli.errors import EngineError


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("image", RenderEngineConfig(name="diffusers:nobody/nothing")),
        ("caption", CaptionEngineConfig(name="transformers:nobody/nothing")),
    ],
)
def test_a_hub_that_is_not_there_is_one_line_within_seconds(no_hub, kind, config):
    pytest.importorskip("diffusers").DiffusionPipeline  # noqa: B018  # the import is not timed
    start = time.monotonic()
    with pytest.raises(EngineError, match=r"no model hub answers .* not in the cache") as caught:
        engines.load(kind, config)
    assert "\n" not in str(caught.value) and "FOLDER" in str(caught.value)
    assert time.monotonic() - start < 15  # the libraries by themselves take 7 and 24 s


def test_a_score_model_too(no_hub):
    from synclr_cli.render.scoring import Scorer

    with pytest.raises(EngineError, match="no model hub answers"):
        Scorer("nobody/nothing")


@pytest.mark.parametrize("status", [200, 401, 503])
def test_a_hub_that_answers_anything_is_there(monkeypatch, status):
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        assert not hub.cache_only()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert hub.cache_only()
        server.shutdown()
