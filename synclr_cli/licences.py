"""Licences of the models that make captions and images, as far as they are known here.

    engine name -> the model's own card in a local folder, or the table below -> `Licence`

What this says is a pointer, not advice: the licence's text decides.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Licence(NamedTuple):
    """What a model may be used for."""

    name: str  # as its card has it; "" where it is not known
    limits: str = ""  # what it forbids that matters here; "": nothing known

    @property
    def text(self) -> str:
        """Return the licence as one line."""
        return (self.name or "not known") + (f" ({self.limits})" if self.limits else "")


_FLUX = "non-commercial use only, and images may not train a competing model"
_STABILITY = "commercial use depends on your revenue, and images may not train a competing model"
_SANA = "its card names NSCL v2-custom too, and Gemma's terms for its text encoder"
_OPENRAIL = Licence("creativeml-openrail-m")
_APACHE = Licence("apache-2.0")
# The front of a hub id, in lower case -> its licence. From the models' cards, November 2026.
KNOWN = {
    "stable-diffusion-v1-5/": _OPENRAIL,
    "compvis/stable-diffusion": _OPENRAIL,
    "stabilityai/stable-diffusion-xl-base-1.0": Licence("openrail++"),
    "stabilityai/stable-diffusion-3": Licence("stabilityai-community", _STABILITY),
    "stabilityai/sd-turbo": Licence("stabilityai-community", _STABILITY),
    "stabilityai/sdxl-turbo": Licence("stabilityai-community", _STABILITY),
    "black-forest-labs/flux.1-schnell": _APACHE,
    "black-forest-labs/flux.2-klein-4b": _APACHE,
    "black-forest-labs/flux.2-klein-base-4b": _APACHE,
    "black-forest-labs/": Licence("flux-non-commercial", _FLUX),  # dev, klein 9B
    "efficient-large-model/sana": Licence("nvidia-open-model-license", _SANA),
    "tongyi-mai/z-image": _APACHE,
    "qwen/qwen-image": _APACHE,
    "qwen/qwen3": _APACHE,
    "huggingfacetb/smollm": _APACHE,
    "google/gemma": Licence("gemma", "use as its prohibited-use policy allows"),
    "meta-llama/llama-2": Licence("llama2", "its text may not improve another language model"),
    "meta-llama/": Licence("llama", "models made with its text carry Llama in their name"),
}
# Licence names of cards that forbid commercial use: cc-by-nc-4.0, flux-1-dev-non-commercial ...
_NONCOMMERCIAL = re.compile(r"(^|[-_ ])(nc|noncommercial)([-_ ]|$)|non-?commercial|research-only")
_OWN = {"pocket", "procedural", "template"}


def of(engine: str) -> Licence:
    """Return the licence of the model that an engine's name says."""
    scheme, _, target = engine.partition(":")
    if scheme in _OWN and not target:
        return _APACHE
    if scheme == "smollm2":
        return _APACHE
    if card := _card(target):
        return card
    fitting = [front for front in KNOWN if target.lower().startswith(front)]
    return KNOWN[max(fitting, key=len)] if fitting else Licence("")


def note(engine: str) -> str:
    """Return what to say at the start about a model whose licence has limits, or ""."""
    licence = of(engine)
    return f"{engine}: licence {licence.text}" if licence.limits else ""


def _card(target: str) -> Licence | None:
    """Return what the model card in a local folder says, if there is one."""
    path = Path(target).expanduser() / "README.md"
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if target else ""
    except OSError:
        return None
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    pairs = re.findall(r"^(license|license_name):\s*(\S+)\s*$", front[1], re.M) if front else []
    fields: dict[str, str] = dict(pairs)
    name = fields.get("license", "")
    if name == "other":
        name = fields.get("license_name", name)
    if not name:
        return None
    limits = "non-commercial use only" if _NONCOMMERCIAL.search(name.lower()) else ""
    return Licence(name.strip("'\""), limits)
