"""A small model of the digits 0 … 4 is finetuned on 5 … 9, and watched."""

import copy
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldmprobe import ClassConditioning, Curve, ImageData, LatentDiffusion, LoRA, RecordStore, probe_lora_strength
from ldmprobe.callbacks import Forgetting, LoRAStrength, ReportWriter
from ldmprobe.data.builtin import digits as all_digits
from ldmprobe.pretrained.lora import at_strength, lora_at
from ldmprobe.tracking.report import report_html
from tests.helpers import refused, tiny_unet
from tests.training.test_latent_diffusion import assert_same_state, stopped, trainer

BASE_STEPS, NEW_STEPS = 300, 60


class Perceptron(nn.Module):
    """A denoiser of 8×8 images that learns in seconds."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64 + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 64)
        )

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        phase = torch.arange(1, 9) * (torch.pi / 2000) * t[:, None].float()
        features = torch.cat([z_t.flatten(1), phase.sin(), phase.cos()], dim=1)
        return z_t + self.layers(features).view_as(z_t)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds ``base.parquet``, ``new.parquet`` and ``base.pt``, the model trained on the former."""
    folder = tmp_path_factory.mktemp("digits")
    table = all_digits()
    low = np.asarray(table["label"]) < 5
    for name, rows in (("base", np.flatnonzero(low)), ("new", np.flatnonzero(~low))):
        table.select(rows).to_parquet(folder / f"{name}.parquet")
    rows = data(folder, "base")
    rows.setup()
    images = torch.cat([batch["image"] for batch in rows.reference_batches(1000)])  # decoded once, not at every step
    torch.manual_seed(0)
    chosen = torch.randint(len(images), (BASE_STEPS, 64))
    batches = [{"image": images[numbers], "index": numbers} for numbers in chosen]
    model = module(Perceptron())
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer(folder / "base", max_steps=BASE_STEPS, limit_val_batches=0).fit(model, loader)
    torch.save(model.network.state_dict(), folder / "base.pt")
    return folder


def data(folder, name, **kwargs):
    return ImageData(str(folder / f"{name}.parquet"), batch_size=64, check_rows=5, **kwargs)


def module(network, **kwargs):
    def adam(params):
        return torch.optim.AdamW(params, lr=3e-3)

    settings = {"ema_decay": None, "validation_timesteps": 2, "latent_shape": (1, 8, 8)}
    return LatentDiffusion(network, optimizer=adam, **{**settings, **kwargs})


def finetuned(folder, run_dir, callbacks, max_steps=NEW_STEPS, ckpt_path=None, lora=None):
    network = Perceptron()
    network.load_state_dict(torch.load(folder / "base.pt", weights_only=True))
    if lora is not None:
        lora.add_to(network)
    fit = trainer(run_dir, max_steps=max_steps, limit_val_batches=0, callbacks=callbacks)
    model = module(network)
    fit.fit(model, data(folder, "new"), ckpt_path=ckpt_path)
    return fit, model


def forgetting(folder, **kwargs):
    settings = {"every_n_steps": 30, "num_images": 96, "num_draws": 192}
    return Forgetting(data(folder, "base"), **{**settings, **kwargs})


@pytest.fixture(scope="module")
def run(folder):
    """Directory and final model of a run that was watched."""
    run_dir = folder / "run"
    _, model = finetuned(folder, run_dir, [forgetting(folder), ReportWriter()])
    return run_dir, model


def test_what_is_gained_on_the_new_is_lost_on_the_old(run):
    run_dir, _ = run
    before, _, last = RecordStore(run_dir).read("forgetting")
    assert [record.step for record in (before, last)] == [0, NEW_STEPS]
    assert not any(before.scalars.values())
    assert last.scalars["forgotten_nats"] > 2 * last.scalars["forgotten_nats_half_width"] > 0
    assert last.scalars["gained_nats"] > 2 * last.scalars["gained_nats_half_width"] > 0
    assert last.provenance["summary"].startswith("Forgets most at log-SNR")
    assert "Gains most at log-SNR" in last.provenance["summary"]
    for kind in ("base", "new"):  # what it says of the base model is what was found then
        for name in ("skill", "residual"):
            told, found = last.curves[f"forgetting_{name}_before/{kind}"], before.curves[f"forgetting_{name}/{kind}"]
            np.testing.assert_array_equal(told.value, found.value)


