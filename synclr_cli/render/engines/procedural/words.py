"""Read a caption: what of it a drawn image can show.

    "a small red fox next to a wooden crate on a beach", concept "red fox"
    -> colours red, size 0.7, relation "next to", companion "wooden crate", ground "beach"

caption -> lower-case words -> the clause of the concept | the clause behind a relation or
background word -> `Reading`. No parser and no model: word lists, and the nearest clause wins.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

# Colour word -> sRGB in 0..1.
COLOURS = {
    "red": (0.82, 0.09, 0.10), "crimson": (0.68, 0.05, 0.16), "scarlet": (0.90, 0.12, 0.08),
    "maroon": (0.42, 0.05, 0.10), "orange": (0.95, 0.48, 0.05), "amber": (0.95, 0.65, 0.10),
    "yellow": (0.96, 0.84, 0.10), "golden": (0.86, 0.66, 0.20), "gold": (0.86, 0.66, 0.20),
    "beige": (0.86, 0.78, 0.62), "cream": (0.96, 0.92, 0.78), "tan": (0.78, 0.62, 0.42),
    "brown": (0.42, 0.25, 0.12), "chestnut": (0.50, 0.24, 0.13), "bronze": (0.62, 0.42, 0.20),
    "green": (0.13, 0.58, 0.16), "olive": (0.44, 0.46, 0.12), "lime": (0.60, 0.86, 0.12),
    "emerald": (0.05, 0.56, 0.36), "teal": (0.05, 0.50, 0.50), "turquoise": (0.18, 0.78, 0.74),
    "cyan": (0.10, 0.80, 0.88), "blue": (0.11, 0.27, 0.82), "navy": (0.07, 0.11, 0.40),
    "azure": (0.25, 0.58, 0.95), "indigo": (0.26, 0.12, 0.58), "purple": (0.48, 0.14, 0.62),
    "violet": (0.55, 0.28, 0.82), "lavender": (0.74, 0.66, 0.92), "magenta": (0.85, 0.10, 0.62),
    "pink": (0.96, 0.52, 0.68), "rose": (0.90, 0.38, 0.50), "white": (0.94, 0.94, 0.93),
    "ivory": (0.95, 0.93, 0.84), "silver": (0.72, 0.74, 0.77), "gray": (0.50, 0.50, 0.51),
    "grey": (0.50, 0.50, 0.51), "charcoal": (0.22, 0.23, 0.25), "black": (0.07, 0.07, 0.08),
}  # fmt: skip

# Word -> ground family of grounds.py.
GROUNDS = {
    "beach": "beach", "sand": "beach", "shore": "beach", "coast": "beach", "dune": "desert",
    "desert": "desert", "savanna": "desert", "sea": "sea", "ocean": "sea", "water": "sea",
    "lake": "sea", "river": "sea", "pond": "sea", "pool": "sea", "stream": "sea", "harbor": "sea",
    "harbour": "sea", "bay": "sea", "reef": "deep", "underwater": "deep", "coral": "deep",
    "aquarium": "deep", "snow": "snow", "ice": "snow", "winter": "snow", "glacier": "snow",
    "arctic": "snow", "snowy": "snow", "grass": "meadow", "field": "meadow", "meadow": "meadow",
    "lawn": "meadow", "garden": "meadow", "park": "meadow", "pasture": "meadow", "farm": "meadow",
    "yard": "meadow", "backyard": "meadow", "prairie": "meadow", "hill": "meadow",
    "forest": "forest", "woods": "forest", "jungle": "forest", "rainforest": "forest",
    "tree": "forest", "trees": "forest", "woodland": "forest", "swamp": "forest",
    "mountain": "mountain", "mountains": "mountain", "cliff": "mountain", "valley": "mountain",
    "rock": "mountain", "rocks": "mountain", "canyon": "mountain", "street": "street",
    "road": "street", "city": "street", "town": "street", "highway": "street",
    "sidewalk": "street", "parking": "street", "urban": "street", "bridge": "street",
    "track": "street", "garage": "street", "airport": "street", "runway": "street",
    "kitchen": "tiles", "bathroom": "tiles", "hall": "tiles", "shop": "tiles", "store": "tiles",
    "market": "tiles", "museum": "tiles", "hospital": "tiles", "restaurant": "tiles",
    "room": "boards", "bedroom": "boards", "floor": "boards", "house": "boards",
    "office": "boards", "library": "boards", "studio": "plain", "background": "plain",
    "table": "table", "desk": "table", "counter": "table", "shelf": "table", "plate": "table",
    "bench": "table", "wall": "brick", "brick": "brick", "barn": "brick", "alley": "brick",
    "sky": "sky", "clouds": "sky", "cloud": "sky", "air": "sky", "night": "night",
    "stage": "night", "space": "night", "cave": "night", "carpet": "cloth", "rug": "cloth",
    "bed": "cloth", "sofa": "cloth", "couch": "cloth", "blanket": "cloth", "cloth": "cloth",
}  # fmt: skip

# Of these, the things one also stands beside: ground only behind "on", "in" and their like.
_ALSO_THINGS = {
    "table", "desk", "counter", "shelf", "plate", "bench", "carpet", "rug", "bed", "sofa", "couch",
    "blanket", "tree", "rock", "house", "barn", "cloud",
}  # fmt: skip

_ADVERBS = {"underwater", "snowy", "winter", "sky", "urban", "arctic"}

RELATIONS = {
    "in front of": "front", "next to": "beside", "on top of": "on", "besides": "beside",
    "beside": "beside", "near": "beside", "by": "beside", "behind": "behind", "above": "above",
    "over": "above", "below": "below", "beneath": "below", "under": "below",
    "underneath": "below", "inside": "in", "in": "in", "on": "on", "against": "in", "at": "in",
    "amid": "in", "among": "in", "across": "in", "through": "in", "along": "in", "beyond": "in",
}  # fmt: skip

SIZES = {
    "tiny": 0.55, "small": 0.7, "little": 0.7, "miniature": 0.6, "baby": 0.7, "distant": 0.55,
    "large": 1.25, "big": 1.25, "huge": 1.45, "giant": 1.5, "massive": 1.45, "close-up": 1.5,
}  # fmt: skip

COUNTS = {
    "two": 2, "pair": 2, "couple": 2, "both": 2, "three": 3, "trio": 3, "four": 4, "several": 4,
    "five": 5, "group": 4, "herd": 5, "flock": 5, "school": 5, "pile": 5, "row": 4, "bunch": 5,
}  # fmt: skip

LIGHTS = {
    "night": "night", "midnight": "night", "moonlit": "night", "dark": "night", "dusk": "dusk",
    "sunset": "dusk", "sunrise": "dusk", "dawn": "dusk", "evening": "dusk", "golden hour": "dusk",
    "foggy": "fog", "misty": "fog", "fog": "fog", "mist": "fog", "sunny": "sun", "bright": "sun",
    "sunlit": "sun", "sunlight": "sun", "cloudy": "overcast", "overcast": "overcast",
    "rainy": "overcast", "stormy": "overcast",
}  # fmt: skip

# Adjective -> surface pattern of species.py.
PATTERNS = {
    "striped": "stripes", "stripes": "stripes", "banded": "bands", "spotted": "spots",
    "dotted": "spots", "polka-dotted": "spots", "checkered": "checks", "chequered": "checks",
    "plaid": "checks", "marbled": "marble", "speckled": "speckle", "freckled": "speckle",
    "patchy": "patches", "wooden": "rings", "scaly": "scales", "plain": "plain",
}  # fmt: skip
FINISHES = {
    "shiny": "glossy", "glossy": "glossy", "polished": "glossy", "glass": "glossy", "wet": "glossy",
    "metal": "metal", "metallic": "metal", "steel": "metal", "chrome": "metal", "iron": "metal",
    "furry": "fur", "fluffy": "fur", "fuzzy": "fur", "hairy": "fur", "matte": "matte",
}  # fmt: skip

_FILLER = {
    "a", "an", "the", "of", "and", "its", "his", "her", "their", "some", "very", "is", "are", "was",
    "that", "with", "to", "it", "this", "being", "while", "as",
}  # fmt: skip
_WORD = re.compile(r"[a-z][a-z'-]*")


@dataclass(frozen=True)
class Reading:
    """What a caption asks for; None and empty where it says nothing."""

    colours: tuple[str, ...]  # of the concept
    count: int
    size: float  # relative
    pattern: str | None
    finish: str | None
    relation: str | None  # front | beside | behind | on | above | below | in
    companion: str  # name of the second object, "" if there is none
    companion_colours: tuple[str, ...]
    ground: str | None  # family
    ground_key: str  # words of an unknown background; hashed into a family
    ground_colours: tuple[str, ...]
    light: str | None


def hashed(*parts: str) -> int:
    """Return 64 bits that depend on the texts alone, alike on every machine and run."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def plain_name(concept: str) -> str:
    """Return a concept's first synonym, lower-case, words separated by single spaces."""
    first = concept.split(",")[0].replace("_", " ").lower()
    return " ".join(first.split())


