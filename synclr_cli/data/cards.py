"""Cards in Hugging Face's form: what a folder holds, from what, by which models, made how.

    captions/, images/   _README.md, which `synclr push` sends as README.md: pyarrow takes every
                         file of a folder for Parquet whose name begins with neither _ nor .
    runs/x/              README.md

A card tells what the folder's header and its list of parts do, so the same folder has the same card
wherever and whenever it is made: no dates, no paths. The front matter is written here, not by
huggingface_hub's classes, which read it in the tests: importing them takes longer than many a job.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synclr_cli import config as configs, licences, presets
from synclr_cli.data import artifacts, describe, storage
from synclr_cli.data.artifacts import Header

if TYPE_CHECKING:
    from synclr_cli.data.manifest import PartFacts

FILE, RUN_FILE = "_README.md", "README.md"  # beside parts; in a run folder
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
          (10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))  # fmt: skip

_ABOUT = {
    "captions": (
        "Captions for generated images",
        "Sentences that a language model wrote for the concepts of a word list, to generate images"
        " from. Columns: caption_id, caption, concept, template (c: the concept alone, c_bg: with a"
        " background, c_rel: with a relation), companion, engine, seed, examples, weight.",
        "Words that the model got wrong are still in them; nobody has read them all. What the"
        " quality gate refused lies in `_rejected/`, with reasons.",
    ),
    "images": (
        "Images of captions",
        "Several images of each caption, for training in which the images of one caption are"
        " positives. Columns: caption_id, view, caption, concept, image, width, height, seed, mask,"
        " score.",
        "An image need not show what its caption says. They were generated or gathered to train"
        " backbones, and inherit what the models and the word list prefer and lack; they are no"
        " evidence of how anything looks.",
    ),
    "backbone": (
        "Vision transformer trained by SynCLR",
        "A ViT without a head, trained so that images of one caption have like features.",
        "Features, not decisions: what is built on them must be tested on images of its own use."
        " It knows what its captions named; runs on a laptop are far from the paper's grades.",
    ),
}  # fmt: skip


def write(
    folder: Path, header: Header, parts: Sequence[PartFacts], facts: Mapping[str, Any]
) -> None:
    """Write the card of a folder of captions or images that is about to be finished."""
    if header.schema not in ("captions", "images"):
        return
    totals = {
        "rows": sum(part.rows for part in parts),
        "captions": sum(part.captions for part in parts),
        "bytes": sum(part.bytes for part in parts),
        "parts": len(parts),
    }
    _write(folder / FILE, of_parts(header, totals, facts))


def write_run(folder: Path, header: Header, facts: Mapping[str, Any]) -> None:
    """Write the card of a training run that is about to be finished."""
    _write(folder / RUN_FILE, of_run(header, facts))


def of_parts(header: Header, totals: Mapping[str, int], facts: Mapping[str, Any]) -> str:
    """Return the card of captions or images.

    Args:
        totals: rows, captions, bytes and parts of the folder.
        facts: what its manifest tells of the whole.
    """
    kind = "image-feature-extraction" if header.schema == "images" else "text-to-image"
    front = (
        f"pretty_name: {_ABOUT[header.schema][0]}\ntask_categories:\n- {kind}\n"
        f"size_categories:\n- {_size_category(totals['rows'])}\ntags:\n- synclr\n- synthetic\n"
        "configs:\n- config_name: default\n  data_files: part-*.parquet\n"
    )
    told = {**totals, **{k: v for k, v in facts.items() if isinstance(v, str | int | float)}}
    read = 'from datasets import load_dataset\n\nrows = load_dataset("USER/NAME", split="train")'
    return f"---\n{front}---\n\n{_body(header, told, read)}"


def of_run(header: Header, facts: Mapping[str, Any], grades: str = "") -> str:
    """Return the card of a training run.

    Args:
        facts: of the backbone, steps and sizes.
        grades: a section of Markdown with what evaluations measured.
    """
    front = (
        "library_name: timm\npipeline_tag: image-feature-extraction\ntags:\n- synclr\n"
        "- self-supervised\n- synthetic\n"
    )
    told = {k: v for k, v in facts.items() if isinstance(v, str | int | float)}
    read = (
        "import timm\n\nmodel = timm.create_model(\n"
        '    "hf-hub:USER/NAME", pretrained=True, num_classes=0\n)  # features of the cls token\n\n'
        "from synclr_cli import load_backbone\n\n"
        'model, transform, header = load_backbone("hf://USER/NAME")'
    )
    return f"---\n{front}---\n\n{_body(header, told, read, grades)}"


def command(header: Header) -> str:
    """Return the command that makes the same again, from the preset that is nearest."""
    stage = artifacts.STAGE_OF[header.schema]
    if header.engine.startswith("import:"):
        return f"synclr import {_parent(header)}"
    known = configs.keys(stage)
    own = {k: v for k, v in header.config.items() if k in known}
    by_preset = {
        name: {k: v for k, v in own.items() if k not in values or values[k] != v}
        for name, values in _recipes(stage).items()
    }
    preset = min(by_preset, key=lambda name: (len(by_preset[name]), name))
    sets = [
        f"--set {shlex.quote(f'{stage}.{key}={presets.toml_value(_without_folders(value))}')}"
        for key, value in by_preset[preset].items()
    ]
    source = "" if stage == "captions" else _parent(header)
    return " ".join(part for part in ("synclr", stage, source, "--preset", preset, *sets) if part)


@functools.cache
def _recipes(stage: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the settings of every shipped preset that make a difference to what is made."""
    recipes = {}
    for name in presets.names():
        text = (presets.folder() / f"{name}.toml").read_text(encoding="utf-8")
        table = tomllib.loads(text).get(stage)  # without its comments: much faster
        if table is not None:
            values = dict(_flat(table, configs.keys(stage)))
            recipes[name] = configs.recipe(configs.build(stage, values))
    return recipes


