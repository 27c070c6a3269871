"""The estimate as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_BYTES = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_UNITS = {"captions": "captions", "render": "images"}


def rows(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of what `run` returned."""
    source = "measured here" if plan["measured"] else "by its data sheet"
    yield "machine", f"{plan['gpus']} x {plan['gpu']}, {source}"
    for name, unit in _UNITS.items():
        if stage := plan.get(name):
            disk = f"{count(stage['rows'])} {unit}, {size(stage['bytes'])}"
            yield name, f"{disk} in {count(stage['parts'])} parts; {_time(stage)}"
    if stage := plan.get("train"):
        work = f"{count(stage['steps'])} steps of {stage['seconds_per_step']:.3g} s"
        yield "train", f"{work}, {stage['epochs']:.3g} epochs; {_time(stage)}"
        yield "  disk", f"{size(stage['bytes'])}; reads {size(stage['read_bytes_per_s'])}/s"
    for name, needs in plan["memory"].items():
        if isinstance(needs, Mapping) and needs:
            parts = {key: value for key, value in needs.items() if key != "total"}
            words = ", ".join(f"{k.replace('_', ' ')} {size(v)}" for k, v in parts.items() if v)
            yield f"memory, {name}", f"{size(sum(parts.values()))} a GPU: {words}"
    total = plan["total"]
    price = "" if total["price"] is None else f", price {total['price']:,.0f}"
    without = f"; without {' and '.join(total['without'])}" if total["without"] else ""
    spent = f"{duration(total['hours'])}, {count(round(total['gpu_hours']))} GPU hours{price}"
    yield "total", f"{spent}, {size(total['bytes'])}{without}"
    for problem in plan["problems"]:
        yield "does not fit", f"{problem['what']}. Try {problem['do']}"


def size(number: float) -> str:
    """Return bytes as people say them: 24.1 TB."""
    for unit, name in _BYTES:
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f} B"


def duration(hours: float) -> str:
    """Return hours as people say them."""
    if hours < 1 / 60:
        return f"{hours * 3600:.2g} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    if hours < 72:
        return f"{hours:.1f} h"
    days = hours / 24
    return f"{days:.0f} days" if days < 1000 else f"{days / 365:,.0f} years"


def count(number: int) -> str:
    """Return a count with its thousands apart."""
    return f"{number:,}".replace(",", " ")


def _time(stage: Mapping[str, Any]) -> str:
    if stage["hours"] is None:
        return "hours unknown without --measure"
    bound = stage["bound"]
    return f"{duration(stage['hours'])}, {bound if bound == 'measured' else f'{bound} bound'}"
