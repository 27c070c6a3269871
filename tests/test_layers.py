"""The layers: cli -> commands -> learning -> data -> trunk. Commands meet in files only."""

from __future__ import annotations

import ast
from pathlib import Path

import synclr_cli

PACKAGE = Path(synclr_cli.__file__).parent
COMMANDS = {
    "captions", "render", "import_", "train", "linear_probe", "finetune", "segment", "export",
    "show",
}  # fmt: skip
SHARED = {"learning", "data"}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Return the first two name parts of our own modules that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{a.name}" for a in node.names}
    return {n.split(".")[1] for n in names if n.startswith("synclr_cli.")}


def folder_of(path: Path) -> str:
    """Return the stage folder a file lies in, "" for the trunk."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def test_no_command_imports_another():
    for path in PACKAGE.rglob("*.py"):
        folder = folder_of(path)
        if folder in COMMANDS:
            assert not imports(path) & (COMMANDS - {folder}), f"{path} imports another command"


def test_learning_imports_no_command_and_data_imports_neither_learning_nor_torch():
    for path in (PACKAGE / "learning").rglob("*.py"):
        assert not imports(path) & COMMANDS, f"{path} imports a command"
    for path in (PACKAGE / "data").rglob("*.py"):
        assert not imports(path) & (COMMANDS | {"learning"}), f"{path} imports upwards"
        tree = ast.parse(path.read_text())
        top = [a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names]
        top += [n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.module]
        assert not [m for m in top if m.split(".")[0] in ("torch", "torchvision")], path


def test_the_trunk_imports_no_folder_at_module_level_and_only_cli_a_command():
    for path in PACKAGE.glob("*.py"):
        top = imports(path, top_level_only=True)
        assert not top & (COMMANDS | {"learning"}), f"{path} imports a command at module level"
        if not path.name.startswith("cli_"):
            assert not imports(path) & (COMMANDS | {"learning"}), f"{path} imports a command"


def test_only_runtime_imports_torch_distributed():
    for path in PACKAGE.rglob("*.py"):
        if path != PACKAGE / "learning" / "runtime.py":
            assert "torch.distributed" not in path.read_text(), path


def test_nothing_is_pickled():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "torch.save(" not in text and "pickle.load" not in text, path
        if "torch.load(" in text:
            assert "weights_only=True" in text, path
