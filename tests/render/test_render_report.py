"""What a rendered folder tells about itself."""

from __future__ import annotations

import io
import re
import struct
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_render_run import render_config

from synclr_cli.data import describe
from synclr_cli.errors import DataError
from synclr_cli.render.report import page, report
from synclr_cli.render.run import run
from synclr_cli.render.sheet import contact_sheet


def test_the_report_counts_what_was_rendered(captions_file, tmp_path):
    config = render_config(duplicate_bits=25, redraws=1, least_views=2)
    out = run(config, captions_file(10), tmp_path / "images")
    facts = report(out)
    aside = facts["set_aside"]
    assert facts["captions"] == 10 - aside and facts["concepts"] == 4
    assert facts["pictures"] == sum(int(n) * c for n, c in facts["views"].items())
    assert facts["sizes"] == {"32x32": facts["pictures"]} and facts["masks"] == facts["pictures"]
    assert facts["bytes"] == sum(p.stat().st_size for p in out.glob("part-*"))
    assert facts["rejected"]["duplicate"] > 0
    assert facts["same_bytes"] == facts["alike"] == 0 and facts["engine"] == "procedural:"


def test_captions_that_repeat_with_other_ids_do_not_repeat_their_pictures(captions_file, tmp_path):
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


def test_pictures_that_do_not_decode_are_counted_and_shown_empty(captions_file, tmp_path):
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
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), part)
    facts = report(out)
    assert facts["unreadable"] == 2 and facts["pictures"] == facts["looked_at"] == 6
    assert contact_sheet(out, tmp_path / "sheet.png").is_file()


def test_a_truncated_part_is_one_line(captions_file, tmp_path):
    out = run(render_config(), captions_file(2), tmp_path / "images")
    part = out / "part-00000.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:3000])
    with pytest.raises(DataError, match="is no Parquet file, or a truncated one"):
        report(out)
    part.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    for look in (report, lambda folder: contact_sheet(folder, tmp_path / "sheet.png")):
        with pytest.raises(DataError, match=r"cannot read .*part-00000"):
            look(out)


def test_an_unfinished_folder_is_described(captions_file, tmp_path):
    out = run(render_config(), captions_file(10), tmp_path / "images")
    (out / "manifest.json").unlink()
    told = describe.describe(out).json()
    assert told["schema"] == "images/1" and not told["finished"] and told["parts"] == 3


def test_an_unfinished_folder_has_no_report(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        report(tmp_path / "absent")
