"""Captions that an engine of few words cannot mean are told before the first image of them.

    captions --the engine's word list--> unknown ones --most?--> refused, with the ways out

`pocket:` was taught some things and makes an image of one of them from any other word: most of the
captions being such is refused. `procedural:` has a body plan for some nouns, and draws any other
word as a thing of its own, alike in all views: that is told, since a view is still a positive of
another, but no image shows what the word means. A model of millions of images has no such list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synclr_cli import console
from synclr_cli.config import RenderEngineConfig
from synclr_cli.errors import UsageError

ALLOW = "allow_unknown"  # option of pocket:
CAPTIONS = 8192  # that are looked at, from the first on


def require_known(config: RenderEngineConfig, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse captions most of which pocket: cannot mean; warn of those that procedural: cannot.

    Args:
        rows: captions and concepts.

    Raises:
        UsageError: most are unknown to it.
    """
    scheme, _, target = config.name.partition(":")
    if scheme == "pocket":
        from synclr_cli.render.engines.pocket.known import WORDS, Known

        path = Path(target).expanduser().with_name(WORDS.name) if target else WORDS
        known = Known(path)
        unknown = [row for row in rows if not known.names_one(row["caption"])]
        words = f"{len(known.things)} things ({', '.join(known.things)})"
    elif scheme == "procedural":
        from synclr_cli.render.engines.procedural import species

        # Captions of others may come without a concept: nothing is claimed of them.
        unknown = [row for row in rows if row["concept"] and not species.is_known(row["concept"])]
        words = f"{species.KNOWN} nouns"
    else:
        return
    if not unknown:
        return
    example = str(unknown[0]["concept"] or unknown[0]["caption"])
    told = (
        f"{scheme}: knows {words}; {len(unknown)} of {len(rows)} captions name none of them, such"
        f" as {example}"
    )
    if scheme == "procedural":
        console.warn(f"{told}, which it draws as a thing of its own")
    elif 2 * len(unknown) > len(rows) and not config.options.get(ALLOW):
        raise UsageError(
            told,
            do="use a model that does: --engine diffusers:ORG/MODEL or server:URL; or go on with"
            f" images of something else: --set 'render.engine.options={{{ALLOW} = true}}'",
        )
