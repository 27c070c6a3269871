"""Which completions are captions."""

import itertools

import pytest

from synclr_cli.captions import quality


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
        ("A boxcar rolls by.", "ox", ""),  # within a word: cheap, and wrong seldom enough
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


def jaccard(a, b):
    def pairs(text):
        words = text.lower().split()
        return set(itertools.pairwise(words))

    return len(pairs(a) & pairs(b)) / len(pairs(a) | pairs(b))


def test_a_caption_like_an_earlier_one_is_refused_and_the_earlier_one_stays():
    captions = [
        "a red fox runs over the snow at dawn",
        "a grey owl sits on a post",
        "A red fox runs over the snow at dawn",
        "a red fox runs over the snow at dusk",
        "a blue boat lies on the beach",
    ]
    window = quality.Window(captions, 0.7)
    assert jaccard(captions[0], captions[3]) == pytest.approx(7 / 9)
    assert window.alike(captions, range(5)) == ["", "", "exact duplicate", "near duplicate", ""]
    assert quality.Window(captions, 0.8).alike(captions, range(5))[3] == ""
    assert quality.Window(captions, 1.0).alike(captions, range(5))[2:4] == ["exact duplicate", ""]


def test_a_redrawn_caption_is_compared_with_the_rows_before_it_only():
    window = quality.Window(["a fox in the snow", "an owl", "a boat on the sea"], 0.9)
    assert window.alike(["a boat on the sea"], [1]) == [""]
    assert window.alike(["a fox in the snow"], [1]) == ["exact duplicate"]
