"""The demonstrations we ship, the prompts made of them, and files a user brings."""

import pytest

from synclr_cli.captions import prompts, quality
from synclr_cli.captions.sampler import RELATIONS
from synclr_cli.errors import DataError

bank = prompts.shipped()


def test_the_banks_are_as_large_as_the_papers():
    sizes = {name: bank.span(name)[1] for name in bank.names}
    assert sizes["object"] >= 52 and sizes["place"] >= 33 and sizes["texture"] >= 21
    assert sizes["object"] + sizes["place"] + sizes["texture"] >= 106
    assert sizes["background"] >= 50 and sizes["relation"] >= 20


def test_every_demonstration_is_a_caption_the_gate_would_take():
    tables = _shipped_tables()
    for rows in tables.values():
        for concept, *_, caption in rows:
            assert quality.reason(caption, concept) == "", caption
            assert caption[0].isupper() and caption.endswith(".")
            assert 6 <= len(caption.split()) <= 30


def test_no_two_demonstrations_are_alike():
    assert len(set(bank.captions)) == len(bank.captions)
    for rows in _shipped_tables().values():
        assert len({row[0] for row in rows}) >= 0.9 * len(rows)


def test_all_ten_relation_words_are_shown_and_said():
    rows = _shipped_tables()["relation"]
    assert {row[1] for row in rows} == set(RELATIONS)
    for _, word, caption in rows:
        assert f" {word} " in caption


def _shipped_tables():
    import tomllib
    from importlib import resources

    return tomllib.loads(
        (resources.files("synclr_cli.captions") / "examples.toml").read_text(encoding="utf-8")
    )


def test_a_prompt_is_an_instruction_three_demonstrations_and_an_open_line():
    first, _ = bank.span("background")
    text = bank.prompt("background", (first, first + 2, first + 1), "whippet", "garden lawn")
    lines = text.split("\n")
    assert lines[0].startswith("Describe a photo")
    assert lines[1] == ""
    assert lines[2].startswith("heron, misty pond => caption with heron: A heron stands")
    assert lines[-1] == "whippet, garden lawn => caption with whippet:"
    assert len(lines) == 6
    prefix = bank.prefix("background", (first, first + 2, first + 1))
    assert text == prefix + lines[-1]


def test_a_prompt_without_companion_has_only_the_concept():
    assert bank.prompt("texture", (), "striped", "").endswith("\nstriped => caption with striped:")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("object = [", "cannot read demonstrations"),
        ('object = [["owl"]]', "object demonstration 1"),
        ('things = [["owl", "An owl."]]', "expected object | place"),
    ],
)
def test_a_bad_demonstration_file_is_refused_in_one_line(tmp_path, content, says):
    (tmp_path / "own.toml").write_text(content)
    with pytest.raises(DataError) as caught:
        prompts.read(str(tmp_path / "own.toml"))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_with_too_few_demonstrations_is_refused(tmp_path):
    (tmp_path / "own.toml").write_text('object = [["owl", "An owl sits on a post."]]')
    with pytest.raises(DataError, match=r"object demonstrations: got 1, expected at least 3"):
        prompts.read(str(tmp_path / "own.toml")).require(3)
