"""The ways a command can fail that are not our bug, each with its exit code.

Every message is one line: what is wrong, got, expected, what to do. Ctrl-C and SIGTERM exit with
130, after what is done was saved.
"""

from __future__ import annotations

from synclr_cli.safe_text import safe

LONGEST = 290  # characters of a message


def one_line(text: str) -> str:
    """Return text on one line of at most `LONGEST` characters, safe to print.

    What is long loses its middle: first the longest words, such as a path, then the whole.
    """
    line = " ".join(safe(text).split())
    while len(line) > LONGEST and len(word := max(line.split(" "), key=len)) > 99:
        line = line.replace(word, f"{word[:30]}...{word[-40:]}")
    return line if len(line) <= LONGEST else f"{line[:190]} ... {line[-95:]}"


class SynclrError(Exception):
    """A failure whose cause is outside this package; shown as one line, never as a traceback."""

    exit_code = 1
    speaker: bool | None = None  # of several ranks, whether this one prints it; None: not decided

    def __init__(self, what: str, *, got: object = None, expected: object = None, do: str = ""):
        text = what
        if got is not None:
            text += f": got {got}"
        if expected is not None:
            text += f", expected {expected}"
        if do:
            text += f". {do[0].upper()}{do[1:]}"
        super().__init__(one_line(text))


class UsageError(SynclrError):
    """The command line, a preset or a `--set` is wrong, or an output belongs to another config."""

    exit_code = 2


class DataError(SynclrError):
    """An input file or folder is not what the command needs."""

    exit_code = 3


class EngineError(SynclrError):
    """An engine, a package, the device or the disk is not there or gave up."""

    exit_code = 4


class DivergedError(SynclrError):
    """Training reached a non-finite loss."""

    exit_code = 5