def test_each_kind_of_data_has_a_reference_of_its_own(run):
    run_dir, _ = run
    base, new = ((run_dir / f"{name}.safetensors").read_bytes() for name in ("base_reference", "reference"))
    assert base != new
    fingerprints = RecordStore(run_dir).read("forgetting")[-1].fingerprints
    assert fingerprints["reference/base"] != fingerprints["reference/new"]


def test_training_is_the_same_without_it(folder, run, tmp_path):
    _, unwatched = finetuned(folder, tmp_path, [])
    assert_same_state(run[1].state_dict(), unwatched.state_dict())


def test_a_resumed_run_compares_with_the_same_base_model(folder, run, tmp_path):
    first, _ = finetuned(folder, tmp_path, [forgetting(folder)], max_steps=30)
    first.save_checkpoint(tmp_path / "thirty.ckpt")
    finetuned(folder, tmp_path, [forgetting(folder)], ckpt_path=str(tmp_path / "thirty.ckpt"))
    whole, parts = (RecordStore(run_dir).read("forgetting") for run_dir in (run[0], tmp_path))
    assert [record.step for record in parts] == [0, 30, NEW_STEPS]
    for expected, found in zip(whole, parts, strict=True):
        assert (found.scalars, found.fingerprints) == (expected.scalars, expected.fingerprints)
        for name, curve in expected.curves.items():
            np.testing.assert_array_equal(found.curves[name].value, curve.value)
            np.testing.assert_array_equal(found.curves[name].lower, curve.lower)


def test_a_run_whose_base_model_was_not_measured_is_told_what_to_do(folder, tmp_path):
    two = stopped(tmp_path, 2, module(Perceptron()), data(folder, "new"), limit_val_batches=0)
    with refused(r"no such record in .*: start anew with Forgetting .*probe_forgetting"):
        finetuned(folder, tmp_path, [forgetting(folder)], ckpt_path=two)


def test_the_report_shows_it(folder, run):
    html = unescape((run[0] / "report.html").read_text())
    changes = [f"{what} before and after finetuning" for what in ("Skill", "Residual R")]
    for heading in ("What finetuning forgot and gained", "Forgotten", "Gained", *changes):
        assert f"<h2>{heading}</h2>" in html
    assert "could not be drawn" not in html.lower()
    sets = [data(folder, name) for name in ("base", "new")]
    for each in sets:
        each.setup()
    base, new = (min(96, len(each.rows["held_out"])) for each in sets)
    assert f"draws, of {base} images of the base model's data and {new} of the new" in html
    scalars = RecordStore(run[0]).read("forgetting")[-1].scalars
    for title, total in (("Forgotten", "forgotten_nats"), ("Gained", "gained_nats")):
        value = f"{scalars[total]:.1f}" if scalars[total] >= 100 else f"{scalars[total]:.3g}"
        assert re.search(rf"<span>{title}</span><strong>{value}</strong> <em>± [\d.]+ nats", html)


def test_predictions_that_are_not_finite_have_a_page_all_the_same(run):
    record = RecordStore(run[0]).read("forgetting")[-1]
    gone = {name: Curve(c.timestep, c.log_snr, c.value * np.nan, None, None) for name, c in record.curves.items()}
    html = report_html([replace(record, curves=gone, scalars=dict.fromkeys(record.scalars, np.nan))], None, "run")
    assert "could not be drawn" not in html.lower()


