"""What a person sees on stderr: one vocabulary, plain numbers."""

from __future__ import annotations

import re

import pytest

from synclr_cli import console


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [
        (3342.4, 3, "3342"), (3.3e3, 3, "3300"), (1234567.0, 4, "1234567"), (12.54, 3, "12.5"),
        (0.007346, 3, "0.00735"), (0.0000123, 3, "0.0000123"), (-15.9725, 4, "-15.97"),
        (0.0, 3, "0"), (1.0, 3, "1.00"), (float("inf"), 3, "inf"), (float("nan"), 3, "nan"),
    ],
)  # fmt: skip
def test_numbers_have_digits_and_no_exponent(number: float, digits: int, text: str) -> None:
    assert console.plain(number, digits) == text


def test_a_job_tells_units_done_rate_and_numbers_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL_S", 0.0)
    with console.progress("train", 900, done=10, unit="steps") as bar:
        bar.say(**{"loss": 15.97257, "images/s": 3342.42, "wait": 0.0042349})
        bar.advance()
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"train 11/900  [0-9.]+ steps/s  [0-9.]+ s left"
        r"  loss 15\.97  images/s 3342  wait 0\.004235",
        line,
    ), line
