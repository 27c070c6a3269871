"""The whole files that the attacks damage, made once by the commands themselves."""

from __future__ import annotations

from pathlib import Path

import good_files
import pytest


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from synclr_cli import console
    from synclr_cli.cli import main

    def synclr(*arguments: object) -> int:
        with console.captured(), pytest.raises(SystemExit) as e:
            main([str(a) for a in arguments])
        console.set_quiet(False)
        return int(e.value.code or 0)

    return good_files.make_all(tmp_path_factory.mktemp("good"), synclr)
