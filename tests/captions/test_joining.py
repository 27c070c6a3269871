"""`synclr join`, and captions that lie elsewhere than on this disk."""

import pyarrow.parquet as pq
import pytest

from synclr_cli import presets
from synclr_cli.captions import joining, listing
from synclr_cli.captions.pieces import rejects_path
from synclr_cli.captions.run import run
from synclr_cli.config import CaptionEngineConfig, CaptionsConfig
from synclr_cli.data import artifacts, storage
from synclr_cli.errors import DataError, UsageError

TEMPLATE = CaptionEngineConfig(name="template:")


def config(**changes):
    return CaptionsConfig(
        **{
            "concepts": "cifar10",
            "count": 500,
            "captions_per_part": 32,
            "engine": TEMPLATE,
            "max_similarity": 0.4,
        }
        | changes
    )


def shards_of(folder, of, **changes):
    return [
        run(config(shard=f"{i}/{of}", **changes), folder / f"s-{i}-of-{of}.parquet")
        for i in range(1, of + 1)
    ]


@pytest.mark.parametrize("of", [1, 2, 3, 7, 20])  # 500 captions make 16 parts
def test_joined_shards_are_the_whole_file_to_the_byte(tmp_path, of):
    whole = run(config(), tmp_path / "whole.parquet")
    out = joining.run(shards_of(tmp_path, of)[::-1], tmp_path / "joined.parquet")
    assert out.read_bytes() == whole.read_bytes()
    assert rejects_path(out).read_bytes() == rejects_path(whole).read_bytes()
    assert pq.read_metadata(rejects_path(out)).num_rows > 0
    run(config(), out)  # the same run: it returns at once
    grown = run(config(count=700), out)
    assert grown.read_bytes() == run(config(count=700), tmp_path / "more.parquet").read_bytes()


def test_more_rows_than_a_row_group_are_joined_to_the_byte(tmp_path):
    settings = {"concepts": "in1k", "count": 70_000, "captions_per_part": 3000}
    whole = run(config(**settings), tmp_path / "whole.parquet")
    out = joining.run(shards_of(tmp_path, 2, **settings), tmp_path / "joined.parquet")
    assert pq.read_metadata(out).num_row_groups == 2
    assert out.read_bytes() == whole.read_bytes()


def test_joining_again_returns_at_once_and_refuses_another_run(tmp_path):
    made = shards_of(tmp_path, 2)
    out = joining.run(made, tmp_path / "joined.parquet")
    before = out.stat().st_mtime_ns
    assert joining.run(made, out).stat().st_mtime_ns == before
    (tmp_path / "b").mkdir()
    others = shards_of(tmp_path / "b", 2, seed=1)
    with pytest.raises(UsageError, match=r"captions\.seed"):
        joining.run(others, out)
    joining.run(others, out, overwrite=True)
    assert artifacts.open_parquet(out, "captions")[1].seed == 1


def test_what_lies_beside_the_shards_may_be_named_with_them(tmp_path):
    whole = run(config(), tmp_path / "whole.parquet")
    shards_of(tmp_path / "shards", 2)
    out = joining.run(
        sorted((tmp_path / "shards").glob("s-*.parquet")), tmp_path / "joined.parquet"
    )
    assert out.read_bytes() == whole.read_bytes()


def test_joining_over_anything_but_captions_is_refused(tmp_path, monkeypatch):
    made = shards_of(tmp_path, 2)
    other = tmp_path / "notes.parquet"
    other.write_text("mine")
    with pytest.raises(UsageError, match="is no captions file"):
        joining.run(made, other, overwrite=True)
    assert other.read_text() == "mine"
    with pytest.raises(UsageError, match="got a folder"):
        joining.run(made, tmp_path, overwrite=True)
    monkeypatch.chdir(tmp_path)
    before = made[0].read_bytes()
    with pytest.raises(UsageError, match="is one of the shards"):
        joining.run(made, storage.place(made[0].name), overwrite=True)
    assert made[0].read_bytes() == before


def test_what_lies_beside_is_written_over_only_if_it_is_ours(tmp_path):
    assert rejects_path(tmp_path / "v1.0.parquet").name == "v1.0.rejects.parquet"
    made = shards_of(tmp_path, 2)
    other = tmp_path / "joined.rejects.parquet"
    other.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is no rejects file of synclr's"):
            joining.run(made, tmp_path / "joined.parquet", overwrite=overwrite)
        with pytest.raises(UsageError, match="is no rejects file of synclr's"):
            run(config(), tmp_path / "joined.parquet", overwrite=overwrite)
    assert other.read_text() == "mine"


