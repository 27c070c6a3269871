"""Labelled images: every layout, the splits held out, and what users bring that cannot work."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from synclr_cli.data import labelled, layouts, sources
from synclr_cli.data.artifacts import Header
from synclr_cli.data.shards import ShardedDataset
from synclr_cli.errors import DataError, UsageError


def image(value=0, size=(8, 6)):
    return Image.new("RGB", size, (value, 255 - value, 7))


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def class_folders(root: Path, counts: dict[str, int]) -> Path:
    """Write n images into each folder; the n-th is n levels red."""
    for folder, n in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(n):
            image(i).save(root / folder / f"{i}.png")
    return root


def write_parquet(path: Path, columns: dict, features: dict | None = None) -> Path:
    table = pa.table(columns)
    if features:
        described = {"info": {"features": features}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)
    return path


def images_column(n):
    return [{"bytes": encoded(image(i)), "path": None} for i in range(n)]


def open_data(spec, **options):
    return labelled.open_data(str(spec), **{"validation_share": 0.25, "seed": 0, **options})


# ------------------------------------------------------------------------------------ layouts


def test_class_folders_with_splits_are_read_as_they_are(tmp_path):
    root = class_folders(
        tmp_path / "pets",
        {f"{s}/{c}": 3 for s in ("train", "valid", "test") for c in ("cat", "dog")},
    )
    data = open_data(root)
    assert data.name == "pets"
    assert data.classes == ["cat", "dog"]
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 6,
        "val": 6,
        "test": 6,
    }
    assert set(data.facts.values()) == {"the data's own"}
    assert data.splits["val"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.splits["val"].image(4).getpixel((0, 0)) == (1, 254, 7)


@pytest.mark.parametrize("names", [("Train", "Test"), ("training_set", "test_set")])
def test_splits_are_known_by_other_spellings(tmp_path, names):
    train, test = names
    counts = {f"{train}/a": 8, f"{train}/b": 8, f"{test}/a": 2, f"{test}/b": 2}
    data = open_data(class_folders(tmp_path / "x", counts))
    assert data.classes == ["a", "b"] and len(data.splits["test"]) == 4
    for name, n in zip(names, (16, 4), strict=True):
        columns = {"image": images_column(n), "label": ["x", "y"] * (n // 2)}
        write_parquet(tmp_path / "y" / f"{name}.parquet", columns)
    assert len(open_data(tmp_path / "y").splits["test"]) == 4


def test_splits_of_unknown_names_are_not_taken_for_classes(tmp_path):
    counts = {f"{split}/{kind}": 4 for split in ("fold0", "fold1") for kind in ("a", "b")}
    with pytest.raises(DataError, match=r"fold0, fold1, each with the folders a, b"):
        open_data(class_folders(tmp_path / "x", counts))


def test_hidden_folders_and_folders_named_like_images_are_no_images(tmp_path):
    root = class_folders(tmp_path / "x", {"a": 4, "b": 4, "a/.ipynb_checkpoints": 1, "b/c.png": 0})
    assert sum(map(len, open_data(root).splits.values())) == 8


def test_class_folders_without_images_are_named(tmp_path, capsys):
    counts = {"a": 4, "b": 4} | {f"empty{i}": 0 for i in range(6)}
    assert open_data(class_folders(tmp_path / "x", counts)).classes == ["a", "b"]
    told = " ".join(capsys.readouterr().err.split())
    assert "no classes: empty0, empty1, empty2, empty3, empty4, ..." in told


@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_column_of_anything_but_images_is_named(tmp_path, column):
    columns = {"image": images_column(4), "mask": images_column(4), "label": ["x", "y"] * 2}
    path = write_parquet(tmp_path / "x.parquet", columns | {column: ["a.png"] * 4})
    with pytest.raises(DataError, match=rf"column {column}: got type string, expected encoded"):
        open_data(path, masks=column == "mask")


def test_class_folders_without_splits_are_split_class_by_class(tmp_path):
    data = open_data(class_folders(tmp_path, {"a": 16, "b": 32}))
    for name in ("val", "test"):
        assert "held out" in data.facts[name]
    sizes = {k: np.bincount(s.labels).tolist() for k, s in data.splits.items()}
    assert sizes == {"train": [9, 18], "val": [3, 6], "test": [4, 8]}
    rows = np.concatenate([split.rows for split in data.splits.values()])
    assert sorted(rows) == list(range(48))


def test_the_one_public_evaluation_split_is_the_test_split(tmp_path):
    data = open_data(
        class_folders(tmp_path, {f"{s}/{c}": 8 for s in ("train", "val") for c in "ab"})
    )
    assert data.facts["test"] == "the data's own validation split"
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 12, "val": 4, "test": 16}


def test_another_seed_holds_out_other_images_and_the_same_seed_the_same(tmp_path):
    root = class_folders(tmp_path, {"a": 20, "b": 20})
    rows = [open_data(root, seed=seed).splits["val"].rows.tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_parquet_in_hugging_face_layout_names_its_classes(tmp_path):
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["no", "yes"], "_type": "ClassLabel"},
    }
    for name, n in (("train-00000-of-00002", 10), ("train-00001-of-00002", 6), ("test", 4)):
        write_parquet(
            tmp_path / "data" / f"{name}.parquet",
            {"image": images_column(n), "label": [i % 2 for i in range(n)]},
            features,
        )
    data = open_data(tmp_path)
    assert data.classes == ["no", "yes"]
    assert len(data.splits["train"]) + len(data.splits["val"]) == 16
    assert len(data.splits["test"]) == 4
    train = data.splits["train"]
    for i in range(len(train)):  # row r of a file is r levels red and of class r % 2
        red = train.image(i).getpixel((0, 0))[0]
        assert red % 2 == train.labels[i]


def test_split_folders_of_parquet_parts_are_found(tmp_path):
    for split in ("train", "test"):
        write_parquet(
            tmp_path / split / "part-0.parquet",
            {"image": images_column(8), "label": ["x", "y"] * 4},
        )
    data = open_data(tmp_path)
    assert data.classes == ["x", "y"]
    assert data.facts["test"] == "the data's own"


def test_whole_number_labels_without_names_are_their_own_names(tmp_path):
    path = write_parquet(
        tmp_path / "x.parquet", {"image": images_column(24), "label": [3, 70, 11] * 8}
    )
    data = open_data(path)
    assert data.classes == ["3", "11", "70"]
    assert data.splits["train"].labels.max() == 2


def test_a_test_split_whose_labels_are_secret_is_passed_over(tmp_path):
    for name, labels in (("train", [0, 1] * 8), ("test", [-1] * 4)):
        write_parquet(
            tmp_path / f"{name}.parquet",
            {"image": images_column(len(labels)), "label": labels},
        )
    assert "held out" in open_data(tmp_path).facts["test"]


def rendered(root: Path, captions: int, views: int, masks: bool = True) -> Path:
    """Write an images/1 folder of two concepts by hand."""
    root.mkdir()
    header = Header(schema="images", config={"views": views})
    rows = [(c, v) for c in range(captions) for v in range(views)]
    mask = Image.fromarray(np.eye(6, 8, dtype=np.uint8))
    table = pa.table(
        {
            "caption_id": pa.array([c for c, _ in rows], pa.int64()),
            "view": pa.array([v for _, v in rows], pa.int32()),
            "caption": [f"caption {c}" for c, _ in rows],
            "concept": ["owl" if c % 2 else "ant" for c, _ in rows],
            "image": [{"bytes": encoded(image(c)), "path": f"{c}-{v}.png"} for c, v in rows],
            "width": pa.array([8] * len(rows), pa.int32()),
            "height": pa.array([6] * len(rows), pa.int32()),
            "seed": pa.array([0] * len(rows), pa.int64()),
            "mask": [{"bytes": encoded(mask), "path": None} if masks else None for _ in rows],
            "score": pa.nulls(len(rows), pa.float32()),
        }
    )
    dataset = ShardedDataset(root, "images", header)
    with dataset.claim():
        dataset.write(0, table, rows_per_group=4)
        dataset.finish(1)
    return root


def test_views_of_one_caption_stay_in_one_split(tmp_path):
    data = open_data(rendered(tmp_path / "images", captions=24, views=3))
    assert data.classes == ["ant", "owl"]
    seen = {}
    for name, split in data.splits.items():
        seen[name] = {split.image(i).getpixel((0, 0))[0] for i in range(len(split))}
        assert len(split) == 3 * len(seen[name])
    assert not (seen["train"] & seen["val"] | seen["train"] & seen["test"])
    assert not seen["val"] & seen["test"]
    assert data.header is not None


def test_rendered_images_serve_as_segmentation_data(tmp_path):
    data = open_data(rendered(tmp_path / "images", captions=8, views=2), masks=True)
    assert data.classes == ["0", "1"]
    assert data.splits["train"].mask(0).tolist() == np.eye(6, 8).tolist()


def test_rendered_images_without_masks_say_so(tmp_path):
    root = rendered(tmp_path / "images", captions=8, views=2, masks=False)
    with pytest.raises(DataError, match="row 0 has no mask"):
        open_data(root, masks=True)


def test_unfinished_rendering_is_refused(tmp_path):
    root = rendered(tmp_path / "images", captions=8, views=2)
    (root / "_manifest.json").unlink()
    with pytest.raises(DataError, match="not finished"):
        open_data(root)


def mask_folders(root: Path, ids=(0, 1), size=(8, 6)) -> Path:
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(4):
            image(i).save(root / "images" / split / f"{i}.jpg")
            mask = np.resize(np.array(ids, np.uint8), size[::-1])
            Image.fromarray(mask).save(root / "annotations" / split / f"{i}.png")
    return root


def test_mask_folders_are_read(tmp_path):
    data = open_data(mask_folders(tmp_path, ids=(0, 2, 255)), masks=True)
    assert data.classes == ["0", "1", "2"]
    assert data.splits["test"].mask(1)[0, :4].tolist() == [0, 2, 255, 0]


def test_names_of_mask_classes_may_be_given(tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    assert open_data(mask_folders(tmp_path), masks=True).classes == ["sky", "road", "car"]


def test_reducing_the_zero_label_makes_it_unlabelled_and_moves_the_others_down(tmp_path):
    root = mask_folders(tmp_path, ids=(0, 1, 2, 255))
    data = open_data(root, masks=True, reduce_zero_label=True)
    assert data.classes == ["0", "1"]
    before = open_data(root, masks=True).splits["train"].mask(0)
    after = data.splits["train"].mask(0)
    for was, becomes in ((0, 255), (1, 0), (2, 1), (255, 255)):
        assert set(after[before == was]) == {becomes}


@pytest.fixture
def voc(tmp_path, monkeypatch):
    """Lay out VOC 2007 where torchvision would put it: two images of train, one of val, test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module in ("VOCDetection", "VOCSegmentation"):
        root = tmp_path / "synclr" / "torchvision" / module / "VOCdevkit" / "VOC2007"
        lists = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
        for kind in ("Main", "Segmentation"):
            (root / "ImageSets" / kind).mkdir(parents=True)
            for split, names in lists.items():
                (root / "ImageSets" / kind / f"{split}.txt").write_text("\n".join(names))
        for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
            (root / folder).mkdir()
        for name, objects in (("a", "cat dog"), ("b", "dog -cat"), ("c", "cat"), ("d", "dog")):
            image(9).save(root / "JPEGImages" / f"{name}.jpg")
            ids = np.array([[0, 8, 12], [15, 20, 255]], np.uint8).repeat(3, 0)[:, [0, 1, 2] * 2]
            Image.fromarray(np.pad(ids, ((0, 0), (0, 2)))).save(
                root / "SegmentationClass" / f"{name}.png"
            )
            marked = "".join(
                f"<object><name>{each.strip('-')}</name>"
                f"<difficult>{int(each.startswith('-'))}</difficult></object>"
                for each in objects.split()
            )
            (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{marked}</annotation>")
    from torchvision.datasets import voc as module

    monkeypatch.setattr(module, "download_and_extract_archive", lambda *a, **k: None)
    return root


@pytest.mark.parametrize("where", ["torchvision", "folder"])
def test_vocs_objects_are_several_labels_of_a_image_but_difficult_ones(voc, where):
    # Classes that no image of train has are refused elsewhere; here there are two of twenty.
    found = layouts.find("torchvision:VOCDetection" if where != "folder" else str(voc), masks=False)
    assert {name: len(split.labels) for name, split in found.splits.items()} == {
        "train": 2, "val": 1, "test": 1
    }  # fmt: skip
    cat, dog = (layouts.VOC_CLASSES.index(name) for name in ("cat", "dog"))
    assert list(found.splits["train"].labels) == [[cat, dog], [dog]]
    assert found.splits["train"].source.image(0).size == (8, 6)


@pytest.mark.parametrize("where", ["torchvision", "folder"])
def test_vocs_masks_are_segmentation_data_with_names(voc, where):
    data = open_data("torchvision:VOCSegmentation" if where != "folder" else voc, masks=True)
    assert data.classes[0] == "background" and data.classes[15] == "person"
    assert len(data.classes) == 21 and set(np.unique(data.splits["val"].mask(0))) >= {8, 255}


def test_an_annotation_of_voc_that_is_damaged_is_named(voc):
    (voc / "Annotations" / "b.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"cannot read the classes in .*b\.xml"):
        layouts.find(str(voc), masks=False)


def test_the_digits_come_without_a_download():
    data = open_data("digits:", validation_share=0.2)
    assert len(data.classes) == 10
    assert sum(len(s) for s in data.splits.values()) == 1797
    assert data.splits["test"].image(0).size == (8, 8)


# ------------------------------------------------------------------------------------- digests


def test_the_digest_is_that_of_the_content_not_of_the_place(tmp_path):
    one = class_folders(tmp_path / "one", {"a": 8, "b": 8})
    two = class_folders(tmp_path / "two", {"a": 8, "b": 8})
    assert open_data(one).digest == open_data(two).digest
    image(99).save(two / "a" / "0.png")
    assert open_data(one).digest != open_data(two).digest


def test_moving_a_image_to_another_class_changes_the_digest(tmp_path):
    root = class_folders(tmp_path, {"a": 8, "b": 8})
    before = open_data(root).digest
    (root / "a" / "0.png").rename(root / "b" / "x.png")
    assert open_data(root).digest != before


def test_no_more_row_groups_are_kept_than_fit(tmp_path, monkeypatch):
    path = write_parquet(
        tmp_path / "x.parquet", {"image": images_column(16), "label": ["x", "y"] * 8}
    )
    monkeypatch.setattr(sources, "CACHE_BYTES", 1)
    rows = sources.ParquetRows([path], "image")
    assert [rows.image(i).getpixel((0, 0))[0] for i in (15, 0, 7, 8)] == [15, 0, 7, 8]
    assert len(rows._kept) == 1
    assert rows.where(9).endswith("x.parquet row 9")


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"a": 8}, "one class, a"),
        ({"train/a": 4, "train/b": 4, "test/c": 4}, "class c of the test split"),
        ({"train/a": 4, "train/b": 4, "test/a": 0}, "no folders with images"),
        ({"a": 1, "b": 1}, "every class has one image"),
        ({"test/a": 4, "test/b": 4}, "no train split"),
    ],
)
def test_folders_that_cannot_be_judged_on(tmp_path, counts, message):
    with pytest.raises(DataError, match=message):
        open_data(class_folders(tmp_path / "x", counts))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no folders with images"):
        open_data(tmp_path)


