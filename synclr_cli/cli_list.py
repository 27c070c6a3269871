"""The commands that list what there is to choose from: presets, concept sources, engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from synclr_cli import console, engines as engine_table, presets as preset_files
from synclr_cli.cli_options import LIST, app

EXAMPLES = 3  # concepts shown of a source


@app.command(rich_help_panel=LIST, epilog="Example: synclr presets")
def presets() -> None:
    """List the shipped presets; each is a whole recipe for `--preset`."""
    rows = []
    for name in preset_files.names():
        first = (preset_files.folder() / f"{name}.toml").read_text(encoding="utf-8").split("\n")[0]
        rows.append({"preset": name, "recipe": first.strip("# ")})
    _show("presets", rows)


@app.command(rich_help_panel=LIST, epilog="Example: synclr concepts")
def concepts() -> None:
    """List the sources of concepts that `synclr captions --concepts` knows by name."""
    from synclr_cli.captions import concepts as sources

    rows: list[dict[str, str | int]] = []
    for name in sources.SOURCES:
        pool = sources.read(name)
        kinds = ", ".join(f"{kind}s" for kind in dict.fromkeys(pool.kinds))
        examples = ", ".join(map(sources.plain_name, pool.names[:EXAMPLES]))
        rows.append({"source": name, "concepts": len(pool), "kinds": kinds, "examples": examples})
    _show("concepts", rows)


@app.command(rich_help_panel=LIST, epilog="Example: synclr engines")
def engines() -> None:
    """List the engines for captions and images, and how to install what some of them need."""
    rows: list[dict[str, str | int]] = [
        {
            "engine": f"{engine.scheme}:",
            "makes": f"{kind}s",
            "meaning": engine.meaning,
            "usable": not engine.install,
            "install": engine.install,
        }
        for kind in ("caption", "image")
        for engine in engine_table.listed(kind)
    ]
    _show("engines", rows)


def _show(name: str, rows: Sequence[Mapping[str, str | int]]) -> None:
    """Write the rows: a table on a terminal, else one JSON object."""
    words = {True: "yes", False: "no"}
    lines = [
        [words[value] if isinstance(value, bool) else str(value) for value in row.values()]
        for row in rows
    ]
    console.result_table({name: rows}, [list(rows[0]), *lines])
