"""Concept lists: by name, from files, mixed; and each way a file can be wrong."""

import sys
from pathlib import Path

import numpy as np
import pytest

from synclr_cli.captions import backgrounds, concept_files, concepts
from synclr_cli.errors import DataError, UsageError

UNIFORM = (np.arange(20000) + 0.5) / 20000


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("in1k", 1000), ("in12k", 11821), ("in21k", 21843), ("aircraft", 100), ("cars", 196),
        ("dtd", 47), ("flowers", 102), ("pets", 37), ("sun397", 397), ("caltech101", 100),
        ("food101", 101), ("places365", 351), ("cifar10", 10), ("cifar100", 100), ("stl10", 10),
        ("cub200", 200), ("voc2007", 20), ("eurosat", 10), ("resisc45", 45), ("gtsrb", 43),
        ("cifar10-words", 420),
    ],
)  # fmt: skip
def test_a_named_source_has_its_classes_each_once(name, size):
    pool = concepts.read(name)
    assert len({n.casefold() for n in pool.names}) == len(pool) == size
    assert all(n == concept_files.clean(n) for n in pool.names)
    assert set(pool.sources) == {name}


def test_imagenet_names_agree_with_timm_and_need_no_torch():
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    first = [info.index_to_description(i).split(",")[0] for i in range(1000)]
    assert [concepts.plain_name(n) for n in concepts.read("in1k").names] == first
    code = (
        "import sys; from synclr_cli.captions import concepts; concepts.read('in21k');"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    import subprocess

    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_synsets_of_one_name_are_told_apart_by_their_definitions():
    cranes = [n for n in concepts.read("in1k").names if n.startswith("crane")]
    assert cranes == [
        "crane (large long-necked wading bird)",
        "crane (lifts and moves heavy objects)",
    ]
    assert {concepts.plain_name(n) for n in cranes} == {"crane"}


def test_cars_and_aircraft_say_what_they_are():
    assert all(n.endswith(" car") for n in concepts.read("cars").names)
    assert all(n.endswith(" aircraft") for n in concepts.read("aircraft").names)


def test_places_and_textures_are_of_their_kind():
    assert set(concepts.read("places365").kinds) == {"place"}
    assert set(concepts.read("dtd").kinds) == {"texture"}


def test_the_synclr_mix_has_the_shares_of_table_11():
    pool = concepts.read("synclr")
    shares = {}
    for source, p in zip(pool.sources, pool.shares(), strict=True):
        shares[source] = shares.get(source, 0.0) + p
    assert shares["in1k"] == pytest.approx(0.47)
    assert shares["aircraft"] == pytest.approx(0.05)
    assert shares["cars"] == pytest.approx(0.05)
    assert shares["food101"] == pytest.approx(0.05)
    assert shares["flowers"] == pytest.approx(0.03)
    assert shares["places365"] + shares["sun397"] == pytest.approx(0.09)
    rest = shares["in12k"] + shares["caltech101"] + shares["pets"] + shares["dtd"]
    assert rest == pytest.approx(0.26)
    # Within a joined list every concept is as likely, and a name two lists have is there once.
    places = [i for i, s in enumerate(pool.sources) if s in ("places365", "sun397")]
    assert np.ptp(pool.shares()[places]) < 1e-12
    assert len({pool.names[i].casefold() for i in places}) == len(places)


def test_a_mix_draws_each_source_by_its_weight():
    pool = concepts.read("cifar10:3,dtd:1")
    drawn = pool.draw(UNIFORM, np.random.default_rng(0).random(len(UNIFORM)))
    from_dtd = np.mean([pool.sources[i] == "dtd" for i in drawn])
    assert from_dtd == pytest.approx(0.25, abs=1e-3)
    assert set(drawn.tolist()) == set(range(len(pool)))


def test_a_source_of_weight_zero_is_left_out():
    assert set(concepts.read("cifar10:0,stl10:2").sources) == {"stl10"}


def test_weights_of_a_file_are_kept(tmp_path):
    path = write(tmp_path / "w.csv", "concept,weight\nowl,3\nfox,1\nelk,0\n")
    assert concepts.read(path).shares().tolist() == pytest.approx([0.75, 0.25, 0])
    drawn = concepts.read(path).draw(UNIFORM, UNIFORM)
    assert np.bincount(drawn, minlength=3).tolist() == [15000, 5000, 0]


def test_a_text_file_may_have_a_bom_blank_lines_duplicates_and_control_characters(tmp_path):
    text = "\ufeffbarn owl\r\n\r\n  tawny\tfrogmouth \n\x07Barn  OWL\n\u200bcafe\u0301\n\n"
    pool = concepts.read(write(tmp_path / "birds.txt", text))
    assert pool.names == ["barn owl", "tawny frogmouth", "café"]
    assert pool.sources == ["birds"] * 3
    assert pool.notes == ("birds: 1 repeated concepts were put together",)
    assert len(pool.files) == 1 and pool.files[0][1].startswith("sha256:")


def test_a_csv_may_carry_kind_weight_and_backgrounds(tmp_path):
    path = write(
        tmp_path / "parts.csv",
        "concept,kind,weight,backgrounds\n"
        '"gear, worn",object,2,steel bench;oily rag\ntest hall,place,,\nscratched,Texture,1,\n',
    )
    pool = concepts.read(path)
    assert pool.names == ["gear, worn", "test hall", "scratched"]
    assert pool.kinds == ["object", "place", "texture"]
    assert pool.backgrounds[0] == ("steel bench", "oily rag")
    assert pool.shares().tolist() == pytest.approx([0.5, 0.25, 0.25])


def test_a_parquet_file_is_a_concept_list(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {"concept": ["owl", "fox"], "backgrounds": [["barn"], []], "other": [1, 2]}
    pq.write_table(pa.table(table), tmp_path / "c.parquet")
    pool = concepts.read(str(tmp_path / "c.parquet"))
    assert pool.names == ["owl", "fox"] and pool.backgrounds == [("barn",), ()]


def test_backgrounds_of_another_type_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"concept": ["owl"], "backgrounds": [3]})
    pq.write_table(table, tmp_path / "c.parquet")
    with pytest.raises(DataError, match="column backgrounds: got int, expected text"):
        concepts.read(str(tmp_path / "c.parquet"))


