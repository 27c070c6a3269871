"""Which completions are captions."""

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
