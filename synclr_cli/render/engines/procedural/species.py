"""Concept -> species: the body plan, the genes and the surface that all its images share.

The head noun chooses the plan (a list of everyday words first, a hash for the rest) and, with the
full name, the genes: "fire truck" and "garbage truck" are both vehicles, and differ. Colours
and surroundings are only habits of the species: four views in five keep them, as photographs of one
thing do, the others wear any colour anywhere, so that these alone do not tell the concept.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from synclr_cli.render.engines.procedural import artefacts, creatures, plants
from synclr_cli.render.engines.procedural.bodies import Body, Parts, Rng, mix
from synclr_cli.render.engines.procedural.words import (
    COLOURS,
    Reading,
    hashed,
    head_noun,
    plain_name,
    singular,
)

PLANS: dict[str, Callable[[Rng, Rng], Body]] = {
    plan.__name__: plan
    for plan in (
        creatures.quadruped, creatures.bird, creatures.fish, creatures.insect, creatures.serpent,
        creatures.biped, artefacts.vehicle, artefacts.aircraft, artefacts.vessel,
        artefacts.furniture, artefacts.building, plants.tree, plants.flower, plants.fruit,
        artefacts.tool, artefacts.ring, plants.star, artefacts.gadget,
    )
}  # fmt: skip
PATTERN_NAMES = (
    "plain", "stripes", "bands", "spots", "checks", "marble", "speckle", "patches", "rings",
    "scales", "veins",
)  # fmt: skip
FINISH_NAMES = ("matte", "glossy", "metal", "fur")

_WORDS = {
    "quadruped": "dog cat horse cow sheep goat pig lion tiger bear wolf fox deer elephant zebra"
    " rabbit mouse rat retriever terrier hound shepherd spaniel poodle corgi puppy kitten leopard"
    " cheetah camel llama buffalo bison rhino rhinoceros hippopotamus giraffe donkey mule pony"
    " antelope gazelle badger otter beaver squirrel hamster lizard gecko iguana crocodile alligator"
    " turtle tortoise frog toad salamander dinosaur kangaroo panda moose elk setter pointer husky"
    " collie mastiff bulldog pug beagle boxer chihuahua tabby siamese persian lynx puma jaguar",
    "bird": "bird sparrow finch eagle hawk owl duck goose swan chicken rooster hen turkey parrot"
    " macaw cockatoo pigeon dove crow raven jay robin warbler thrush wren gull penguin flamingo"
    " heron stork crane pelican ostrich peacock quail partridge woodpecker hummingbird kingfisher"
    " albatross vulture falcon kite magpie starling swallow toucan hornbill",
    "fish": "fish shark whale dolphin tench goldfish salmon trout tuna eel ray stingray carp cod"
    " seahorse perch pike bass sturgeon barracuda orca seal porpoise herring sardine",
    "insect": "insect bee ant beetle fly butterfly moth wasp spider crab lobster scorpion cricket"
    " grasshopper dragonfly ladybug mantis cockroach tick crayfish shrimp cicada tarantula",
    "serpent": "snake worm caterpillar python cobra viper boa mamba centipede rope cable chain"
    " scarf hose necktie",
    "biped": "person man woman boy girl child player doll robot monkey ape gorilla chimpanzee"
    " astronaut soldier dancer nurse doctor king queen chef statue clown baboon orangutan teacher",
    "vehicle": "car truck bus van taxi train tram wagon cart jeep limousine tractor ambulance"
    " locomotive tank convertible racer minivan trailer motorcycle bicycle scooter coupe sedan"
    " hatchback cab pickup",
    "aircraft": "aircraft airplane plane jet airliner glider helicopter drone rocket missile"
    " spaceship warplane boat ship yacht canoe submarine",
    "vessel": "bottle cup mug vase jar pot bowl glass pitcher teapot jug bucket barrel lamp bell"
    " candle can kettle goblet urn lantern lampshade chalice flask beaker hat helmet",
    "furniture": "chair table sofa couch bench bed desk stool cabinet wardrobe shelf bookcase crib"
    " throne piano organ cradle",
    "building": "house building castle church barn tower temple palace hotel school lighthouse"
    " mosque monastery cottage cabin skyscraper factory library hospital greenhouse windmill",
    "tree": "tree palm oak pine maple fir spruce birch willow bush shrub mushroom broccoli coral"
    " fern bonsai fungus umbrella parasol",
    "flower": "flower rose daisy tulip lily orchid sunflower poppy iris daffodil lotus dahlia"
    " marigold pansy carnation hibiscus clover magnolia petunia primrose",
    "fruit": "apple orange lemon banana grape strawberry pear peach pineapple burger sandwich cake"
    " pizza bread pie tomato pumpkin potato onion cheese cherry fig pancake cheesecake ball lasagna"
    " sushi soup salad doughnut cupcake squash pepper acorn egg",
    "tool": "hammer spoon fork knife axe saw guitar violin brush broom shovel sword rifle pistol"
    " wrench screwdriver pen pencil racket bat paddle umbrella flute trumpet banjo ladle spatula"
    " cleaver microphone torch flashlight",
    "ring": "ring wheel wreath necklace bracelet tire bagel pretzel crown belt watch clock gear"
    " bangle hoop tambourine drum",
    "star": "star starfish crystal snowflake cactus urchin anemone jellyfish octopus squid hedgehog"
    " porcupine fireworks artichoke chandelier",
    "gadget": "camera phone computer laptop printer radio television toaster oven refrigerator box"
    " book bag suitcase backpack machine engine clockwork monitor keyboard speaker projector toy",
}
_PLAN_OF = {word: plan for plan, words in _WORDS.items() for word in words.split()}
KNOWN = len(_PLAN_OF)  # nouns
# Where the colours of a kind mostly lie, in turns of hue, and how strong they are at most.
_HUES = {
    "tree": (0.20, 0.36, 0.8), "quadruped": (0.03, 0.12, 0.55), "biped": (0.0, 1.0, 0.6),
    "building": (0.02, 0.14, 0.35), "furniture": (0.03, 0.12, 0.6), "tool": (0.04, 0.12, 0.5),
    "fruit": (-0.05, 0.3, 0.9), "serpent": (0.05, 0.35, 0.7),
}  # fmt: skip
_COATS = {
    "zebra": "stripes", "tiger": "stripes", "tabby": "stripes", "leopard": "spots",
    "cheetah": "spots", "jaguar": "spots", "dalmatian": "spots", "ladybug": "spots",
    "giraffe": "patches", "cow": "patches", "panda": "patches", "tortoise": "scales",
    "turtle": "scales", "snake": "scales", "crocodile": "scales", "bee": "bands", "wasp": "bands",
    "hornet": "bands", "barrel": "rings", "table": "rings", "desk": "rings",
}  # fmt: skip
# Plans that a word of no list may mean.
_UNKNOWN = tuple(PLANS)


@dataclass(frozen=True)
class Species:
    """What every image of a concept has in common."""

    plan: str
    genes: int  # seed of the gene stream
    pattern: str
    scale: float  # of the pattern, periods per body radius
    contrast: float  # of the pattern's second colour
    pale: bool  # its second colour is lighter, not darker
    finish: str
    tile: str  # noise tile of the fine grain
    grain: float  # strength of the fine grain
    hues: tuple[float, ...]  # of the colours it likes
    vivid: float  # largest saturation of those
    second: float  # hue of the second slot, relative to the first
    accent: float
    lightness: float  # of the colours it likes
    saturation: float
    haunts: tuple[int, int]  # codes of the surroundings it is mostly met in


@lru_cache(maxsize=4096)
def species(concept: str) -> Species:
    """Return a concept's species; the same for ever and everywhere."""
    name = plain_name(concept)
    noun = head_noun(name)
    plan = _PLAN_OF.get(noun) or _PLAN_OF.get(singular(noun))
    if plan is None:
        plan = next((_PLAN_OF[w] for w in reversed(name.split()) if w in _PLAN_OF), None)
    if plan is None:
        plan = _UNKNOWN[hashed("plan", singular(noun)) % len(_UNKNOWN)]
    rng = np.random.Generator(np.random.PCG64(hashed("surface", name)))
    low, high, vivid = _HUES.get(plan, (0.0, 1.0, 1.0))
    hue = low + (high - low) * float(rng.random())
    pattern = PATTERN_NAMES[int(rng.integers(len(PATTERN_NAMES)))]
    return Species(
        plan=plan,
        genes=hashed("genes", name),
        pattern=next((_COATS[w] for w in map(singular, name.split()) if w in _COATS), pattern),
        scale=float(rng.uniform(3, 9)),
        contrast=float(rng.uniform(0.45, 0.9)),
        pale=bool(rng.random() < 0.5),
        finish=FINISH_NAMES[int(rng.integers(4))],
        tile=("rough", "grain", "ripple", "cells", "streak", "ridge")[int(rng.integers(6))],
        grain=float(rng.uniform(0.05, 0.28)),
        hues=(hue, low + (hue - low + (high - low) * float(rng.uniform(0.2, 0.8))) % (high - low)),
        vivid=vivid,
        second=float(rng.choice([0.0, 0.0, 0.08, 0.5])),
        accent=float(rng.uniform(0.1, 0.9)),
        lightness=float(rng.uniform(0.3, 0.7)),
        saturation=float(rng.beta(1.6, 2.2)),  # few things are garish
        haunts=(hashed("haunt", name), hashed("second haunt", name)),
    )