def test_fewer_held_out_images_than_were_asked_for_are_told(folder, tmp_path, caplog):
    finetuned(folder, tmp_path, [forgetting(folder, num_images=500, num_draws=32)], max_steps=1)
    assert caplog.text.count("Forgetting was to measure on 500 held-out images of each kind; there are ") == 1


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"image_size": 16}, r"base_data: its images become latents of shape \(1, 16, 16\), the model's are \(1, 8, 8\)"),
        ({"label_column": None}, r"base_data: ClassConditioning reads 'label'"),
        ({"num_classes": 12}, r"base_data: A class label is out of range: the data has 12 classes"),
        ({"label_column": "kind"}, r"base_data: There is no column 'kind'"),
    ],
)  # fmt: skip
def test_data_that_do_not_fit_the_model_are_refused_before_training(folder, tmp_path, base, message):
    torch.manual_seed(0)
    model = module(tiny_unet(channels=1, num_class_embeds=11), conditioning=ClassConditioning(10))
    before = copy.deepcopy(model.state_dict())
    watched = Forgetting(data(folder, "base", **{"label_column": "label", **base}))
    fit = trainer(tmp_path, max_steps=2, callbacks=[watched])
    with refused(f"Forgetting cannot use its {message}"):
        fit.fit(model, data(folder, "new", label_column="label"))
    assert fit.global_step == 0
    assert_same_state(before, model.state_dict())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Forgetting(ImageData("builtin:digits"), num_images=4), "num_images 4; expected at least 8"),
        (lambda: Forgetting(ImageData("builtin:digits"), num_draws=4), "num_draws 4; expected at least 32"),
        (lambda: Forgetting([1, 2]), "base_data of list; expected a ldmprobe.ImageData"),
    ],
)
def test_impossible_settings_are_refused_at_construction(build, message):
    with refused(message):
        build()


def test_the_strength_of_a_lora_is_where_most_is_gained_less_what_is_forgotten(folder, tmp_path):
    strength = LoRAStrength(data(folder, "base"), num_images=96, num_draws=192)
    callbacks = [forgetting(folder, every_n_steps=NEW_STEPS), strength]
    fit, model = finetuned(folder, tmp_path, callbacks, lora=LoRA(rank=8, targets=["0", "2", "4"]))
    network = model.network
    store = RecordStore(tmp_path)
    (record,), forgot = store.read("lora_strength"), store.read("forgetting")[-1]
    tried = record.curves["lora_strength_tried"].value
    net, gained, lost = (record.curves[f"lora_strength_nats/{name}"].value for name in ("net", "gained", "forgotten"))
    # At strength 1 it is what Forgetting finds, on the same draws; at 0 the base model.
    one = list(tried).index(1.0)
    assert [gained[one], lost[one]] == pytest.approx([forgot.scalars["gained_nats"], forgot.scalars["forgotten_nats"]])
    assert (gained[0], lost[0]) == (0, 0)
    np.testing.assert_allclose(net, gained - lost)
    bands = [curve.value for name, curve in record.curves.items() if name.startswith("lora_strength_net_band/")]
    np.testing.assert_allclose(sum(bands), net)
    # The best lies where no strength nearby is better, when these are tried themselves.
    best = record.scalars["lora_strength_best"]
    assert record.scalars["lora_strength_best/lower"] <= best <= record.scalars["lora_strength_best/upper"]
    of_base, of_new = strength.kinds_of_data(fit, model.diffusion_model())
    near = sorted({0.0, 1.0, *np.clip([best - 0.1, best, best + 0.1], 0, 1.25)})
    again = probe_lora_strength(model.diffusion_model(), of_base.held_out, of_new.held_out, near, num_draws=192)
    assert near[again.curves["lora_strength_nats/net"].value.argmax()] == pytest.approx(best)
    # A state dict at a strength is the network at that strength.
    z, t = torch.randn(2, 1, 8, 8), torch.tensor([10, 900])
    with torch.no_grad(), lora_at(network, 0.4):
        expected = network(z, t, {})
    network.load_state_dict(at_strength(network.state_dict(), 0.4))
    with torch.no_grad():
        torch.testing.assert_close(network(z, t, {}), expected)
    with refused("0 and 1 among them"):
        probe_lora_strength(model.diffusion_model(), of_base.held_out, of_new.held_out, [0.5, 1.0])
    with refused("at least 2 of each kind"):
        probe_lora_strength(model.diffusion_model(), of_base.held_out, of_new.held_out.first(1))
    with refused("LoRAStrength needs a LoRA"):
        strength.check(module(Perceptron()).diffusion_model())
