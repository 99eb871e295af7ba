"""Pictures and boxes that a network is told: trained with from images and from a cache, resumed, read back, shown."""

import pytest
import torch

import ldmprobe
from ldmprobe import LatentCodec, Sampling, load_model
from ldmprobe.cli import main
from ldmprobe.data.builtin import load_builtin
from ldmprobe.data.latent_writer import write_cache
from ldmprobe.probing.analyses.samples import side_by_side
from tests.models.spatial import BUILTIN, KINDS, SIZE, data, fit, network


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_trained_with_resumed_from_a_cache_and_read_back(tmp_path, kind):
    make, channels, more = KINDS[kind]
    module, losses = fit(tmp_path, kind, data())
    write_cache(data(), LatentCodec(), make(), network(channels, **more), tmp_path / "latents")
    cached = data(latents=str(tmp_path / "latents"))
    resumed, rest = fit(tmp_path, kind, cached, str(tmp_path / "half.ckpt"))
    assert losses[2:] == rest
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in module.state_dict().items())

    loaded = load_model(str(tmp_path / "half.ckpt"), "cpu")
    ids = torch.arange(12)
    with torch.no_grad():
        expected, found = (each.conditioning.for_samples(ids) for each in (module, loaded))
        null = loaded.conditioning.null(12, torch.device("cpu"))
    assert expected.keys() == found.keys() == null.keys()
    assert loaded.conditioning.description == module.conditioning.description
    for name, value in expected.items():
        assert null[name].shape == value.shape
        assert torch.equal(value, found[name]) or loaded.conditioning.trained  # and so another one halfway
    picture = next(value for name, value in found.items() if name != "class_labels")
    assert len(picture[:6].flatten(1).unique(dim=0)) == 6  # held-out rows, one for each sample, of which there are six
    assert torch.equal(picture[:6], picture[6:]) or kind == "small image"  # whose noise is the sample's own
    shown = loaded.conditioning.shown(ids)
    assert shown.truth.shape == (12, 3, SIZE, SIZE)
    assert shown.condition.shape[-2] == SIZE
    assert shown.condition.abs().max() <= 1
    assert side_by_side([shown.condition[0], shown.truth[0]]).isfinite().all()
    assert ldmprobe.sample_images(loaded, Sampling(4, 2, batch_size=4)).shape == (4, 3, SIZE, SIZE)

    load_builtin("shapes", **BUILTIN, seed=9).select(range(5)).to_parquet("mine.parquet")
    command = ["sample", str(tmp_path / "half.ckpt"), "--num-samples", "3", "--num-steps", "2", "--device", "cpu"]
    mine = ["--data", "mine.parquet", "--label-column", "style"]
    hole = ["--column", "hole=mask"] if kind == "mask" else []
    assert main([*command, *mine, *hole, "--out", "drawn.png"]) == 0
