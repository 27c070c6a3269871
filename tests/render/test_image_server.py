"""`server:` images, against a process that speaks the protocol, and against ones that do not."""

import json
import subprocess
import sys
import time
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
from engine_contract import assert_image_engine

pytest.importorskip("openai")

from synclr_cli.config import RenderConfig, RenderEngineConfig
from synclr_cli.engines import load
from synclr_cli.errors import EngineError, UsageError
from synclr_cli.render.report import report
from synclr_cli.render.run import run

CAPTIONS = ["a red fox", "a red fox", "the dog in the snow", "a cat", "a bee"]
SEEDS = [11, 12, 13, 14, 2**62 + 15]


@pytest.fixture
def serve():
    processes = []

    def start(mode, key="-"):
        script = Path(__file__).with_name("fake_image_server.py")
        process = subprocess.Popen(
            [sys.executable, str(script), mode, key], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return f"http://127.0.0.1:{process.stdout.readline().strip()}"

    yield start
    for process in processes:
        process.kill()
        process.wait()


def engine(url, **changes):
    options = {"retries": 3} | changes.pop("options", {})
    settings = {"size": 32, "batch_size": 4} | changes
    return load("image", RenderEngineConfig(name=f"server:{url}/v1", options=options, **settings))


def seen(url):
    with urllib.request.urlopen(f"{url}/seen") as answer:
        return json.load(answer)


def expected(caption, seed, side=32):
    rng = np.random.default_rng([seed, zlib.crc32(caption.encode())])
    return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_each_caption_gets_the_image_of_its_seed_in_order(serve):
    images = engine(serve("good")).generate(CAPTIONS, CAPTIONS, SEEDS)
    for caption, seed, image in zip(CAPTIONS, SEEDS, images, strict=True):
        assert np.array_equal(image.pixels, expected(caption, seed % 2**31))
        assert image.flaw == ""


def test_it_keeps_the_promises_of_an_engine(serve):
    made = engine(serve("good"))
    assert_image_engine(made, CAPTIONS, CAPTIONS, SEEDS)
    assert made.revision.startswith("tiny at http://127.0.0.1")


def test_the_request_holds_what_the_settings_say(serve):
    url = serve("good")
    engine(
        url, guidance=4.0, steps=7, negative_prompt="fog", options={"extra": '{"layers": 2}'}
    ).generate(["a cat"], [""], [5])
    assert seen(url)["bodies"] == [
        {
            "model": "tiny", "prompt": "a cat", "n": 1, "size": "32x32", "seed": 5,
            "response_format": "b64_json", "guidance_scale": 4.0, "num_inference_steps": 7,
            "negative_prompt": "fog", "layers": 2,
        }
    ]  # fmt: skip


def test_no_more_requests_are_in_flight_than_allowed(serve):
    url = serve("good")
    engine(url, batch_size=3).generate(["a cat"] * 9, [""] * 9, range(9))
    assert 1 < seen(url)["most"] <= 3


def test_a_busy_server_is_asked_again(serve):
    (image,) = engine(serve("busy")).generate(["a cat"], [""], [3])
    assert np.array_equal(image.pixels, expected("a cat", 3))


def test_a_server_that_knows_no_seed_is_sent_none_and_said_so(serve, capsys):
    url = serve("strict")
    with pytest.raises(EngineError, match="unknown parameters"):
        engine(url).generate(["a cat"], [""], [3])
    engine(url, options={"seeded": False}).generate(["a cat"], [""], [3])
    assert set(seen(url)["bodies"][-1]) == {"model", "prompt", "n", "size"}
    assert "cannot be made again" in capsys.readouterr().err


def test_a_refused_caption_is_a_flawed_view_and_the_others_are_not(serve):
    images = engine(serve("prudish")).generate(["a gun", "a cat"], ["", ""], [1, 2])
    assert [i.flaw for i in images] == ["refused", ""]
    assert images[0].pixels.shape == (32, 32, 3)


@pytest.mark.parametrize("mode", ["truncated", "not-base64"])
def test_what_is_no_image_is_a_flawed_view_and_the_others_are_not(serve, mode):
    images = engine(serve(mode)).generate(["a bad fox", "a cat"], ["", ""], [1, 2])
    assert [i.flaw for i in images] == ["not an image", ""]


def test_an_image_beyond_the_limits_is_a_flawed_view(serve, monkeypatch):
    from synclr_cli.render.engines import server

    made = engine(serve("good"))
    monkeypatch.setattr(server, "MOST_SIDE", 31)
    assert made.generate(["a cat"], [""], [1])[0].flaw == "too large"
    monkeypatch.setattr(server, "MOST_BYTES", 100)
    assert made.generate(["a cat"], [""], [1])[0].flaw == "too many bytes"


@pytest.mark.parametrize(
    ("mode", "options", "says"),
    [
        ("garbage", {}, "does not speak the OpenAI protocol"),
        ("link", {}, "expected an image in b64_json"),
        ("good", {"model": "huge"}, "no model huge"),
        ("no-list", {}, "answered 404"),
        ("slow", {"timeout_s": 0.3, "retries": 0}, "gave no answer in time"),
    ],
)
def test_a_server_that_goes_wrong_is_one_line(serve, mode, options, says):
    url = serve(mode)
    with pytest.raises(EngineError) as caught:
        engine(url, options=options).generate(["a cat"], [""], [1])
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_server_without_a_list_of_models_does_with_a_name(serve):
    made = engine(serve("no-list"), options={"model": "tiny"})
    assert made.generate(["a cat"], [""], [1])[0].flaw == ""


@pytest.mark.parametrize("model", ["", "tiny"])
def test_a_server_that_is_not_there_is_one_line_within_seconds(model):
    start = time.monotonic()
    with pytest.raises(EngineError, match="no server answers at"):
        engine("http://127.0.0.1:9", options={"model": model, "retries": 6})
    assert time.monotonic() - start < 5


def test_the_key_opens_and_is_never_shown(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-mine")
    made = engine(serve("good", "sk-secret-of-mine"))
    assert made.generate(["a cat"], [""], [1])[0].flaw == ""
    assert "secret" not in made.revision
    for url in (serve("echo", "sk-secret-of-mine"), serve("good", "sk-another")):
        with pytest.raises(EngineError) as caught:
            engine(url).generate(["a cat"], [""], [1])
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://me:hunter2@127.0.0.1:9", "http://127.0.0.1:9/?key=hunter2"]
)
def test_a_url_with_a_secret_is_refused_without_repeating_it(url):
    with pytest.raises(UsageError, match="would be stored") as caught:
        load("image", RenderEngineConfig(name=f"server:{url}"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("server:localhost:8000", {}, "expected a URL"),
        (
            "server:http://localhost:9/v1",
            {"options": {"modle": "x"}},
            "Did you mean render.engine.options.model?",
        ),
    ],
)
def test_wrong_server_settings_are_refused(name, values, says):
    with pytest.raises(UsageError) as caught:
        load("image", RenderEngineConfig(name=name, **values))
    assert says in str(caught.value)


def test_refused_views_are_drawn_again_and_then_set_aside(serve, captions_file, tmp_path):
    url = serve("prudish")
    config = RenderConfig(
        views=2, stored_size=32, redraws=1,
        engine=RenderEngineConfig(name=f"server:{url}/v1", size=32, batch_size=4),
    )  # fmt: skip
    rows = [("a gun on a table", "gun"), ("a red fox", "fox")]
    facts = report(run(config, captions_file(rows), tmp_path / "images"))
    assert facts["captions"] == 1 and facts["images"] == 2 and facts["set_aside"] == 1
    assert facts["rejected"] == {"refused": 4}  # two views, each from two seeds
    assert len({b["seed"] for b in seen(url)["bodies"] if "gun" in b["prompt"]}) == 4