def test_an_empty_parquet_split_is_refused(tmp_path):
    empty = pa.array([], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    path = write_parquet(
        tmp_path / "x.parquet", {"image": empty, "label": pa.array([], pa.int64())}
    )
    with pytest.raises(DataError, match="train split is empty"):
        open_data(path)


def test_a_image_that_does_not_decode_names_its_row(tmp_path):
    cells = images_column(16)
    cells[5] = {"bytes": b"no image", "path": None}
    path = write_parquet(tmp_path / "x.parquet", {"image": cells, "label": ["x", "y"] * 8})
    data = open_data(path)
    with pytest.raises(DataError, match=r"x\.parquet row 5 does not decode"):
        for split in data.splits.values():
            for i in range(len(split)):
                split.image(i)


def test_a_label_beyond_the_named_classes_names_its_row(tmp_path):
    path = write_parquet(
        tmp_path / "x.parquet",
        {"image": images_column(8), "label": [0, 1, 0, 1, 0, 1, 2, 0]},
        {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}},
    )
    with pytest.raises(DataError, match="row 6: got 2, expected 0 to 1"):
        open_data(path)


def test_a_missing_label_names_its_row(tmp_path):
    path = write_parquet(
        tmp_path / "x.parquet", {"image": images_column(4), "label": ["x", "y", None, "x"]}
    )
    with pytest.raises(DataError, match=r"x\.parquet: column label has no value in row 2"):
        open_data(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"label": ["x", "y"]}, "expected image"), ({"image": images_column(2)}, "no labels")],
)
def test_a_missing_column_is_named(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        open_data(write_parquet(tmp_path / "x.parquet", columns))


def test_a_truncated_parquet_file_is_refused(tmp_path):
    path = write_parquet(
        tmp_path / "x.parquet", {"image": images_column(8), "label": ["x", "y"] * 4}
    )
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="truncated"):
        open_data(path)


