"""What came from elsewhere is shown without control characters and without passwords."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, strategies as st

from synclr_cli import console
from synclr_cli.data.artifacts import Header, parent
from synclr_cli.errors import DataError
from synclr_cli.safe_text import plain, redact, redacted

ESC = "\x1b"
SECRET = "s3://key:pa/ss@wo:rd@bucket/words.txt"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"a {ESC}[31mred{ESC}[0m fox", "a red fox"),
        (f"{ESC}[2J{ESC}[1;1Hgone", "gone"),
        (f"{ESC}]0;title\x07name", "name"),
        (f"{ESC}]8;;http://x{ESC}\\link{ESC}]8;;{ESC}\\", "link"),
        (f"{ESC}P1$r{ESC}\\dcs", "dcs"),
        (f"{ESC}c{ESC}(Breset", "reset"),
        ("\x9b31mC1", "C1"),
        ("over\rwritten\b\x07\x7f\x00", "overwritten"),
        ("photo\u202egnp.exe", "photognp.exe"),
        ("line\u2028two", "linetwo"),
        ("tab\tnew\nline é 狐 🦊 [b]", "tab\tnew\nline é 狐 🦊 [b]"),
        (f"end {ESC}", "end "),
        (f"end {ESC}[", "end "),
    ],
)
def test_terminal_sequences_and_control_characters_go_and_text_stays(text, shown):
    assert plain(text) == shown


@given(st.text(alphabet=st.sampled_from(f"{ESC}\x9b\x90\x07\\[]0;mPa\u202e\n")))
def test_nothing_that_a_terminal_obeys_is_left(text):
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", plain(text))
    assert plain(plain(text)) == plain(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (SECRET, "s3://key:***@bucket/words.txt"),
        ("server:https://me:pw@host:8000/v1 is", "server:https://me:***@host:8000/v1 is"),
        ("c::ftp://u:p@h/x and http://v:q@i", "c::ftp://u:***@h/x and http://v:***@i"),
        ("http://localhost:8000/v1@tag", "http://localhost:8000/v1@tag"),
        ("s3://bucket/words.txt", "s3://bucket/words.txt"),
        ("mail a@b.c, ssh://git@host/x", "mail a@b.c, ssh://git@host/x"),
        ("http://:token@host", "http://:***@host"),
    ],
)  # fmt: skip
def test_passwords_of_uris_are_not_shown(text, shown):
    assert redact(text) == shown and redact(shown) == shown


def test_a_header_keeps_no_password(tmp_path):
    above = Header("captions", config={"concepts": SECRET}, engine="server:http://a:pw@h/v1")
    header = Header(
        "images",
        config={"engine.name": f"diffusers:{SECRET}", "list": [SECRET], "views": 4},
        engine=f"diffusers:{SECRET}",
        revision=f"m at {SECRET}",
        parents=(parent(tmp_path / "x", above, "d"),),
        facts={"table": {"inner": SECRET}},
    )
    assert "pa/ss" not in header.json() and ":pw@" not in header.json()
    again = Header.parse(header.json(), tmp_path)
    assert again.engine == "diffusers:s3://key:***@bucket/words.txt"
    assert again.config["views"] == 4 and redacted(again.config) == again.config


def test_whatever_the_console_is_given_it_prints_safely(capsys):
    bad = f"{ESC}[31m{SECRET}\r{ESC}]0;x\x07"
    console.note(bad)
    console.warn(bad)
    console.error(bad)
    console.result(bad)
    console.result_json({"caption": bad})
    console.table(bad, [bad, "n"], [[bad, bad]])
    printed = "".join(capsys.readouterr())
    assert printed.count("s3://key:***@") >= 6
    assert ESC not in printed and "\r" not in printed and "pa/ss" not in printed


def test_an_error_carries_neither_for_whoever_logs_it():
    line = str(DataError(f"no file {SECRET}", got=f"{ESC}[2J{ESC}[31mx"))
    assert line == "no file s3://key:***@bucket/words.txt: got x"


def test_json_on_stdout_stays_json(capsys):
    console.result_json({"caption": f'a "\u202e{SECRET}" \\ fox', "next": "a@b"})
    assert json.loads(capsys.readouterr().out) == {
        "caption": 'a "s3://key:***@bucket/words.txt" \\ fox',
        "next": "a@b",
    }
