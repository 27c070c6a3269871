"""JSON of anybody's: one ValueError for what is none, too deep, or holds no finite number."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def parse(text: str | bytes) -> Any:
    """Return a JSON value.

    Raises:
        ValueError: it is none, is nested too deep, or holds NaN or an infinite number.
    """
    try:
        return json.loads(text, parse_constant=_refuse_number, parse_float=_finite)
    except RecursionError as e:
        raise ValueError("nested too deep") from e


def _refuse_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text[:20])
