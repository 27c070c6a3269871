"""Backgrounds that the language model lists: cleaned, cached, and used."""

import pyarrow.parquet as pq
import pytest

from synclr_cli import engines
from synclr_cli.captions import backgrounds
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
    assert backgrounds.split(completion, "heron (a bird)") == items


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
    out = run(config(), tmp_path / "c")
    lists = backgrounds.long_enough(backgrounds.read(out / backgrounds.FILE))
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
    out = run(config(), tmp_path / "c")
    rows = pq.read_table(out).to_pylist()
    needing = {r["concept"] for r in rows if r["template"] == "c_bg" and r["source"] == "cifar100"}
    assert Lister.asked == backgrounds.LISTS * len(needing)
    run(config(count=600), out)
    rows = pq.read_table(out).to_pylist()
    needing = {r["concept"] for r in rows if r["template"] == "c_bg" and r["source"] == "cifar100"}
    assert Lister.asked == backgrounds.LISTS * len(needing)


def test_a_larger_count_and_an_interruption_change_no_byte(tmp_path, monkeypatch):
    whole = run(config(count=600), tmp_path / "whole")
    out = tmp_path / "c"
    monkeypatch.setattr(backgrounds, "CONCEPTS_PER_FILE", 10)
    before = Lister.asked
    monkeypatch.setattr(Lister, "fails_after", before + 100)
    with pytest.raises(KeyboardInterrupt):
        run(config(), out)
    assert not list(out.glob("part-*")) and not (out / backgrounds.FILE).exists()
    monkeypatch.setattr(Lister, "fails_after", 10**9)
    run(config(), out)
    asked = Lister.asked - before
    run(config(count=600), out)
    assert contents(out) == contents(whole)
    needed = {r["concept"] for r in pq.read_table(out).to_pylist()[:300]
              if r["template"] == "c_bg" and r["source"] == "cifar100"}  # fmt: skip
    assert asked < backgrounds.LISTS * (len(needed) + 20)  # what was listed is not asked again


@pytest.mark.parametrize("jobs", [2, 3])
def test_jobs_that_share_a_folder_list_what_one_lists(tmp_path, jobs):
    whole = run(config(count=600), tmp_path / "whole")
    for i in range(jobs, 0, -1):
        run(config(count=600, shard=f"{i}/{jobs}"), tmp_path / "c")
    assert contents(tmp_path / "c") == contents(whole)


def test_lists_of_other_settings_are_refused_and_overwritten(tmp_path):
    out = run(config(), tmp_path / "c")
    with pytest.raises(UsageError, match=r"captions\.seed"):
        run(config(seed=5), out)
    run(config(seed=5), out, overwrite=True)
    assert artifacts.open_parquet(out / backgrounds.FILE, "backgrounds")[1].seed == 5
    run(config(seed=5, backgrounds="hand"), out, overwrite=True)
    assert not (out / backgrounds.FILE).exists()


def contents(folder):
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}
