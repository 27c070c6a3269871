"""The digits that come with the package are scikit-learn's, to the last level."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import synclr_cli
from synclr_cli.data import layouts

TOOL = Path(__file__).parents[2] / "tools" / "digits.py"
FILE = Path(synclr_cli.__file__).parent / "data" / "digits.parquet"


def test_digits_are_those_of_scikit_learn_and_keep_their_digest():
    theirs = load_digits()
    ours = layouts._digits()
    pixels = (theirs.images * (255 / 16)).round().astype(np.uint8)
    labels = theirs.target.astype(np.int64)
    split = ours.splits["train"]
    assert np.array_equal(split.labels, labels) and split.labels.dtype == np.int64
    assert list(split.names) == [str(name) for name in theirs.target_names]
    # What features and reports of earlier versions name as their data.
    assert (
        ours.digest() == f"sha256:{hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()}"
    )


def test_the_tool_makes_the_file_that_is_shipped(tmp_path):
    spec = importlib.util.spec_from_file_location("digits_tool", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.make(tmp_path / "digits.parquet")
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "digits.parquet").equals(
        pq.read_table(FILE), check_metadata=True
    )