def is_known(concept: str) -> bool:
    """Return whether a concept's noun has a body plan: a fly agaric is no fly."""
    noun = head_noun(plain_name(concept))
    return noun in _PLAN_OF or singular(noun) in _PLAN_OF


def parts_of(kind: Species, view: Rng) -> Parts:
    """Return the body of one individual: the species' genes in this view's posture."""
    genes = np.random.Generator(np.random.PCG64(kind.genes))
    return PLANS[kind.plan](genes, view).arrays()


def linear(rgb: ArrayLike) -> np.ndarray:
    """Return sRGB in 0..1 as light: gamma 2, near enough and cheap to undo."""
    return np.square(np.asarray(rgb, dtype=np.float32))


def palette(kind: Species, words: tuple[str, ...], view: np.random.Generator) -> np.ndarray:
    """Return the light colours [5, 3] of an individual: slots MAIN, SECOND, ACCENT, DARK, pattern.

    Colour words are obeyed: the first fills MAIN, its pattern and (if there is no second word)
    SECOND stay within that colour's shades.
    """
    jitter = view.uniform(-1, 1, 6)
    if words:
        main = _shade(COLOURS[words[0]], float(jitter[0]) * 0.12)
        if len(words) > 1:
            second = _shade(COLOURS[words[1]], float(jitter[1]) * 0.1)
            pattern = second
        else:
            second = _shade(main, 0.2 if kind.pale else -0.25)
            pattern = _shade(main, 0.3 * kind.contrast if kind.pale else -0.45 * kind.contrast)
        accent = _shade(COLOURS[words[-1]], -0.35 if sum(main) > 1.2 else 0.4)
    else:
        if view.random() < 0.8:
            hue = kind.hues[int(view.random() < 0.25)] + 0.04 * float(jitter[0])
            lightness = kind.lightness + 0.12 * float(jitter[2])
            saturation = kind.saturation * kind.vivid * (1 + 0.3 * float(jitter[3]))
        else:  # the rest wear any colour
            hue, lightness = view.random(), 0.5 + 0.28 * float(jitter[2])
            saturation = float(view.beta(1.6, 2.2))
        main = colorsys.hls_to_rgb(hue % 1, lightness, saturation)
        second = colorsys.hls_to_rgb(
            (hue + kind.second) % 1,
            min(lightness + (0.22 if kind.pale else -0.15), 0.95),
            saturation,
        )
        pattern = (
            colorsys.hls_to_rgb((hue + 0.04) % 1, 0.88, saturation)
            if kind.pale
            else colorsys.hls_to_rgb((hue + 0.5 * (kind.accent > 0.7)) % 1, 0.18, saturation)
        )
        pattern = mix(kind.contrast, pattern, 1 - kind.contrast, main)
        accent = colorsys.hls_to_rgb((hue + kind.accent) % 1, 0.45, 0.25 + 0.5 * saturation)
    dark = (0.09, 0.085, 0.1)
    return linear([main, second, accent, dark, pattern])


def surface(kind: Species, reading: Reading | None) -> tuple[str, str]:
    """Return (pattern, finish): the caption's words before the species' own."""
    if reading is None:
        return kind.pattern, kind.finish
    return reading.pattern or kind.pattern, reading.finish or kind.finish


def _shade(rgb: tuple[float, ...], by: float) -> tuple[float, float, float]:
    """Return a colour mixed with white (by > 0) or black (by < 0)."""
    goal, share = (1.0, by) if by > 0 else (0.0, -by)
    r, g, b = (c * (1 - share) + goal * share for c in rgb)
    return r, g, b
