"""The structure: layers, what folders import, how long modules and functions may be.

    cli -> commands -> learning -> data -> trunk

Commands meet in files only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import synclr_cli

PACKAGE = Path(synclr_cli.__file__).parent
COMMANDS = {
    "captions", "render", "import_", "train", "linear_probe", "finetune", "segment", "embed",
    "export", "plan", "push", "show",
}  # fmt: skip
# Modules beside the folders that belong to the command line; the others are the trunk.
CLI = {
    "__init__", "__main__", "api", "cli", "cli_evaluate", "cli_list", "cli_look", "cli_make",
    "cli_options", "cli_plan", "compare", "evaluate", "quickstart",
}  # fmt: skip
LAYER = {"trunk": 0, "data": 1, "learning": 2, **dict.fromkeys(COMMANDS, 3), "cli": 4}

# Which folder imports which: a new pair is a decision, written down here.
PAIRS = {
    "cli": {"captions", "data", "embed", "export", "import_", "learning", "linear_probe", "plan",
            "push", "render", "show", "train", "trunk"},
    "captions": {"data", "learning", "trunk"},
    "render": {"data", "learning", "trunk"},
    "import_": {"data", "trunk"},
    "train": {"data", "learning", "trunk"},
    "linear_probe": {"data", "learning", "trunk"},
    "finetune": {"data", "learning", "trunk"},
    "segment": {"data", "learning", "trunk"},
    "embed": {"data", "learning", "trunk"},
    "export": {"data", "learning", "trunk"},
    "plan": {"learning", "trunk"},
    "push": {"data", "trunk"},
    "show": {"data", "learning", "trunk"},
    "learning": {"data", "trunk"},
    "data": {"trunk"},
}  # fmt: skip

MODULE_LINES, FUNCTION_LINES = 400, 60
# Too long today. These lists may only shrink: nothing is added, no number is raised.
LONG_MODULES: dict[str, int] = {}
LONG_FUNCTIONS = {
    "captions/concepts.py read": 62,
    "data/labelled.py open_data": 62,
    "quickstart.py run": 91,
    "render/engines/pocket/pipeline.py __call__": 63,
    "render/report.py report": 67,
    "train/run.py run": 80,
}

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Return every module's dotted name, without the package's, and its file."""
    files = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(f.relative_to(PACKAGE).with_suffix("").parts) for f in files]
    return {n.removesuffix(".__init__"): f for n, f in zip(names, files, strict=True)}


def imported(path: Path, known: Mapping[str, Path], *, top_level_only: bool = False) -> set[str]:
    """Return our own modules that a file imports, functions included unless `top_level_only`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name.removeprefix("synclr_cli.") for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module.split(".")[0] != "synclr_cli":
                continue
            base = node.module.removeprefix("synclr_cli").lstrip(".")
            for a in node.names:
                name = f"{base}.{a.name}".lstrip(".")
                names.add(name if name in known else base)
    return {n for n in names if n in known and n not in ("", "__init__")}


def import_graph(*, top_level_only: bool = False) -> Graph:
    known = modules()
    return {n: imported(f, known, top_level_only=top_level_only) - {n} for n, f in known.items()}


def room(module: str) -> str:
    """Return the folder a module lies in; `cli` or `trunk` for those in none."""
    first = module.split(".")[0]
    if first in LAYER and first != "cli":
        return first
    return "cli" if first in CLI else "trunk"


def room_graph(graph: Graph) -> Graph:
    rooms: Graph = {}
    for module, others in graph.items():
        rooms.setdefault(room(module), set()).update(map(room, others))
    return {r: others - {r} for r, others in rooms.items() if others - {r}}


def circles(graph: Graph) -> set[str]:
    """Return the nodes that lie on a circle: what is left when ends are cut off again and again."""
    left = {n: set(others) for n, others in graph.items()}
    while True:
        ends = {n for n in left if not left[n] & left.keys()}
        starts = left.keys() - set().union(*left.values()) if left else set()
        if not ends | starts:
            return set(left)
        left = {n: others for n, others in left.items() if n not in ends | starts}


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.relative_to(PACKAGE).as_posix()} {node.name}", node


def test_the_search_for_circles_finds_one() -> None:
    straight = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert circles(straight) == set()
    assert circles(straight | {"c": {"b"}}) == {"b", "c"}


def test_no_module_imports_one_that_imports_it_nor_any_folder_another_so() -> None:
    graph = import_graph()
    assert circles(graph) == set()
    assert circles(room_graph(graph)) == set()


def test_imports_go_downwards_only_and_no_command_imports_another() -> None:
    upward = [
        f"{module} -> {other}"
        for module, others in import_graph().items()
        for other in others
        if room(other) != room(module) and LAYER[room(other)] >= LAYER[room(module)]
    ]
    assert upward == []


def test_folders_import_what_is_written_down() -> None:
    assert room_graph(import_graph()) == PAIRS


def test_the_command_line_imports_commands_and_torch_only_when_they_run() -> None:
    for module, others in import_graph(top_level_only=True).items():
        if room(module) in ("cli", "trunk"):
            assert not {room(o) for o in others} & (COMMANDS | {"learning"}), module


def test_data_needs_no_torch() -> None:
    for path in (PACKAGE / "data").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = [a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names]
        top += [n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.module]
        assert not [m for m in top if m.split(".")[0] in ("torch", "torchvision")], path


def test_no_module_is_longer_than_four_hundred_lines() -> None:
    for path in modules().values():
        name = path.relative_to(PACKAGE).as_posix()
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= LONG_MODULES.get(name, MODULE_LINES), f"{name} has {lines} lines"


def test_no_function_is_longer_than_sixty_lines() -> None:
    for name, node in functions():
        assert node.end_lineno is not None
        lines = node.end_lineno - node.lineno + 1
        assert lines <= LONG_FUNCTIONS.get(name, FUNCTION_LINES), f"{name} has {lines} lines"


def test_the_training_loop_fits_a_page() -> None:
    """`run` of train/run.py: 60 lines of code below the docstring, 40 of them in the loop."""
    (run,) = [node for name, node in functions() if name == "train/run.py run"]
    source = (PACKAGE / "train" / "run.py").read_text(encoding="utf-8").splitlines()

    def code(first: ast.stmt, last: ast.stmt) -> int:
        assert last.end_lineno is not None
        lines = [line.strip() for line in source[first.lineno - 1 : last.end_lineno]]
        return len([line for line in lines if line and not line.startswith("#")])

    (loop,) = [n for n in ast.walk(run) if isinstance(n, ast.For) and len(n.body) > 5]
    assert code(run.body[1], run.body[-1]) <= 60
    assert code(loop.body[0], loop.body[-1]) <= 40


def test_only_runtime_imports_torch_distributed() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path != PACKAGE / "learning" / "runtime.py":
            assert "import torch.distributed" not in path.read_text(encoding="utf-8"), path
            assert "from torch.distributed" not in path.read_text(encoding="utf-8"), path
            assert "from torch import distributed" not in path.read_text(encoding="utf-8"), path


def test_nothing_is_pickled() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "torch.save(" not in text and "pickle.load" not in text, path
        if "torch.load(" in text:
            assert "weights_only=True" in text, path
