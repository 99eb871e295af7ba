"""Images on a page: small ones as they are, many and large ones within a budget."""

import base64
import io

import numpy as np
from PIL import Image

from ldmprobe.io.record import ProbeRecord
from ldmprobe.tracking import thumbnails
from ldmprobe.tracking.thumbnails import sample_uris


def png(edge, channels, seed=0):
    noise = np.random.default_rng(seed).integers(0, 255, (edge, edge, channels), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise.squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


def shown(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_small_images_stay_as_they_are():
    small = png(32, 1)
    (uris,) = sample_uris([ProbeRecord("ddim", 1, images={"samples": [small, small]})], "samples")
    assert uris == [f"data:image/png;base64,{base64.b64encode(small).decode()}"] * 2


def test_large_images_are_reduced_and_many_are_reduced_further(monkeypatch):
    monkeypatch.setattr(thumbnails, "TOTAL_BYTES", 100_000)
    large = png(300, 3)
    few, many = ([ProbeRecord("ddim", k, images={"samples": [large]}) for k in range(n)] for n in (1, 12))
    (only,) = sample_uris(few, "samples")
    assert shown(only[0]).size == (256, 256)
    found = sample_uris([*many, ProbeRecord("ddim", 13)], "samples")
    assert [len(uris) for uris in found] == [1] * 12 + [0]
    assert {shown(uri).size for uris in found for uri in uris} <= {(96, 96), (64, 64), (128, 128)}
    assert sum(len(uri) for uris in found for uri in uris) < 100_000 * 4 / 3 + 500


def test_transparency_stays():
    (uris,) = sample_uris([ProbeRecord("ddim", 1, images={"samples": [png(64, 4)]})], "samples")
    assert shown(uris[0]).mode == "RGBA"
