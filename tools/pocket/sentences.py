"""The words `pocket:` is taught: CIFAR-10's things, their colours, and where they stand.

    class, colour, ground --captions()--> sentences    sentence --read()--> the same three

Written by us. Nouns of `UNSEEN` are never trained on: they tell whether a new word finds its class.
"""

from __future__ import annotations

import itertools
import random
import re

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

NOUNS = {
    "airplane": (
        "airplane", "plane", "jet", "airliner", "fighter jet", "biplane", "propeller plane",
        "passenger jet", "glider", "jumbo jet", "aircraft", "light aircraft", "warplane",
    ),
    "automobile": (
        "car", "automobile", "sedan", "hatchback", "convertible", "sports car", "station wagon",
        "coupe", "taxi", "vintage car", "racing car", "limousine", "saloon car",
    ),
    "bird": (
        "bird", "sparrow", "robin", "ostrich", "emu", "owl", "parrot", "finch", "duck", "songbird",
        "cassowary", "wren", "pigeon", "chick",
    ),
    "cat": (
        "cat", "kitten", "tabby", "tomcat", "house cat", "Persian cat", "Siamese cat", "tabby cat",
        "pussycat", "alley cat", "young cat", "longhaired cat",
    ),
    "deer": (
        "deer", "stag", "doe", "fawn", "elk", "moose", "reindeer", "roe deer", "buck", "caribou",
        "young deer", "antelope",
    ),
    "dog": (
        "dog", "puppy", "hound", "terrier", "spaniel", "poodle", "retriever", "bulldog",
        "Chihuahua", "beagle", "sheepdog", "pug", "Pekinese", "Labrador",
    ),
    "frog": (
        "frog", "toad", "tree frog", "bullfrog", "treefrog", "pond frog", "leopard frog",
        "poison dart frog", "common frog", "little frog",
    ),
    "horse": (
        "horse", "pony", "stallion", "mare", "foal", "racehorse", "colt", "draft horse",
        "carthorse", "thoroughbred", "Shetland pony", "bronco",
    ),
    "ship": (
        "ship", "boat", "ferry", "cargo ship", "freighter", "oil tanker", "sailing ship", "yacht",
        "warship", "cruise ship", "tugboat", "container ship", "speedboat", "ocean liner",
    ),
    "truck": (
        "truck", "lorry", "fire engine", "dump truck", "semi-trailer truck", "tow truck",
        "delivery truck", "tank truck", "box truck", "garbage truck", "fire truck",
        "articulated lorry", "moving van",
    ),
}  # fmt: skip
UNSEEN = {
    "airplane": ("bomber", "jetliner"),
    "automobile": ("roadster", "limo"),
    "bird": ("thrush", "heron"),
    "cat": ("moggy", "Burmese cat"),
    "deer": ("muntjac", "mule deer"),
    "dog": ("collie", "dachshund"),
    "frog": ("natterjack", "spring peeper"),
    "horse": ("gelding", "steed"),
    "ship": ("trawler", "destroyer"),
    "truck": ("tipper lorry", "haulage truck"),
}

COLOURS = {
    "red": ("red", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green",),
    "blue": ("blue",),
    "brown": ("brown", "tan"),
    "black": ("black",),
    "white": ("white",),
    "grey": ("grey", "gray"),
}

# A ground is the colour around the thing. Each phrase fits the classes named, or all.
_FLOATS, _FLIES = ("ship", "bird", "frog"), ("airplane", "bird")
_WALKS = ("bird", "cat", "deer", "dog", "frog", "horse")
_ROLLS = ("automobile", "truck", "airplane")
_LIVES = (*_WALKS, "automobile", "truck")
GROUNDS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "green": (
        ("on the grass", CLASSES), ("in a green meadow", _LIVES), ("on a lawn", _LIVES),
        ("among green leaves", _WALKS), ("in a green field", (*_LIVES, "airplane")),
        ("with green behind it", CLASSES), ("at the edge of a forest", CLASSES),
        ("on green water", ("ship",)),
    ),
    "blue": (
        ("against a blue sky", CLASSES), ("under a clear blue sky", CLASSES),
        ("with blue behind it", CLASSES), ("on blue water", _FLOATS),
        ("on the open sea", ("ship",)), ("high in the sky", _FLIES),
        ("in front of a blue wall", (*_LIVES,)),
    ),
    "white": (
        ("on a white background", CLASSES), ("in the snow", _LIVES),
        ("in front of a white wall", _LIVES), ("on a plain white ground", CLASSES),
        ("under a white sky", CLASSES), ("in white clouds", _FLIES),
    ),
    "black": (
        ("in the dark", CLASSES), ("at night", CLASSES), ("on a black background", CLASSES),
        ("in deep shadow", CLASSES),
    ),
    "brown": (
        ("on sand", CLASSES), ("on dry ground", CLASSES), ("on a dirt track", (*_LIVES,)),
        ("on a wooden floor", ("cat", "dog", "frog")), ("with brown behind it", CLASSES),
        ("in dry autumn grass", _WALKS), ("on brown water", ("ship",)),
        ("in a desert", (*_LIVES, "airplane")),
    ),
    "grey": (
        ("on the road", _ROLLS), ("on grey concrete", CLASSES), ("in the fog", CLASSES),
        ("on a gravel yard", _LIVES), ("against a grey wall", _LIVES),
        ("under a grey sky", CLASSES), ("on grey water", ("ship", "bird")),
        ("on the pavement", _LIVES),
    ),
}  # fmt: skip