def test_masks_of_another_size_are_refused(tmp_path):
    with pytest.raises(DataError, match="got 9x6 pixels, expected the image's 8x6"):
        open_data(mask_folders(tmp_path, size=(9, 6)), masks=True)


def test_a_mask_id_that_train_lacks_is_refused(tmp_path):
    root = mask_folders(tmp_path)
    Image.fromarray(np.full((6, 8), 7, np.uint8)).save(root / "annotations/val/2.png")
    with pytest.raises(DataError, match=r"2\.jpg: got class id 7, expected 0 to 1, or 255"):
        open_data(root, masks=True)


def test_a_colour_mask_is_refused(tmp_path):
    root = mask_folders(tmp_path)
    image().save(root / "annotations/train/0.png")
    with pytest.raises(DataError, match="one channel of class ids"):
        open_data(root, masks=True)


def test_a_image_without_its_mask_is_refused(tmp_path):
    root = mask_folders(tmp_path)
    (root / "annotations/train/1.png").unlink()
    with pytest.raises(DataError, match="has no mask"):
        open_data(root, masks=True)


def test_masks_of_one_class_are_refused(tmp_path):
    with pytest.raises(DataError, match="fewer than two classes"):
        open_data(mask_folders(tmp_path / "x", ids=(0,)), masks=True)
    with pytest.raises(DataError, match="fewer than two classes: got id 3 alone"):
        open_data(mask_folders(tmp_path / "y", ids=(3, 255)), masks=True)


