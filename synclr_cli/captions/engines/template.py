"""`template:`: captions by rule, with no language model.

    concept, hypernym, relation or background --grammar--> one sentence

The paper's own baseline without a language model puts concept, hypernym and place together
(Table 2: 78.7 ImageNet linear, 83.0 mean of nine sets, against 78.8 and 88.1 with one). Here a
small grammar does, so the sentences also vary in view, light and verb. Deterministic: the row's
seed picks every part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from synclr_cli import __version__
from synclr_cli.captions.concepts import plain_name
from synclr_cli.config import CaptionEngineConfig
from synclr_cli.engines import CaptionEngine, Prompt
from synclr_cli.errors import UsageError


class TemplateEngine(CaptionEngine):
    """Fills a grammar; the sampling settings do not touch it."""

    revision = f"synclr {__version__}"

    def __init__(self, target: str, config: CaptionEngineConfig):
        del config  # nothing is sampled
        if target:
            raise UsageError("engine template:", got=repr(target), expected="nothing after it")

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        """Return one sentence per prompt."""
        return [_sentence(p, s) for p, s in zip(prompts, seeds, strict=True)]


def _sentence(prompt: Prompt, seed: int) -> str:
    # The seed is read as digits of a mixed-radix number: each choice divides it down. With 63 bits
    # and at most 2^30 sentences per prompt every choice is as good as uniform.
    name = plain_name(prompt.concept)
    if prompt.template == "c_bg":
        patterns, extra = _BACKGROUND, prompt.companion
    elif prompt.template == "c_rel":
        landmarks = _LANDMARKS.get(prompt.companion, _ANYWHERE)
        seed, n = divmod(seed, len(landmarks))
        patterns, extra = _RELATION, f"{prompt.companion} {landmarks[n]}"
    else:
        patterns, extra = _ALONE[prompt.kind], ""
    seed, n = divmod(seed, len(patterns))
    pattern = patterns[n]
    seed, view = divmod(seed, len(_VIEWS))
    seed, light = divmod(seed, len(_LIGHTS))
    seed, look = divmod(seed, len(_LOOKS))
    thing = with_article(name)
    # The hypernym, as in the paper's baseline, every fourth time.
    if seed % 4 == 0 and prompt.template != "c_rel" and _singular(prompt.gloss, name):
        thing = f"{thing}, {with_article(prompt.gloss)},"
        pattern = patterns[n - n % 2]  # the even patterns read well with an apposition
    text = pattern.format(
        thing=thing,
        name=name,
        extra=with_article(extra) if prompt.template == "c_bg" else extra,
        view=_VIEWS[view],
        light=_LIGHTS[light],
        look=_LOOKS[look],
    )
    text = text.replace(",,", ",").rstrip(",")
    return f"{text[0].upper()}{text[1:]}."


def _singular(gloss: str, name: str) -> bool:
    return bool(gloss) and gloss[-1] != "s" and gloss.lower() not in name.lower()


@lru_cache(maxsize=1 << 16)
def with_article(noun: str) -> str:
    """Return a noun phrase with the indefinite article it takes, if any."""
    first = noun.split(maxsplit=1)[0]
    if first.lower() in ("a", "an", "the"):
        return noun
    last = noun.rsplit(maxsplit=1)[-1].lower()
    if last.endswith("s") and not last.endswith(("ss", "us", "is", "'s")):
        return noun  # a plural
    # "BMW" is said letter by letter.
    spelled = first.isupper() and not _VOWELED_ACRONYM.match(first)
    an = _AN_LETTER.match(first) if spelled else _AN_WORD.match(first.lower())
    return f"{'an' if an else 'a'} {noun}"


_AN_LETTER = re.compile(r"[AEFHILMNORSX]")
_AN_WORD = re.compile(
    r"(?!uni|use|usu|eu|one\b|u[bct][aei]|ewe)[aeiou8]|11\b|18\b|hour|heir|honest"
)
_VOWELED_ACRONYM = re.compile(r"[A-Z]*[BCDFGHJKLMNPQRSTVWXZ][AEIOU][BCDFGHJKLMNPQRSTVWXZ]")

_VIEWS = (
    "a photo of", "a close-up of", "a wide shot of", "a sharp picture of", "a side view of",
    "a detailed photo of", "a candid shot of", "a low-angle view of",
    "a picture taken from above of", "a grainy snapshot of", "a view from behind of",
    "a telephoto shot of",
)  # fmt: skip
_LIGHTS = (
    "in the soft light of morning", "at dusk", "under a grey sky", "in bright sunshine",
    "in warm golden light", "on a rainy day", "in the cold light of winter",
    "at night under a lamp", "in the shade", "with long evening shadows", "through a light fog",
    "under a deep blue sky", "in front of a plain white wall", "against a dark background",
    "with green leaves out of focus",
    "lit from the side",
)  # fmt: skip
_LOOKS = (
    "small", "large", "weathered", "red", "pale", "dark", "yellow", "brown", "white", "blue-grey",
    "bright", "solitary", "black", "reddish", "green", "dusty", "shiny", "old", "typical", "orange",
)  # fmt: skip

# Even numbers are the patterns that may carry "a whippet, a slender dog".
_ALONE = {
    "object": (
        "{view} {thing} {light}", "{thing} that looks {look} {light}",
        "{view} {thing} that fills the frame", "two views of one {look} {name} {light}",
        "{view} {thing} beside a person for scale", "one {look} {name} {light}",
        "{view} {thing} with nothing else around", "half of the picture is {thing}, {light}",
    ),
    "place": (
        "{view} {thing} {light}", "an empty {name} {light}",
        "{view} {thing} with a few people passing through", "a busy {name} {light}",
        "{view} {thing} seen from the entrance", "the {look} corner of {thing} {light}",
    ),
    "texture": (
        "{view} a {name} surface {light}", "a {look} {name} pattern {light}",
        "{view} {name} fabric filling the frame", "a {name} wall in {look} tones {light}",
        "{view} something {name} at arm's length", "macro shot of a {look} {name} texture {light}",
    ),
}  # fmt: skip
_BACKGROUND: tuple[str, ...] = (
    "{view} {thing} with {extra} behind it",
    "one {look} {name} against the backdrop of {extra} {light}",
    "{view} {thing}, the setting {extra} {light}", "{extra} {light}, and in it one {look} {name}",
    "{view} {thing} in the setting of {extra}", "the {look} {name} stands out from {extra} {light}",
)  # fmt: skip
_RELATION: tuple[str, ...] = (
    "{view} {thing} {extra} {light}", "one {look} {name} {extra}",
    "{thing} can be seen {extra} {light}", "there is {thing} {extra} {light}",
    "{view} one {look} {name} {extra}", "a {look} {name} {extra} {light}",
)  # fmt: skip
_ANYWHERE = (
    "a wooden bench", "an old bicycle", "a stone wall", "a tall oak tree", "a red brick house",
    "a parked car", "a row of flower pots", "a stack of books", "a garden fence", "a blue door",
    "a lamp post", "a kitchen table", "a pile of firewood", "a white tent", "a hedge",
)  # fmt: skip
_LANDMARKS = {
    "in": (
        "a wicker basket", "a cardboard box", "a shop window", "a wheelbarrow",
        "a large glass bowl", "a patch of tall grass", "a wooden crate", "a net",
        "a courtyard", "a picture frame",
    ),
    "on": (
        "a wooden table", "a flat rock", "a checked blanket", "a stone wall", "a low shelf",
        "a gravel path", "a green lawn", "a concrete floor", "a metal tray", "a sandy beach",
    ),
    "over": (
        "a calm lake", "a green field", "a row of rooftops", "a stony river", "a dirt road",
        "a low fence", "a table set for two", "a crowd of people",
    ),
    "above": (
        "a fireplace", "a row of rooftops", "a line of trees", "a shop door", "a pond", "a doorway",
        "a sleeping dog", "a bed of tulips",
    ),
    "under": (
        "a large umbrella", "a wooden table", "a stone bridge", "an old chestnut tree",
        "a striped awning", "a street lamp", "a parked truck", "a string of lights",
    ),
    "below": (
        "a balcony", "a window", "a hanging lamp", "a steep cliff", "a tall ladder", "a painting",
        "a wooden pier", "a row of shelves",
    ),
}  # fmt: skip