# {thing} is "red kitten"; {ground} a phrase of above.
_WITH_GROUND = (
    "A {thing} {ground}.", "A photo of a {thing} {ground}.", "a {thing} {ground}",
    "A small picture of a {thing} {ground}.", "There is a {thing} {ground}.",
    "One {thing} {ground}, seen from the side.", "A {thing} {ground}, in daylight.",
    "Close-up of a {thing} {ground}.", "The {thing} is {ground}.", "A {thing} waits {ground}.",
    "A single {thing} {ground}, facing the camera.", "A {thing} seen from afar {ground}.",
)  # fmt: skip
_WITHOUT = (
    "A {thing}.", "A photo of a {thing}.", "a {thing}", "Close-up of a {thing}.",
    "A picture of a single {thing}.", "A {thing} seen from the side.",
    "A {thing} facing the camera.", "The {thing} stands still.", "One {thing}, nothing else.",
    "An old photograph of a {thing}.",
)  # fmt: skip


def captions(kind: str, colour: str, ground: str, count: int, seed: int = 0) -> list[str]:
    """Return at most `count` sentences for a class, a colour ("" for none) and a ground ("")."""
    draw = random.Random(f"{seed} {kind} {colour} {ground}")
    phrases = [phrase for phrase, fits in GROUNDS.get(ground, ()) if kind in fits]
    made: dict[str, None] = {}
    for _ in range(count * 4):
        noun = draw.choice(NOUNS[kind])
        thing = f"{draw.choice(COLOURS[colour])} {noun}" if colour else noun
        form = draw.choice(_WITH_GROUND if ground else _WITHOUT)
        text = form.format(thing=thing, ground=draw.choice(phrases) if phrases else "")
        made[_article(text)] = None
        if len(made) == count:
            break
    return list(made)


def _article(text: str) -> str:
    return re.sub(r"\b([Aa]) (?=[aeioAEIO]|un)", r"\1n ", text)


# What a ground is called in free text, for captions that a language model wrote.
_GROUND_WORDS = {
    "green": "grass grassy meadow lawn field forest leaves garden jungle park pasture bush moss",
    "blue": "sky sea ocean water lake harbour harbor bay waves river pond sailing flying",
    "white": "snow snowy clouds ice icy winter",
    "black": "night dark darkness midnight shadow moonlight dusk",
    "brown": "sand sandy beach desert dirt dusty mud muddy wooden floor barn hay autumn rug soil",
    "grey": "road street concrete pavement fog foggy runway tarmac mist misty city gravel rain",
}
_GROUND_OF = {word: ground for ground, words in _GROUND_WORDS.items() for word in words.split()}
_COLOUR_OF = {word: colour for colour, words in COLOURS.items() for word in words}
_KIND_OF = {noun.lower(): kind for kind, nouns in NOUNS.items() for noun in nouns}
_LONGEST_FIRST = sorted(_KIND_OF, key=len, reverse=True)
_NOUN = re.compile(r"\b(" + "|".join(map(re.escape, _LONGEST_FIRST)) + r")s?\b")


def read(text: str) -> tuple[str, str, str] | None:
    """Return (class, colour, ground) of a free sentence; None if it is not about one class.

    A colour counts where it stands right before the thing; a sentence that gives a colour to
    something else is refused, since the image may not have it.
    """
    lowered = text.lower()
    nouns = list(_NOUN.finditer(lowered))
    if len({_KIND_OF[n.group(1)] for n in nouns}) != 1:
        return None
    kind = _KIND_OF[nouns[0].group(1)]
    before = [word.strip(",") for n in nouns for word in lowered[: n.start()].split()[-2:]]
    close = {_COLOUR_OF[word] for word in before if word in _COLOUR_OF}
    words = re.findall(r"[a-z]+", lowered)
    if {_COLOUR_OF[w] for w in words if w in _COLOUR_OF} != close or len(close) > 1:
        return None
    colour = next(iter(close), "")
    around = re.findall(r"[a-z]+", _NOUN.sub("-", lowered))  # a pond frog is no pond
    grounds = [
        _ground(*pair) for pair in itertools.pairwise(["", *around]) if pair[1] in _GROUND_OF
    ]
    return kind, colour, grounds[0] if grounds else ""


def _ground(before: str, word: str) -> str:
    colour = _COLOUR_OF.get(before, "")  # "under a grey sky"
    return colour if colour in GROUNDS else _GROUND_OF[word]
