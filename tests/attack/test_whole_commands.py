"""Every command: two at once, killed anywhere, on a full disk, in odd places, by a mad clock.

The result is in all cases what one undisturbed process makes, and nothing else is left.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import processes
import pytest
from whole_commands import LINES, SLOW_LINES, contents, difference

SEED = 18
_BY_DEFAULT = ("captions", "export")  # the others are slow


def _marked(names: Iterable[str]) -> list[Any]:
    slow = pytest.mark.slow
    return [n if n in _BY_DEFAULT else pytest.param(n, marks=slow) for n in names]


ALL, SOME = _marked([*LINES, *SLOW_LINES]), _marked(LINES)


def arguments(name: str, good: Mapping[str, Path], out: Path) -> list[object]:
    line = (LINES | SLOW_LINES)[name](good)
    return [*line, f"--out={out}"]


@pytest.fixture(scope="session")
def whole(good: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """Return what an undisturbed process makes, and the seconds it takes; each is run once."""
    known: dict[str, tuple[dict, float]] = {}

    def run(name: str) -> tuple[dict, float]:
        if name not in known:
            folder = tmp_path_factory.mktemp("whole")
            began = time.monotonic()
            outcome = processes.start(arguments(name, good, folder / "in" / "out")).wait()
            assert outcome.code == 0, outcome.err[-600:]
            known[name] = contents(folder / "in"), time.monotonic() - began
        return known[name]

    return run


@pytest.mark.parametrize("name", ALL)
def test_of_two_at_once_one_makes_it_and_the_other_says_so(name, good, whole, tmp_path) -> None:
    line = arguments(name, good, tmp_path / "in" / "out")
    both = [processes.start(line) for i in range(2)]
    outcomes = [one.wait() for one in both]
    assert sorted(o.code for o in outcomes) in ([0, 0], [0, 2]), [o.err[-600:] for o in outcomes]
    for outcome in outcomes:
        if outcome.code:
            assert "already in use by another process" in outcome.error_line
    assert difference(contents(tmp_path / "in"), whole(name)[0]) == []


@pytest.mark.parametrize("name", ALL)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(name, good, whole, tmp_path) -> None:
    line = arguments(name, good, tmp_path / "in" / "out")
    outcome = processes.start(line, largest_file=100).wait()
    assert outcome.code == 4, (outcome.code, outcome.err[-900:])
    assert "no space left" in outcome.error_line
    outcome = processes.start(line).wait()
    assert outcome.code == 0, outcome.err[-600:]
    assert difference(contents(tmp_path / "in"), whole(name)[0]) == []


def kill(name: str, good: Mapping[str, Path], whole, folder: Path, kills: int, seed: int) -> int:
    """Kill a command so many times, then let it end; return the kills that met it at work."""
    expected, seconds = whole(name)
    rng = random.Random(f"{seed} {name}")
    done = 0
    line = arguments(name, good, folder / "in" / "out")
    for _ in range(kills):
        running = processes.start(line)
        running.said.poll(rng.uniform(0, seconds))
        code = running.end()
        assert code in (0, -9), running.wait().err
        done += code == -9
    outcome = processes.start(line).wait()
    assert outcome.code == 0, outcome.err[-600:]
    assert difference(contents(folder / "in"), expected) == [], f"{name}, seed {seed}"
    return done


@pytest.mark.parametrize("name", SOME)
def test_a_command_that_is_killed_ends_as_one_that_is_not(name, good, whole, tmp_path) -> None:
    kill(name, good, whole, tmp_path, 3, SEED)


@pytest.mark.slow
def test_a_thousand_kills(good, whole, tmp_path) -> None:
    names, total, counts, seed = [*LINES, *SLOW_LINES], 0, {}, SEED
    while total < 1000:
        for name in names:
            kills = kill(name, good, whole, tmp_path / f"{name} {seed}", 4, seed)
            counts[name] = counts.get(name, 0) + kills
            total += kills
        seed += 1
        print(f"seeds {SEED} to {seed - 1}, {total} kills, 0 bytes differ: {counts}", flush=True)


ODD_NAMES = {
    "spaces": "a folder of mine ", "newline": "a\nb", "dash": "-x", "long": "é" * 127,
    "not UTF-8": "a\udcff", "markup": "[red]x<b>&", "glob": "[a]*?", "quotes": "'\"`$(x)",
}  # fmt: skip


_BY_DEFAULT_NAMES = ("long", "not UTF-8")
_OTHER_NAMES = [
    pytest.param(n, marks=pytest.mark.slow) for n in ODD_NAMES if n not in _BY_DEFAULT_NAMES
]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("odd", [*_BY_DEFAULT_NAMES, *_OTHER_NAMES])
def test_an_odd_name_is_a_name(name, odd, good, whole, tmp_path) -> None:
    out = tmp_path / "in" / ODD_NAMES[odd]
    outcome = processes.start(arguments(name, good, out)).wait()
    if odd == "not UTF-8":
        assert outcome.code == 2 and "is not UTF-8" in outcome.error_line
        return
    assert outcome.code == 0, outcome.err[-900:]
    out.rename(tmp_path / "in" / "out")
    assert difference(contents(tmp_path / "in"), whole(name)[0]) == []


@pytest.mark.parametrize("name", SOME)
def test_a_link_to_a_folder_is_that_folder(name, good, whole, tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in").symlink_to(tmp_path / "elsewhere")
    line = arguments(name, good, tmp_path / "in" / "out")
    outcome = processes.start(line).wait()
    assert outcome.code == 0, outcome.err[-600:]
    assert difference(contents(tmp_path / "elsewhere"), whole(name)[0]) == []


@pytest.mark.parametrize("name", SOME)
def test_a_clock_that_goes_backward_changes_nothing(name, good, whole, tmp_path) -> None:
    line = arguments(name, good, tmp_path / "in" / "out")
    outcome = processes.start(line, clock=5.0).wait()
    assert outcome.code == 0, outcome.err[-600:]
    assert difference(contents(tmp_path / "in"), whole(name)[0]) == []


@pytest.mark.parametrize("name", SOME)
def test_few_descriptors_are_enough_or_one_line(name, good, whole, tmp_path) -> None:
    line = arguments(name, good, tmp_path / "in" / "out")
    for number in (64, 24, 16):
        outcome = processes.start(line, open_files=number).wait()
        assert outcome.code in (0, 4), (number, outcome.err[-900:])
        assert outcome.code == 0 or outcome.error_line
    outcome = processes.start(line).wait()
    assert outcome.code == 0, outcome.err[-600:]
    assert difference(contents(tmp_path / "in"), whole(name)[0]) == []


@pytest.mark.parametrize("name", [*LINES])
def test_where_nothing_can_be_written_is_one_line(name, good, synclr) -> None:
    outcome = synclr(*arguments(name, good, Path("/proc/no/out")))
    assert outcome.code in (2, 4)
    assert len(outcome.error_line) < 300