def test_a_split_without_a_labelled_pixel_is_refused(tmp_path):
    root = mask_folders(tmp_path)
    for file in (root / "annotations/val").iterdir():
        Image.fromarray(np.full((6, 8), 255, np.uint8)).save(file)
    with pytest.raises(DataError, match=r"every pixel of the .* split's masks is 255, unlabelled"):
        open_data(root, masks=True)


def test_names_of_mask_classes_are_different_ones(tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nroad\nsky\n")
    with pytest.raises(DataError, match=r"classes.txt names sky more than once"):
        open_data(mask_folders(tmp_path), masks=True)


def test_mask_folders_are_not_taken_for_classes(tmp_path):
    with pytest.raises(DataError, match="synclr segment"):
        open_data(mask_folders(tmp_path))


def test_class_folders_are_not_taken_for_masks(tmp_path):
    with pytest.raises(DataError, match="has no masks"):
        open_data(class_folders(tmp_path / "x", {"a": 4, "b": 4}), masks=True)


@pytest.mark.parametrize("spec", ["nowhere", "nowhere.parquet"])
def test_data_that_is_not_there_is_refused(spec):
    with pytest.raises(DataError, match="nothing there"):
        open_data(spec)


@pytest.mark.parametrize("spec", ["coco:val", "torchvision:Nope"])
def test_an_unknown_source_is_refused(spec):
    with pytest.raises(UsageError):
        open_data(spec)