def test_remarks_are_no_concepts(tmp_path):
    pool = concepts.read(write(tmp_path / "birds.txt", "# my birds\nowl\n#1 dad\n"))
    assert list(pool.names) == ["owl", "#1 dad"]


def test_a_list_of_a_million_lines_works(tmp_path):
    path = write(tmp_path / "many.txt", "".join(f"thing {i}\n" for i in range(1_000_000)))
    pool = concepts.read(path)
    assert len(pool) == 1_000_000
    assert pool.draw(np.array([0.5]), np.array([0.9999999])).tolist() == [999_999]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.txt", "", "no concept in"),
        ("blank.txt", " \n\n\t\n", "no concept in"),
        ("latin.txt", "caf\xe9\n".encode("latin-1"), "is not UTF-8 (byte 3)"),
        ("a.csv", "name\nowl\n", "expected one named concept"),
        ("b.csv", "concept,kind\nowl,objet\n", "Did you mean object?"),
        ("c.csv", "concept,weight\nowl,many\n", "line 2: weight: got 'many'"),
        ("d.csv", "concept,weight\nowl,0\n", "sum to zero"),
        ("e.parquet", b"PAR1 no", "is not a Parquet file"),
        ("quote.csv", 'concept,kind\n"owl,object\nfox,object\n', "is not a CSV file"),
        ("header.csv", '"concept,kind\nowl,object\n', "is not a CSV file"),
        ("long.txt", "x" * 500, "a concept of 500 characters"),
        ("f.doc", "owl\n", "expected .txt | .csv | .parquet"),
    ],
)
def test_a_bad_concept_file_is_refused_in_one_line(tmp_path, name, content, says):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        concepts.read(path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("in21", "did you mean in21k?"),
        ("food", "did you mean food101?"),
        ("aircrafts:1,cars:1", "did you mean aircraft?"),
        ("in1k:many", "weight of in1k"),
        ("in1k:-1", "weight of in1k"),
        ("in1k:0,cars:0", "weights sum to zero"),
        ("in1k:0.5,cars", "weights for some sources"),
        ("synclr:1,cars:1", "synclr is a whole mix"),
    ],
)
def test_a_bad_concepts_value_is_refused_in_one_line(spec, says):
    with pytest.raises(UsageError) as caught:
        concepts.read(spec)
    assert says.lower() in str(caught.value).lower()


def test_a_missing_file_is_told_from_an_unknown_name(tmp_path):
    with pytest.raises(DataError, match="no concept file"):
        concepts.read(str(tmp_path / "none.txt"))


def test_backgrounds_fit_the_concept():
    assert backgrounds.domain_of("whippet", "small slender dog") == "pet"
    assert backgrounds.domain_of("limpkin", "wading bird") == "bird"
    assert backgrounds.domain_of("schooner", "sailing vessel") == "ship"
    assert backgrounds.domain_of("apple pie", "") == "food"
    assert backgrounds.domain_of("quark", "") == "general"
    own = backgrounds.of_concept("gear", "", ("steel bench",), "")
    assert own == ("steel bench",)


def test_every_domain_has_enough_different_backgrounds():
    for domain, listed in backgrounds.by_domain().items():
        assert len(set(listed)) == len(listed) >= 20, domain


def test_a_cap_levels_the_frequent_concepts_and_keeps_the_order_of_the_others():
    shares = np.array([0.6, 0.2, 0.1, 0.06, 0.04, 0.0])
    level = concepts.capped(shares, 0.3)
    assert level.sum() == pytest.approx(1) and level[0] == pytest.approx(0.3)
    # 0.4 of the others becomes 0.7, which lifts the second over the cap as well.
    assert level.tolist() == pytest.approx([0.3, 0.3, 0.2, 0.12, 0.08, 0])
    assert concepts.capped(shares, 1.0).tolist() == shares.tolist()
    assert concepts.capped(shares, 0.1).tolist() == pytest.approx([0.2] * 5 + [0])


def test_a_cap_is_of_the_whole_mix(tmp_path):
    path = write(tmp_path / "w.csv", "concept,weight\nowl,8\nfox,1\nelk,1\n")
    pool = concepts.read(f"{path}:1,cifar10:1", cap=0.2)
    assert pool.shares()[:3].tolist() == pytest.approx([0.2, 0.15, 0.15])
    assert pool.shares()[3:].tolist() == pytest.approx([0.05] * 10)