def _flat(
    table: Mapping[str, Any], known: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield a preset's values by key path; an inline table that is one setting stays whole."""
    for key, value in table.items():
        if isinstance(value, dict) and prefix + key not in known:
            yield from _flat(value, known, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _without_folders(value: Any) -> Any:
    """Return a setting without the folders of this machine that a path in it begins with."""
    return re.sub(r"(?<![\w./~:-])/(?:[^/\s,:]+/)+", "", value) if isinstance(value, str) else value


def _parent(header: Header) -> str:
    return shlex.quote(str(header.parents[0]["name"])) if header.parents else ""


def _body(header: Header, told: Mapping[str, Any], read: str, more: str = "") -> str:
    title, about, limits = _ABOUT[header.schema]
    count = "\n".join(f"| {name.replace('_', ' ')} | {_text(v)} |" for name, v in told.items())
    chain = describe.chain_of(header.schema, json.loads(header.json()))
    models = "\n".join(
        f"| {schema} | `{engine}` | {revision or 'not told'} | {licences.of(engine).text} |"
        for schema, engine, revision in _engines(json.loads(header.json()))
    )
    sections = {
        "What it holds": f"|  |  |\n| --- | ---: |\n{count}",
        "How to read it": f"```python\n{read}\n```",
        "Grades": more,
        "Where it comes from": "```text\n" + "\n".join(chain) + "\n```",
        "Models that made it, and their licences": (
            f"| what | engine | revision | licence |\n| --- | --- | --- | --- |\n{models}\n\n"
            "The licence of a model may bind what is made with it; its text decides. None is"
            " declared for this folder itself: add `license:` above once you have chosen one."
            if models
            else ""
        ),
        "The command that makes it again": f"```sh\n{command(header)}\n```\n\n{header.made_by}",
        "Intended use and limits": limits,
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items() if text)
    return f"# {title}\n\n{about}\n\n{body}\n"


def _engines(header: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield schema, engine and revision of an artifact and its ancestors, each once."""
    if header.get("engine"):
        yield header["schema"], header["engine"], header.get("revision", "")
    for ancestor in header.get("parents", ()):
        if ancestor.get("header"):
            yield from _engines(ancestor["header"])


def _size_category(rows: int) -> str:
    return next((name for limit, name in _SIZES if rows < limit), "n>1T")


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _write(path: Path, text: str) -> None:
    with storage.atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
