"""`server:` against a process that speaks the protocol, and against ones that do not."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("openai")

from synclr_cli.config import CaptionEngineConfig
from synclr_cli.engines import Prompt, load
from synclr_cli.errors import EngineError, UsageError


@pytest.fixture
def serve():
    started = []

    def start(mode):
        script = Path(__file__).with_name("fake_server.py")
        process = subprocess.Popen(
            [sys.executable, str(script), mode], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return f"http://127.0.0.1:{process.stdout.readline().strip()}"

    yield start
    for process in started:
        process.kill()
        process.wait()


def engine(url, **changes):
    options = {"retries": 3} | changes.pop("options", {})
    return load(
        "caption",
        CaptionEngineConfig(
            name=f"server:{url}/v1", max_new_tokens=17, options=options,
            **{"batch_size": 4} | changes,
        ),
    )  # fmt: skip


def asked(count):
    return [
        Prompt(f"Do.\n\nowl => An owl.\nfox {i} =>", "fox", "object", "c", "") for i in range(count)
    ]


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_each_prompt_gets_its_own_answer_in_order(serve, endpoint):
    made = engine(serve("good"), options={"endpoint": endpoint})
    assert made.revision.startswith("tiny at http")
    answers = made.generate(asked(30), range(30))
    assert answers == [f"A fox {i}, seed {i}, 17 tokens." for i in range(30)]


def test_no_more_requests_are_in_flight_than_allowed(serve):
    url = serve("good")
    engine(url, batch_size=3).generate(asked(30), range(30))
    with urllib.request.urlopen(f"{url}/most") as answer:
        assert json.load(answer)["most"] == 3


def test_a_busy_server_is_asked_again(serve):
    answers = engine(serve("busy")).generate(asked(3), range(3))
    assert answers == [f"A fox {i}, seed {i}, 17 tokens." for i in range(3)]


@pytest.mark.parametrize(
    ("mode", "options", "says"),
    [
        ("garbage", {}, "does not speak the OpenAI protocol"),
        ("html", {}, "does not speak the OpenAI protocol"),
        ("broken", {}, "answered 400"),
        ("good", {"model": "huge"}, "no model huge"),
        ("slow", {"timeout_s": 0.3, "retries": 0}, "gave no answer in time"),
    ],
)
def test_a_server_that_goes_wrong_is_one_line(serve, mode, options, says):
    url = serve(mode)
    with pytest.raises(EngineError) as caught:
        engine(url, options=options).generate(asked(2), range(2))
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_server_that_is_not_there_is_one_line():
    with pytest.raises(EngineError, match="no server answers at"):
        engine("http://127.0.0.1:9", options={"retries": 0}).generate(asked(1), [0])


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("server:localhost:8000", {}, "expected a URL"),
        (
            "server:http://localhost:9/v1",
            {"modle": "x"},
            "Did you mean captions.engine.options.model?",
        ),
        ("server:http://localhost:9/v1", {"endpoint": "talk"}, "completions | chat"),
    ],
)
def test_wrong_server_settings_are_refused(name, options, says):
    with pytest.raises(UsageError) as caught:
        load("caption", CaptionEngineConfig(name=name, options=options))
    assert says in str(caught.value)
