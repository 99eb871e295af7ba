"""Names of columns that ldmprobe adds to a dataset's own."""

from __future__ import annotations

ROW_NUMBER = "__row__"
IMAGE_HASH = "__image__"
"""The column that has the hashes of rows that were divided by them."""
OWN = (ROW_NUMBER, IMAGE_HASH)