def head_noun(name: str) -> str:
    """Return the word that says what kind of thing a name is: its last, before any "of"."""
    words = _WORD.findall(name.split(" of ")[0]) or [name]
    return words[-1]


def singular(word: str) -> str:
    """Return a plural's likely singular; other words as they are."""
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def read(caption: str, concept: str) -> Reading:
    """Read one caption about one concept."""
    name = plain_name(concept)
    text = " ".join(_WORD.findall(caption.replace("_", " ").lower()))
    at = _find(text, name)
    before, after = (text[:at], text[at + len(name) :]) if at >= 0 else ("", text)
    # A colour inside the name ("red fox") is asked for too.
    before_words, name_words = before.split(), name.split()
    about, clauses = _clauses(after)
    near = [*before_words, *name_words, *about]

    relation = companion = None
    companion_colours: tuple[str, ...] = ()
    ground = None
    ground_key = ""
    ground_colours: tuple[str, ...] = ()
    for kind, words in clauses:
        place = _place(kind, words)
        if place and ground is None:
            ground, ground_colours = place, _colours(words)
        elif place is None and kind in ("in",) and not ground_key:
            ground_key, ground_colours = " ".join(words), _colours(words)
        elif place is None and companion is None:
            relation, companion = kind, _noun(words)
            companion_colours = _colours(words)
    words = text.split()
    if ground is None and not ground_key:  # "swimming underwater", "a snowy ..."
        ground = next((GROUNDS[w] for w in words if w in _ADVERBS and w not in name_words), None)
    return Reading(
        colours=_colours(near),
        count=next((COUNTS[w] for w in before_words[-4:] if w in COUNTS), 1),
        size=next((SIZES[w] for w in before_words[-4:] if w in SIZES), 1.0),
        pattern=next((PATTERNS[w] for w in near if w in PATTERNS), None),
        finish=next((FINISHES[w] for w in near if w in FINISHES), None),
        relation=relation,
        companion=companion or "",
        companion_colours=companion_colours,
        ground=ground,
        ground_key=ground_key,
        ground_colours=ground_colours,
        light=next((LIGHTS[w] for w in words if w in LIGHTS), None),
    )


