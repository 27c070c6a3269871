"""What a rendered folder tells about itself."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from zlib import crc32

import imagehash
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_folders import rejected, replace_part
from PIL import Image
from test_render_run import render_config

from synclr_cli.data import describe
from synclr_cli.errors import DataError
from synclr_cli.render.report import page, report
from synclr_cli.render.run import run
from synclr_cli.render.sheet import contact_sheet


def recount(out: Path) -> dict[str, object]:
    """Count a folder's rows one by one, from their bytes."""
    rows = [row for part in sorted(out.glob("part-*")) for row in pq.read_table(part).to_pylist()]
    of_caption: dict[int, int] = {}
    sizes: dict[str, int] = {}
    lengths, before, prints = [], set(), set()
    same_bytes = alike = masks = 0
    for row in rows:
        of_caption[row["caption_id"]] = of_caption.get(row["caption_id"], 0) + 1
        data = row["image"]["bytes"]
        image = Image.open(io.BytesIO(data))
        size = f"{image.width}x{image.height}"
        sizes[size] = sizes.get(size, 0) + 1
        lengths.append(len(data))
        masks += row["mask"] is not None
        same_bytes += data in before
        print_ = str(imagehash.phash(image))
        alike += print_ in prints
        before.add(data)
        prints.add(print_)
    views: dict[str, int] = {}
    for n in of_caption.values():
        views[str(n)] = views.get(str(n), 0) + 1
    return {
        "captions": len(of_caption),
        "concepts": len({row["concept"] for row in rows}),
        "images": len(rows),
        "looked_at": len(rows),
        "views": views,
        "sizes": sizes,
        "bytes": sum(p.stat().st_size for p in out.glob("part-*")),
        "bytes_per_image": sorted(lengths)[len(lengths) // 2],
        "masks": masks,
        "same_bytes": same_bytes,
        "alike": alike,
    }


def test_the_report_is_a_recount_of_the_rows(captions_file, tmp_path):
    """Views are missing, repeated byte by byte or only to the eye, larger, without a mask."""
    out = run(render_config(), captions_file(10), tmp_path / "images")
    part = out / "part-00000.parquet"
    table = pq.read_table(part)
    rows = table.to_pylist()
    rows[1]["image"] = rows[0]["image"]
    again = io.BytesIO()
    Image.open(io.BytesIO(rows[3]["image"]["bytes"])).save(again, "PNG")  # other bytes, alike
    rows[4]["image"] = {"bytes": again.getvalue(), "path": None}
    large = io.BytesIO()
    Image.open(io.BytesIO(rows[6]["image"]["bytes"])).resize((40, 24)).save(large, "PNG")
    rows[6] |= {"image": {"bytes": large.getvalue(), "path": None}, "width": 40, "height": 24}
    rows[7]["mask"] = None
    del rows[11]
    replace_part(out, 0, pa.Table.from_pylist(rows, schema=table.schema))
    expected, facts = recount(out), report(out)
    assert {key: facts[key] for key in expected} == expected
    # The edits are seen, each of them.
    assert expected["views"] == {"2": 1, "3": 9} and expected["masks"] == 28
    assert expected["same_bytes"] == 1 and expected["alike"] == 2
    assert expected["sizes"] == {"32x32": 28, "40x24": 1}


def test_what_was_rejected_is_counted_by_its_reason(captions_file, tmp_path):
    config = render_config(duplicate_bits=25, redraws=1, least_views=2)
    out = run(config, captions_file(10), tmp_path / "images")
    facts = report(out)
    reasons = [entry["reason"] for entry in rejected(out)]
    assert facts["rejected"] == {"duplicate": len(reasons)}
    assert all(reason.startswith("duplicate of view ") for reason in reasons) and len(reasons) > 5
    assert facts["captions"] == 10 - facts["set_aside"] and facts["engine"] == "procedural:"


def test_scores_are_told_by_their_quantiles(captions_file, tmp_path):
    out = run(render_config(), captions_file(10), tmp_path / "images")
    assert report(out)["scores"] == {}
    scores = [i / 29 for i in range(30)]
    for part in sorted(out.glob("part-*")):
        table = pq.read_table(part)
        own, scores = scores[: len(table)], scores[len(table) :]
        position = table.column_names.index("score") if "score" in table.column_names else None
        column = pa.array(own, pa.float32())
        if position is None:
            table = table.append_column("score", column)
        else:
            table = table.set_column(position, "score", column)
        replace_part(out, int(part.stem[5:]), table)
    middle = {"1 %": 0.01, "10 %": 0.1, "median": 0.5, "90 %": 0.9}
    assert report(out)["scores"] == pytest.approx({"least": 0, **middle, "greatest": 1}, abs=1e-4)


def test_captions_that_repeat_with_other_ids_do_not_repeat_their_images(captions_file, tmp_path):
    out = run(render_config(), captions_file([("a fox", "fox")] * 5), tmp_path / "images")
    assert report(out)["same_bytes"] == 0


def test_the_page_needs_no_other_file(captions_file, tmp_path):
    captions = captions_file([("a <b>fox</b> & co", "fox"), ("a bee", "bee")])
    out = run(render_config(), captions, tmp_path / "images")
    text = page(out, tmp_path / "page.html", captions=2, views=2).read_text()
    assert "a &lt;b&gt;fox&lt;/b&gt; &amp; co" in text
    sources = re.findall(r'src="([^"]+)"', text)
    assert len(sources) == 4 and all(s.startswith("data:image/jpeg;base64,") for s in sources)
    assert "href=" not in text


def test_images_that_do_not_decode_are_counted_and_shown_empty(captions_file, tmp_path):
    out = run(render_config(), captions_file(2), tmp_path / "images")
    part = out / "part-00000.parquet"
    table = pq.read_table(part)
    rows = table.to_pylist()
    # A header that claims 1.6 billion pixels, and nothing.
    huge = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))
        for kind, data in ((b"IHDR", huge), (b"IDAT", b""))
    ]
    claims = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(claims))
    rows[1]["image"]["bytes"], rows[4]["image"] = claims, None
    replace_part(out, 0, pa.Table.from_pylist(rows, schema=table.schema))
    facts = report(out)
    assert facts["unreadable"] == 2 and facts["images"] == facts["looked_at"] == 6
    assert contact_sheet(out, tmp_path / "sheet.png").is_file()


def test_a_truncated_part_is_one_line(captions_file, tmp_path):
    out = run(render_config(), captions_file(2), tmp_path / "images")
    part = out / "part-00000.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:3000])
    with pytest.raises(
        DataError, match=r"part-00000\.parquet is damaged \(3000 bytes.*same synclr render"
    ):
        report(out)
    part.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    for look in (report, lambda folder: contact_sheet(folder, tmp_path / "sheet.png")):
        with pytest.raises(DataError, match=r"cannot read .*part-00000"):
            look(out)


def test_an_unfinished_folder_is_described(captions_file, tmp_path):
    out = run(render_config(), captions_file(10), tmp_path / "images")
    (out / "_manifest.json").unlink()
    told = describe.describe(out).json()
    assert told["schema"] == "images/2" and not told["finished"] and told["parts"] == 3


def test_an_unfinished_folder_has_no_report(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        report(tmp_path / "absent")