def test_shards_that_do_not_make_a_whole_are_refused(tmp_path):
    made = shards_of(tmp_path, 4)
    out = tmp_path / "joined.parquet"
    with pytest.raises(DataError, match=r"1 of 4 shards are missing: 3/4\. Make them with"):
        joining.run([made[0], made[1], made[3]], out)
    with pytest.raises(DataError, match=r"shard 2/4 is there twice"):
        joining.run([*made, made[1]], out)
    with pytest.raises(UsageError, match="nothing to join"):
        joining.run([], out)
    with pytest.raises(UsageError, match="is one of the shards"):
        joining.run(made, made[0])
    (tmp_path / "b").mkdir()
    for changes, key in (({"seed": 3}, "seed"), ({"count": 400}, r"captions\.count")):
        other = shards_of(tmp_path / "b", 4, **changes)
        with pytest.raises(DataError, match=rf"is not of the run of .* \({key} differs\)"):
            joining.run([*made[:3], other[3]], out)
        for path in (tmp_path / "b").iterdir():
            path.unlink()
    assert not out.exists()


def test_a_shard_with_a_gap_or_without_its_rejects_is_refused(tmp_path):
    made = shards_of(tmp_path, 2)
    file, header = artifacts.open_parquet(made[1], "captions")
    table = file.read().replace_schema_metadata(None)
    artifacts.write_parquet(
        made[1], "captions", header, [table.slice(0, 40), table.slice(41)], rows_per_group=1000
    )
    out = tmp_path / "joined.parquet"
    with pytest.raises(DataError, match="lacks captions of ids 96 to 127"):
        joining.run(made, out)
    rejects_path(made[0]).unlink()
    with pytest.raises(DataError, match=r"no file .*rejects\.parquet"):
        joining.run(made, out)
    assert not out.exists()


def test_listed_backgrounds_are_joined_by_concept(tmp_path):
    header = artifacts.Header("backgrounds", {})
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    lists = [[("owl", "barn"), ("owl", "oak")], [("ant", "hill"), ("owl", "barn"), ("owl", "oak")]]
    for path, rows in zip(paths, lists, strict=True):
        table = listing.pa.table(
            {"concept": [c for c, _ in rows], "background": [b for _, b in rows]}
        )
        artifacts.write_parquet(path, "backgrounds", header, [table], rows_per_group=100)
    assert listing.joined(paths).to_pydict() == {
        "concept": ["ant", "owl", "owl"], "background": ["hill", "barn", "oak"],
    }  # fmt: skip


def test_captions_and_concepts_may_lie_at_a_uri(tmp_path):
    listed = storage.place("memory://captions-test/birds.csv")
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("concept,weight\nbarn owl,2\nheron,1\n")
    (tmp_path / "birds.csv").write_text("concept,weight\nbarn owl,2\nheron,1\n")
    there = storage.place("memory://captions-test/out/captions.parquet")
    out = run(config(concepts=str(listed), count=100), there)
    here = run(
        config(concepts=str(tmp_path / "birds.csv"), count=100), tmp_path / "captions.parquet"
    )
    assert storage.table(out)["caption"].equals(storage.table(here)["caption"])
    run(config(concepts=str(listed), count=250), there)  # grows there
    assert storage.parquet(there).metadata.num_rows == 250
    names = sorted(p.name for p in there.parent.iterdir())
    assert names == ["captions.parquet", "captions.rejects.parquet"]
    with pytest.raises(UsageError, match=r"captions\.seed"):
        run(config(concepts=str(listed), count=250, seed=1), there)


def test_shards_at_a_uri_are_joined_there(tmp_path):
    folder = storage.place("memory://join-test")
    out = joining.run(shards_of(folder, 3), folder / "joined.parquet")
    whole = run(config(), tmp_path / "whole.parquet")
    assert out.read_bytes() == whole.read_bytes()


def test_a_mix_may_name_a_uri_with_a_weight():
    listed = storage.place("memory://mix-test/birds.txt")
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("barn owl\nheron\n")
    from synclr_cli.captions import concepts

    pool = concepts.read(f"{listed}:3,cifar10:1")
    assert pool.shares()[:2].sum() == pytest.approx(0.75)
    assert concepts.read(str(listed)).names == ["barn owl", "heron"]


def test_the_presets_of_the_paper_take_shards():
    assert presets.resolve("captions", preset="vitb", flags={}, sets=["captions.shard=3/64"])
