"""Which completions are captions."""

import itertools
import random

import pytest

from synclr_cli.captions import quality
from synclr_cli.captions.duplicates import Neighbours, band_width


@pytest.mark.parametrize(
    ("completion", "caption"),
    [
        ("  A fox runs. \nfox => more", "A fox runs."),
        ('"A fox  runs."', "A fox runs."),
        ("\nA fox", ""),
        ("", ""),
    ],
)
def test_a_completion_is_cut_at_the_newline_and_tidied(completion, caption):
    assert quality.tidy(completion) == caption


@pytest.mark.parametrize(
    ("caption", "concept", "reason"),
    [
        ("", "fox", "empty"),
        ("A fox.", "fox", "too short"),
        ("A fox " + "runs and jumps on " * 20 + "snow.", "fox", "too long"),
        ("A fox sits. fox, snow => A fox", "fox", "copies the prompt"),
        ("A fox runs in snow. It looks at the camera.", "fox", "not one sentence"),
        ("A fox that is sitting on the", "fox", "not one sentence"),
        ("A fox at 5 p.m. near St. Paul's cathedral in the U.S. capital.", "fox", ""),
        ("A fox, a fox, a fox, a fox, a fox in snow.", "fox", "repeats itself"),
        (" .. ", "fox", "empty"),
        ("Two foxes play in the snow.", "fox", ""),
        ("A dog sleeps.", "fox", "concept missing"),
        ("A boxcar rolls by.", "ox", "concept missing"),
        ("A carpet lies here.", "carp", "concept missing"),
        ("Two oxen pull a cart.", "ox", ""),
        ("Sharp knives on a board.", "knife", ""),
        ("A golf cart on the lawn.", "golfcart", ""),
        ("A dustpan by the door.", "dust pan", ""),
        ("The A380 is a large plane.", "A380 aircraft", ""),
        ("A large plane is landing.", "A380 aircraft", "concept missing"),
        ("A Chevrolet Corvette car parked outside.", "Chevrolet Corvette Convertible 2012 car", ""),
        ("A white-tailed deer runs.", "white tailed deer", ""),
        ("Butterflies over a meadow.", "butterfly", ""),
        ("A General Hummer SUV of 2000 in mud.", "AM General Hummer SUV 2000 car", ""),
        ("A car in the mud.", "AM General Hummer SUV 2000 car", "concept missing"),
        ("A crane wades.", "crane (large long-necked wading bird)", ""),
        ("A barn with an owl.", "barn owl", ""),
        ("An owl at night.", "barn owl", "concept missing"),
    ],
)
def test_the_gate_says_why(caption, concept, reason):
    assert quality.reason(caption, concept) == reason


def test_a_copied_example_is_refused_whole_or_in_part():
    example = "A red fox trots along a frosty hedgerow at dawn, its breath in the air."
    other = "An owl glides low over a meadow."
    assert quality.reason(example.upper(), "fox", [other, example]) == "copies an example"
    part = "The fox trots along a frosty hedgerow at dawn, its tail up."
    assert quality.reason(part, "fox", [example]) == "copies an example"
    assert quality.reason("A fox trots along a frosty hedgerow at night.", "fox", [example]) == ""


def words(captions):
    return [quality.words_of(c) for c in captions]


def jaccard(a, b):
    a, b = (set(itertools.pairwise(quality.words_of(x))) for x in (a, b))
    return len(a & b) / len(a | b)


def test_a_caption_like_an_earlier_one_is_refused_and_the_earlier_one_stays():
    captions = [
        "a red fox runs over the snow at dawn",
        "a grey owl sits on a post",
        "A red fox runs over the snow at dawn.",
        "a red fox runs over the snow at dusk",
        "a blue boat lies on the beach",
    ]
    said = words(captions)
    assert jaccard(captions[0], captions[3]) == pytest.approx(7 / 9)
    near = Neighbours(said, 0.7).alike(said, range(5))
    assert near == ["", "", "exact duplicate", "near duplicate", ""]
    assert Neighbours(said, 0.8).alike(said, range(5))[3] == ""
    assert Neighbours(said, 1.0).alike(said, range(5))[2:4] == ["exact duplicate", ""]


def test_a_redrawn_caption_is_compared_with_the_rows_before_it_only():
    block = Neighbours(words(["a fox in the snow", "an owl", "a boat on the sea"]), 0.9)
    assert block.alike(words(["a boat on the sea"]), [1]) == [""]
    assert block.alike(words(["a fox in the snow"]), [1]) == ["exact duplicate"]


def test_empty_and_short_captions_are_near_nothing():
    said = words(["", "fox", "", "a fox in the snow", "", "fox", ""])
    assert Neighbours(said, 0.8).alike(said, range(7)) == [
        "", "", "", "", "", "exact duplicate", "",
    ]  # fmt: skip


@pytest.mark.parametrize("limit", [0.5, 0.8, 0.9])
def test_near_duplicates_are_those_of_the_exact_jaccard_index(limit):
    """Thousands of captions, each made from another by changing a few words: all pairs by loops."""
    generator = random.Random(0)
    vocabulary = [f"w{i}" for i in range(200)]
    captions: list[list[str]] = []
    for _ in range(600):
        if captions and generator.random() < 0.5:
            changed = list(generator.choice(captions))
            for _ in range(generator.randint(0, 3)):
                changed[generator.randrange(len(changed))] = generator.choice(vocabulary)
        else:
            changed = generator.choices(vocabulary, k=generator.randint(8, 20))
        captions.append(changed)
    pairs = [set(itertools.pairwise(c)) for c in captions]
    wanted = set()
    for i, j in itertools.combinations(range(len(captions)), 2):
        if len(pairs[i] & pairs[j]) >= limit * len(pairs[i] | pairs[j]):
            wanted.add(j)
    found = Neighbours(captions, limit).alike(captions, range(len(captions)))
    near = {i for i, why in enumerate(found) if why}
    assert near <= wanted  # never by estimate
    assert len(near) >= 0.98 * len(wanted) > 50


def test_the_bands_overlook_little_at_the_limit():
    for limit in (0.3, 0.5, 0.8, 0.95):
        width = band_width(limit)
        assert (1 - limit**width) ** (64 // width) <= 0.02
        assert (1 - limit ** (width + 1)) ** (64 // (width + 1)) > 0.02
