"""The command line: its surface is frozen, its errors are one line with the right exit code."""

from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from synclr_cli import cli

GOLDEN = Path(__file__).parent / "golden" / "help.txt"


def surface() -> str:
    """Return every command with its arguments, flags and defaults, a line each."""
    lines = []
    group = typer.main.get_command(cli.app)
    for name, command in sorted(group.commands.items()):
        lines.append(f"{name}: {command.help}")
        for p in command.params:
            names = " ".join(p.opts) if p.param_type_name == "option" else str(p.name).upper()
            default = "" if p.default is None or callable(p.default) else f" [{p.default}]"
            lines.append(f"    {names}{default}")
    return "\n".join(lines) + "\n"


def test_the_flag_surface_is_the_frozen_one():
    assert surface() == GOLDEN.read_text(), (
        "The command line changed. If that is meant, run `python tests/test_cli.py` and say so in"
        " CHANGELOG.md."
    )


def test_help_imports_nothing_heavy_and_answers_at_once(synclr_process):
    heavy = "torch", "numpy", "pyarrow", "transformers", "diffusers", "timm", "PIL", "sklearn"
    import subprocess
    import sys

    script = (
        "import sys\nfrom synclr_cli.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"

    # Not a timing test: an order of magnitude of work, to notice a heavy import by another name.
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert synclr_process("--help").code == 0
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 5


def test_print_config_needs_no_torch_and_names_the_paper(synclr_process):
    shown = synclr_process(
        "train", "--preset", "vitb", "--set", "train.steps=7000000", "--print-config"
    )
    assert shown.code == 0
    assert "peak_lr = 0.002" in shown.out and "Table 12" in shown.out
    assert "steps = 7000000" in shown.out and "# --set train.steps=7000000" in shown.out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["trian"], 2, "No such command 'trian'"),
        (["train", "--presett", "x"], 2, "--preset"),
        (["train", "--preset", "vitt"], 2, "did you mean vit"),
        (["train", "--preset", "nowhere.toml"], 2, "no preset file nowhere.toml"),
        (["train", "--set", "train.lr=1"], 2, "did you mean train.peak_lr"),
        (["train", "--set", "steps=1"], 2, "write train.steps=1"),
        (["train", "--set", "trian.steps=1"], 2, "did you mean train?"),
        (["train", "--set", "train.steps"], 2, "expected table.key=value"),
        (["train", "--set", "train.steps=many"], 2, "got 'many', expected a whole number"),
        (["train", "--set", "train.temperature=0"], 2, "expected above 0"),
        (["train", "--set", "train.views=1"], 2, "one image of a caption has no positive"),
        (["render", "--set", "render.engine.steps=-1"], 2, "got -1, expected from 0 to 1000"),
        (["captions", "--engine", "smolm2:"], 2, "did you mean smollm2:?"),
        (["captions", "--engine", "template"], 2, "expected scheme:target"),
        (["render", "--engine", "procedurl:"], 2, "did you mean procedural:?"),
        (["captions", "--preset", "vitb", "--engine", "nothing:x"], 2, "schemes are smollm2"),
        (["render", "--shard", "3"], 2, "got '3', expected I/N"),
        (["render", "--set", "render.least_score=0.3"], 2, "without render.score_model"),
        (
            ["captions", "-o", "birds.csv"],
            2,
            "expected a folder, which captions are. Try --out birds",
        ),
        (["render", "--shard", "65/64", "nowhere.parquet"], 2, "got '65/64'"),
        (["train", "--out", "s3://bucket/run"], 2, "expected a folder of this machine"),
        (["import", "nowhere.csv"], 3, "nowhere.csv"),
        (["inspect", "nowhere.parquet"], 3, "no file nowhere.parquet"),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code(synclr, tmp_path, arguments, code, says):
    outcome = synclr(*arguments, cwd=tmp_path)
    assert outcome.code == code
    assert outcome.out == ""
    assert len(outcome.err.strip().splitlines()) == 1
    assert says.lower() in outcome.error_line.lower()
    assert list(tmp_path.iterdir()) == []


