"""Every command, given what is bad, ends in one line; nothing of the user's is changed.

The seed is in the failure and in the table; `cases(1000, SEED)[n]` is the case that failed.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bad_inputs
import pytest

SEED = 18


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_bad_inputs_end_in_one_line_and_harm_nothing(
    count: int, good: Mapping[str, Path], synclr: Callable[..., Any], tmp_path: Path
) -> None:
    before = bad_inputs.snapshot(good.values())
    faults, results = [], []
    for case in bad_inputs.cases(count, SEED):
        folder = tmp_path / "c"
        folder.mkdir()
        arguments = case.arguments(folder, good)
        try:
            # No argument of a process has a NUL, but what is read for - may.
            piped = next((a for a in arguments if "\0" in a and "=" not in a), None)
            outcome = synclr(*("-" if a == piped else a for a in arguments), stdin=piped)
            problem = bad_inputs.fault(case, outcome)
            results.append((case, outcome.code))
        except Exception:
            problem = traceback.format_exc(limit=-3)
            results.append((case, 1))
            outcome = None
        if (folder / "HARM").exists():
            problem = "ran code from the file"
        if problem:
            shown = " ".join(arguments)[-300:]
            said = outcome.err[-600:] if outcome else ""
            name = f"case {case.number}: {case.command}, {case.kind}"
            faults.append(f"{name}: {problem}\n  {shown}\n  {said}")
        bad_inputs.clear(folder)
    print(f"seed {SEED}, {count} cases\n{bad_inputs.table(results)}")
    assert bad_inputs.snapshot(good.values()) == before
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults)
