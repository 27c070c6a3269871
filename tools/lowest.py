"""Test with the oldest packages that pyproject.toml allows, in a virtual environment of their own.

    python tools/lowest.py /tmp/lowest -- tests/test_cli.py tests/data
    python tools/lowest.py /tmp/lowest --over SITE_PACKAGES --keep torch torchvision -- tests/data

With `--over` the newer packages of another environment are seen below the oldest ones, and those of
`--keep` stay as they are there: torch with its CUDA libraries is several GB.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent


def lowest(requirements: list[str]) -> list[str]:
    """Return `name==bound` of every `name>=bound`.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    pins = []
    for requirement in requirements:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", requirement)
        if match is None:
            raise ValueError(f"{requirement} has no lower bound")
        pins.append(f"{match[1]}=={match[2]}")
    return pins


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the virtual environment to make")
    parser.add_argument("--over", type=Path, help="site-packages of another environment")
    parser.add_argument("--keep", nargs="*", default=[], help="packages not to install")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, tests = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = [p for p in lowest(project["dependencies"]) if p.partition("==")[0] not in options.keep]
    venv.create(options.folder, with_pip=True, clear=True)
    python = options.folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if options.over:
        subprocess.run([*pip, "--no-deps", *pins], check=True)
        (site,) = options.folder.glob("lib/python*/site-packages")
        (site / "over.pth").write_text(f"{options.over.resolve()}\n{ROOT}\n")
    else:
        subprocess.run([*pip, *pins, "-e", f"{ROOT}[test]"], check=True)
    print(subprocess.run([str(python), "-m", "pip", "list"], capture_output=True, text=True).stdout)
    return subprocess.run([str(python), "-m", "pytest", "-q", *tests], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