def test_a_dash_reads_the_path_from_stdin(synclr, tmp_path):
    outcome = synclr("render", "-", cwd=tmp_path, stdin="nowhere.parquet\n")
    assert outcome.code == 3
    assert "nowhere.parquet" in outcome.error_line


def test_a_dash_with_nothing_piped_in_points_at_the_command_before(synclr, tmp_path):
    outcome = synclr("train", "-", cwd=tmp_path, stdin="")
    assert outcome.code == 2
    assert "got 0 lines, expected one path" in outcome.error_line


def test_a_report_is_one_json_object_on_stdout(synclr, capsys):
    from synclr_cli import console

    console.result_json({"top1": 0.5, "name": "ViT-S/16 é"}, [("top1", "0.5")])
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"top1": 0.5, "name": "ViT-S/16 é"}
    assert printed.count("\n") == 1


def test_a_word_list_by_another_path_is_the_same_setting_and_other_words_are_not(synclr, tmp_path):
    (tmp_path / "m.txt").write_text("acorn\nkettle\n")
    captions = ("captions", "-n", "4", "--engine", "template:", "-c")
    first = synclr(*captions, "m.txt", cwd=tmp_path)
    assert first.code == 0
    for again in ("./m.txt", tmp_path / "m.txt"):
        outcome = synclr(*captions, again, cwd=tmp_path)
        assert (outcome.code, outcome.out) == (0, first.out), outcome.err
    (tmp_path / "m.txt").write_text("acorn\nanchor\n")
    outcome = synclr(*captions, "./m.txt", cwd=tmp_path)
    assert outcome.code == 2 and "the input m.txt" in outcome.error_line


def test_what_all_ranks_end_with_is_said_once(synclr_process):
    for rank, lines in (("0", 1), ("1", 0)):
        outcome = synclr_process("train", "--preset", "vitt", RANK=rank, LOCAL_RANK=rank)
        assert outcome.code == 2 and len(outcome.err.splitlines()) == lines
    # Jobs of shares each speak for themselves, whatever their launcher calls them.
    outcome = synclr_process("render", "--shard", "3", RANK="1", LOCAL_RANK="1")
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        ("presets", "preset", "vitb"),
        ("concepts", "source", "in21k"),
        ("engines", "engine", "procedural:"),
    ],
)
def test_what_there_is_to_choose_from_is_listed(synclr, monkeypatch, command, key, value):
    outcome = synclr(command)
    assert outcome.code == 0 and outcome.err == ""
    rows = {row[key]: row for row in json.loads(outcome.out)[command]}
    assert rows[value]
    if command == "concepts":
        assert rows["in21k"]["concepts"] == 21843 and rows["dtd"]["kinds"] == "textures"
    if command == "presets":
        assert rows["vitb"]["recipe"] == "SynCLR ViT-B/16, the long schedule."


def test_an_engine_that_lacks_a_package_is_listed_with_the_command_that_brings_it(
    synclr, monkeypatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openai" else find(name)
    )
    rows = {row["engine"]: row for row in json.loads(synclr("engines").out)["engines"]}
    assert rows["server:"]["usable"] is False
    assert rows["server:"]["install"] == "pip install 'synclr[server]'"
    assert (rows["template:"]["usable"], rows["template:"]["install"]) == (True, "")


def test_brackets_in_a_table_are_text(monkeypatch, capsys):
    from synclr_cli import console

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    console.result_json({}, [("source [/b]", "a [red]fox[/blue] in [the] snow")])
    printed = capsys.readouterr().out
    assert "source [/b]" in printed and "a [red]fox[/blue] in [the] snow" in printed


def test_a_reader_of_the_result_that_went_away_is_no_failure():
    process = subprocess.Popen(
        [sys.executable, "-m", "synclr_cli", "train", "--print-config"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_only_the_console_prints():
    import ast

    package = Path(cli.__file__).parent
    for path in package.rglob("*.py"):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            assert not (called and node.func.id == "print"), f"{path} prints"


if __name__ == "__main__":
    GOLDEN.write_text(surface())
