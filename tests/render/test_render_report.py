"""What a rendered folder tells about itself."""

from __future__ import annotations

import re

import pytest
from test_render_run import render_config

from synclr_cli.errors import DataError
from synclr_cli.render.report import page, report
from synclr_cli.render.run import run


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


def test_an_unfinished_folder_has_no_report(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        report(tmp_path / "absent")
