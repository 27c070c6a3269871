"""Backgrounds that the language model lists: cleaned, cached, and used."""

import pyarrow.parquet as pq
import pytest

from synclr_cli import engines
from synclr_cli.captions import backgrounds, listing
from synclr_cli.captions.run import run
from synclr_cli.config import CaptionEngineConfig, CaptionsConfig
from synclr_cli.data import artifacts
from synclr_cli.errors import UsageError


@pytest.mark.parametrize(
    ("completion", "items"),
    [
        ("misty pond, a reed bed, and the river bank.", ["misty pond", "reed bed", "river bank"]),
        ("pond; Pond, in a  barn\nmore, lines", ["pond", "barn"]),
        ("heron nest, 12, !!, a very long place of far too many words, lake", ["lake"]),
        ("", []),
    ],
)
def test_a_completion_is_split_into_clean_backgrounds(completion, items):
    assert listing.split(completion, "heron (a bird)") == items


class Lister(engines.CaptionEngine):
    """Lists numbered places, and writes captions; counts how many lists it was asked for."""

    revision = "lister 1"
    asked = 0
    fails_after = 10**9

    def __init__(self, target, config):
        pass

    def generate(self, prompts, seeds):
        out = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            if prompt.template == "backgrounds":
                type(self).asked += 1
                if self.asked > self.fails_after:
                    raise KeyboardInterrupt
                out.append(f" {prompt.concept} nest, place x{seed % 7}, hill x{seed % 5}, cut of")
            else:
                out.append(f"One {prompt.concept} at {prompt.companion or 'home'}, take {seed}.")
        return out


@pytest.fixture(autouse=True)
def lister(monkeypatch):
    monkeypatch.setitem(
        engines._SCHEMES["caption"], "lister", engines.Scheme(f"{__name__}:Lister", "")
    )
    monkeypatch.setattr(Lister, "asked", 0)
    monkeypatch.setattr(Lister, "fails_after", 10**9)


def config(**changes):
    return CaptionsConfig(
        **{
            "concepts": "cifar100:3,food101:1",
            "count": 300,
            "captions_per_part": 100,
            "backgrounds": "model",
            "engine": CaptionEngineConfig(name="lister:"),
        }
        | changes
    )


def test_captions_stand_before_the_backgrounds_the_model_listed(tmp_path):
    out = run(config(), tmp_path / "c.parquet")
    lists = listing.read(listing.path_beside(out))
    assert listing.path_beside(out).name == "c.backgrounds.parquet"
    used = 0
    for row in pq.read_table(out).to_pylist():
        if row["template"] != "c_bg":
            continue
        if row["source"] == "food101":  # one list for the whole source
            assert row["companion"] in backgrounds.by_domain()["food"]
        elif row["concept"] in lists:
            assert row["companion"] in lists[row["concept"]]
            assert row["companion"].startswith(("place x", "hill x"))
            used += 1
    assert used > 50


def test_only_concepts_that_need_a_list_are_asked_for_and_only_once(tmp_path):
    out = run(config(), tmp_path / "c.parquet")
    rows = pq.read_table(out).to_pylist()
    needing = {r["concept"] for r in rows if r["template"] == "c_bg" and r["source"] == "cifar100"}
    assert Lister.asked == listing.LISTS * len(needing)
    run(config(count=600), out)
    rows = pq.read_table(out).to_pylist()
    needing = {r["concept"] for r in rows if r["template"] == "c_bg" and r["source"] == "cifar100"}
    assert Lister.asked == listing.LISTS * len(needing)


def test_a_larger_count_and_an_interruption_change_no_row(tmp_path, monkeypatch):
    whole = run(config(count=600), tmp_path / "whole.parquet")
    out = tmp_path / "c.parquet"
    monkeypatch.setattr(listing, "_CONCEPTS_PER_PART", 10)
    monkeypatch.setattr(Lister, "fails_after", Lister.asked + 100)
    with pytest.raises(KeyboardInterrupt):
        run(config(), out)
    assert not out.exists() and not listing.path_beside(out).exists()
    monkeypatch.setattr(Lister, "fails_after", 10**9)
    run(config(), out)
    run(config(count=600), out)
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.parts"))


def test_backgrounds_of_other_settings_are_refused(tmp_path):
    out = run(config(), tmp_path / "c.parquet")
    out.unlink()
    with pytest.raises(UsageError, match=r"captions\.seed"):
        run(config(seed=5), out)
    run(config(seed=5), out, overwrite=True)
    assert artifacts.open_parquet(listing.path_beside(out), "backgrounds")[1].seed == 5
