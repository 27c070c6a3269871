"""Make synclr_cli/data/digits.parquet, the data set `digits:`, from scikit-learn's copy.

    python tools/digits.py synclr_cli/data/digits.parquet

The 1,797 test images of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI
Machine Learning Repository 1998, doi 10.24432/C50P49, CC BY 4.0): real scans, reduced to 8 x 8
pixels of 17 grey levels. The file is 43 kB; scikit-learn, which only tests need beside, is 51 MB.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits


def make(path: Path) -> None:
    """Write the images' grey levels, 0 to 16, row by row, and their labels."""
    digits = load_digits()
    levels = [image.astype("uint8").tobytes() for image in digits.images]
    table = pa.table(
        {
            "levels": pa.array(levels, pa.binary(64)),
            "label": pa.array(digits.target.astype("uint8")),
        }
    )
    source = "UCI, Optical Recognition of Handwritten Digits, CC BY 4.0, doi 10.24432/C50P49"
    table = table.replace_schema_metadata({"source": source})
    pq.write_table(table, path, compression="zstd", compression_level=19, use_dictionary=["label"])


if __name__ == "__main__":
    make(Path(sys.argv[1]))