def _place(kind: str, words: list[str]) -> str | None:
    """Return the ground family a clause names, if it names one."""
    for word in words:
        for form in (word, singular(word)):
            thing = form in _ALSO_THINGS and kind not in ("on", "in")
            if form in GROUNDS and not thing:
                return GROUNDS[form]
    return None


def _find(text: str, name: str) -> int:
    """Return where the concept stands in the text, by full name or by its head noun, or -1."""
    for phrase in (name, head_noun(name)):
        match = re.search(rf"\b{re.escape(phrase)}", text)
        if match:
            return match.start() if phrase == name else max(match.end() - len(name), 0)
    return -1


def _clauses(after: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Split what follows the concept at relation words: (words before the first, clauses)."""
    pattern = "|".join(sorted(RELATIONS, key=len, reverse=True))
    pieces = re.split(rf"\b({pattern})\b", after)
    clauses = [
        (RELATIONS[kind], words.split())
        for kind, words in zip(pieces[1::2], pieces[2::2], strict=True)
        if words.split()
    ]
    return pieces[0].split(), clauses


def _colours(words: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(w for w in words if w in COLOURS))


def _noun(words: list[str]) -> str:
    """Return the last word of the first noun phrase, skipping articles and adjectives we know."""
    kept: list[str] = []
    for word in words:
        if word in _FILLER:
            if kept and word not in ("a", "an", "the"):
                break
            continue
        kept.append(word)
        if len(kept) == 3:
            break
    kept = [w for w in kept if w not in COLOURS and w not in SIZES] or kept
    return " ".join(kept[:2])
