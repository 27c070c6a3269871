"""The ways a command can fail that are not our bug, each with its exit code.

Every message is one line: what is wrong, got, expected, what to do. Ctrl-C and SIGTERM exit with
130, after what is done was saved.
"""

from __future__ import annotations

from synclr_cli.safe_text import safe


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
        # A cause that spans lines (an OSError of a library, say) still makes one line.
        super().__init__(" ".join(safe(text).split()))


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
