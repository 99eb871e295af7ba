"""ldmprobe.probe: what it leaves behind, what it goes on from, what it refuses. (tests/test_your_own.py: that it
disturbs nothing.)"""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import ldmprobe
from ldmprobe import ClassConditioning, ConfigurationError, DiffusionModel, LatentCodec, RecordStore
from tests.helpers import gaussian_model, refused, sd_scheduler, tiny_unet

QUICK = {"num_samples": 8, "num_steps": 3, "num_draws": 32}
REAL = torch.randn(40, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def _files() -> list[str]:
    return sorted(path.as_posix() for path in Path("run").rglob("*") if path.is_file())


def test_without_data_there_is_the_ddim_probe_alone():
    (record,) = ldmprobe.probe(gaussian_model(), "run", 0, **QUICK)
    assert (record.probe, record.step, record.provenance["num_samples"]) == ("ddim", 0, 8)
    assert _files() == ["run/probes/ddim-00000000.parquet"]
    assert record.curves["step_kl"].value.tolist() == RecordStore("run").read()[0].curves["step_kl"].value.tolist()


def test_images_are_encoded_and_latents_are_not():
    codec = LatentCodec("builtin:digits")
    images = torch.rand(24, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = codec.encode(images, sample_posterior=False)
    schedule = sd_scheduler()
    model = DiffusionModel(tiny_unet(), schedule, (2, 8, 8), codec)
    of_images = ldmprobe.probe(model, "images", 0, images[:16], [images[16:]], **QUICK)
    of_latents = ldmprobe.probe(model, "latents", 0, [latents[:10], latents[10:16]], latents[16:], **QUICK)
    both = [{"image": part, "latent": torch.zeros(len(part), 2, 8, 8)} for part in (images[:16], images[16:])]
    of_both = ldmprobe.probe(model, "both", 0, both[:1], both[1:], **QUICK)
    assert [record.fingerprints for record in of_both] == [record.fingerprints for record in of_images]
    for one, other in zip(of_images, of_latents, strict=True):
        assert one.fingerprints == other.fingerprints
        for name, curve in one.curves.items():
            torch.testing.assert_close(curve.value, other.curves[name].value, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_scale_that_was_to_be_measured_and_was_not_is_refused():
    model = DiffusionModel(tiny_unet(), sd_scheduler(), (2, 8, 8), LatentCodec("builtin:digits", scale="measure"))
    images = torch.rand(16, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with refused(r"scale of the latents is to be measured .* call `codec.measure_scale\(batches\)` first"):
        ldmprobe.probe(model, "run", 0, images, **QUICK)


def test_labels_of_held_out_batches_reach_the_network():
    unet = tiny_unet(num_class_embeds=4)
    model = DiffusionModel(unet, sd_scheduler(), (2, 8, 8), conditioning=ClassConditioning(num_classes=3))
    real = torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    means = []
    for label in (0, 1):
        held_out = DataLoader(TensorDataset(real, torch.full((16,), label)), batch_size=5)
        _, denoising = ldmprobe.probe(model, f"label{label}", 0, held_out, held_out, **QUICK)
        means.append(denoising.scalars["denoising_bound_nats"])
    assert means[0] != means[1]


def test_a_loader_that_training_reads_from_is_left_where_it_is():
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(REAL, batch_size=8, shuffle=True, generator=generator)
    expected = list(DataLoader(REAL, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0)))
    seen = []
    for step, batch in enumerate(loader):
        seen.append(batch)
        ldmprobe.probe(gaussian_model(), "run", step, loader, loader, **QUICK)
    assert torch.equal(torch.cat(seen), torch.cat(expected))


def test_a_run_that_goes_on_sets_later_records_aside_and_keeps_its_reference():
    model = gaussian_model()
    for step in (0, 2, 4):
        ldmprobe.probe(model, "run", step, REAL, REAL[:16], **QUICK)
    kept = Path("run/reference.safetensors").read_bytes()
    _, denoising = ldmprobe.probe(model, "run", 2, 2 * REAL, REAL[:16], **QUICK)
    assert Path("run/reference.safetensors").read_bytes() == kept
    assert denoising.provenance["progress_since_step"] == 0
    assert [record.step for record in RecordStore("run").read("denoising")] == [0, 2]
    aside = sorted(path.name for path in Path("run/superseded").iterdir())
    assert aside == [f"{probe}-0000000{step}.parquet" for probe in ("ddim", "denoising") for step in (2, 4)]


def test_a_cell_that_is_run_twice_begins_anew_where_it_may():
    for step in (0, 1):
        ldmprobe.probe(gaussian_model(), "run", step, REAL, overwrite=True, **QUICK)
    kept = Path("run/reference.safetensors").read_bytes()
    (anew,) = ldmprobe.probe(gaussian_model(), "run", 0, 2 * REAL, overwrite=True, **QUICK)
    assert Path("run/reference.safetensors").read_bytes() != kept
    (record,) = RecordStore("run").read()
    assert record.curves["step_kl_ideal"].value.tolist() == anew.curves["step_kl_ideal"].value.tolist()
    assert len([*Path("run/superseded").iterdir()]) == 2


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"held_out": REAL}, "give `real` as well"),
        ({"real": REAL, "held_out": iter([REAL])}, "held_out is a list_iterator, which can be read only once"),
        ({"real": torch.randn(9, 3, 4, 4)}, "become latents of shape (3, 4, 4), the model's are (2, 4, 4)"),
        ({"real": REAL[:7]}, "The reference has 7 real latents; expected at least 8"),
        ({"real": []}, "There are no images"),
        ({"real": REAL, "held_out": []}, "There are no held-out images"),
        ({"real": ["picture.png"]}, "cannot read batches of str"),
        ({"num_samples": 7}, "num_samples is 7; expected at least 8"),
        ({"num_steps": 0}, "num_steps is 0; expected 1 to 1000"),
        ({"real": REAL, "held_out": REAL, "num_draws": 31}, "num_draws is 31; expected at least"),
    ],
)
def test_what_is_refused_leaves_nothing_behind_and_can_be_put_right(data, text):
    with pytest.raises(ConfigurationError) as refused:
        ldmprobe.probe(gaussian_model(), "run", 0, **{**QUICK, **data})
    assert text in str(refused.value)
    assert _files() == []
    ldmprobe.probe(gaussian_model(), "run", 0, **QUICK)


def test_a_network_instead_of_a_diffusion_model_is_refused():
    with refused(r"probe got a UNet2DModel; expected `ldmprobe.DiffusionModel\(network"):
        ldmprobe.probe(tiny_unet(), "run", 0)


def test_the_directory_of_another_run_or_of_another_codec_is_refused():
    model = gaussian_model()
    ldmprobe.probe(model, "run", 0, REAL, **QUICK)
    before = {path: Path(path).read_bytes() for path in _files()}
    with refused("run already holds a run.*Choose a new `run_dir`.* give `overwrite=True`"):
        ldmprobe.probe(model, "run", 0, REAL, **QUICK)
    model.codec = LatentCodec(scale=2.0)
    with refused("was fitted on latents of another codec"):
        ldmprobe.probe(model, "run", 1, REAL, **QUICK)
    assert {path: Path(path).read_bytes() for path in _files()} == before
