"""When probes run, where records go, and what each logger is given. One contract for every probe callback."""

import csv
import inspect
import io
import math
import sys
import types

import lightning as L
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from PIL import Image
from rich.console import Console
from rich.file_proxy import FileProxy

import ldmprobe.callbacks
from ldmprobe.callbacks import (
    ClassifierProbe,
    DDIMProbe,
    DenoisingProbe,
    Forgetting,
    GradientProbe,
    LikelihoodProbe,
    LoRAStrength,
    MemorizationProbe,
    PrecisionProbe,
    ProbeCallback,
    ReconstructionProbe,
    ReportWriter,
    SampleQuality,
    SamplingProbe,
    TimestepBalancer,
    TrainingClock,
    TrainingLoss,
    TrainingObjective,
)
from ldmprobe.data.images import ImageData
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from ldmprobe.diffusion.samplers import Euler
from ldmprobe.diffusion.timesteps import UniformLogSNR
from ldmprobe.io.record_file import read_record
from ldmprobe.io.store import RecordStore
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.conditioning import SmallCLIP, TextConditioning
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.tracking.csv_logger import ResumableCSVLogger
from ldmprobe.training.latent_diffusion import LatentDiffusion
from tests.helpers import refused, sd_scheduler, tiny_unet
from tests.pipelines import conditional_unet
from tests.tracking.wandb_file import read_history
from tests.training.test_latent_diffusion import digits, module, stopped, trainer


def ddim(every_n_steps=2):
    return DDIMProbe(every_n_steps, num_samples=16, num_steps=4, num_reference=256, detail="levels")


def denoising(every_n_steps=2):
    return DenoisingProbe(every_n_steps, num_images=16, num_draws=32, num_reference=256)


def probes(every_n_steps=2):
    return [
        TrainingClock(every_n_steps),
        ddim(every_n_steps),
        SamplingProbe(every_n_steps, num_samples=8, num_steps=4, sampler=Euler(), num_reference=256, name="few_steps"),
        denoising(every_n_steps),
        LikelihoodProbe(every_n_steps, num_images=4, log_snr_step=2.0, num_reference=256),
        MemorizationProbe(every_n_steps, num_images=16, num_draws=32, num_reference=256),
        PrecisionProbe(every_n_steps, num_images=16, num_draws=16),
        GradientProbe(every_n_steps, num_images=16, num_draws=16),
        TrainingLoss(every_n_steps),
        TrainingObjective(every_n_steps),
        SampleQuality("builtin:digits", every_n_steps, num_samples=16, num_steps=2, num_real=64, kid_subset_size=8),
        TimestepBalancer(every_n_steps, num_images=16, num_draws=32, num_reference=256, dry_run=True),
        Forgetting(digits(), every_n_steps, num_images=16, num_draws=32, num_reference=256),
    ]


def test_every_probe_callback_is_covered_here():
    kinds = {
        cls for _, cls in inspect.getmembers(ldmprobe.callbacks, inspect.isclass) if issubclass(cls, ProbeCallback)
    }
    # tests/callbacks/test_reconstruction_probe.py, tests/training/test_noisy_classification.py,
    # tests/callbacks/test_forgetting.py
    of_other_modules = {ReconstructionProbe, ClassifierProbe, LoRAStrength}
    assert kinds - {ProbeCallback} == {type(probe) for probe in probes()} | of_other_modules


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps with every probe, every logger and a report."""
    folder = tmp_path_factory.mktemp("run")
    wandb = WandbLogger(project="test", offline=True, save_dir=str(folder))
    loggers = [wandb, CSVLogger(str(folder), name="csv")]  # and TensorBoard: tests/test_extension.py
    callbacks = [*probes(2), ReportWriter()]
    trainer(folder, max_steps=2, logger=loggers, log_every_n_steps=1, callbacks=callbacks).fit(module(), digits())
    wandb.experiment.finish()
    return folder


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.reliability), 2])
def test_probes_run_at_step_0_every_n_steps_and_at_the_end(tmp_path, accumulate):
    callbacks = [ddim(), denoising(), TrainingLoss(2), TrainingObjective(2)]
    trainer(tmp_path, max_steps=3, accumulate_grad_batches=accumulate, callbacks=callbacks).fit(module(), digits())
    store = RecordStore(tmp_path)
    expected = {"ddim": [0, 2, 3], "denoising": [0, 2, 3], "training": [2, 3], "objective": [0]}  # it never changed
    assert {name: [record.step for record in store.read(name)] for name in expected} == expected


def test_a_resumed_run_neither_loses_nor_doubles_records(tmp_path):
    whole = tmp_path / "whole"
    trainer(whole, max_steps=4, callbacks=[ddim(), denoising()]).fit(module(), digits())
    parts = tmp_path / "parts"
    three = stopped(parts, 3, callbacks=[ddim(), denoising()])
    trainer(parts, max_steps=4, callbacks=[ddim(), denoising()]).fit(module(), digits(), ckpt_path=three)
    for probe, metric in (("ddim", "step_kl"), ("denoising", "denoising_mse")):
        expected = {record.step: record.curves[metric].value for record in RecordStore(whole).read(probe)}
        found = {record.step: record.curves[metric].value for record in RecordStore(parts).read(probe)}
        assert set(found) == set(expected) | {3}  # the end of the first part is a record too
        for step, value in expected.items():
            np.testing.assert_array_equal(found[step], value)


def test_a_run_that_goes_on_from_an_earlier_checkpoint_takes_its_later_records_anew(tmp_path):
    def fit(max_steps, **settings):
        again = trainer(tmp_path, max_steps, callbacks=[ddim(), TrainingLoss(2)], **settings)
        again.fit(module(), digits(), ckpt_path=two)

    def drift(folder):
        return {path.name: read_record(path).curves["step_kl"].value.tolist() for path in folder.glob("ddim-*.parquet")}

    two = stopped(tmp_path, 2, callbacks=[ddim(), TrainingLoss(2)])
    fit(6)
    before = drift(tmp_path / "probes")
    fit(4, accumulate_grad_batches=2)  # other gradients than before
    now, aside = drift(tmp_path / "probes"), drift(tmp_path / "superseded")
    names = [f"ddim-0000000{step}.parquet" for step in (0, 2, 4, 6)]
    assert aside == {name: before[name] for name in names[2:]}
    assert {name for name in now if now[name] == before[name]} == set(names[:2])
    assert set(now) == set(names[:3])
    assert (tmp_path / "superseded" / "training-00000006.parquet").exists()


class Adversarial(L.LightningModule):
    """Two optimizers by hand, the second from batch ``second_from`` on."""

    def __init__(self, second_from: int):
        super().__init__()
        self.automatic_optimization, self.second_from = False, second_from
        self.network = tiny_unet(1)

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers()[: 1 if batch_idx < self.second_from else 2]:
            optimizer.step()
        self.log("train/batch", float(batch_idx))

    def configure_optimizers(self):
        return [torch.optim.SGD(self.network.parameters(), lr=0.0) for _ in range(2)]

    def diffusion_model(self):
        return DiffusionModel(self.network, as_schedule(sd_scheduler()), (1, 8, 8))


@pytest.mark.parametrize(
    ("second_from", "every_n_steps", "expected"),
    [(0, 5, [0, 6, 10, 16, 20]), (1, 5, [0, 5, 11, 15, 19]), (1, 40, [0, 19]), (0, 1, [0, *range(2, 21, 2)])],
)
def test_probes_go_by_the_steps_passed_where_a_batch_takes_several(tmp_path, second_from, every_n_steps, expected):
    probe = TrainingClock(every_n_steps)
    fit = trainer(tmp_path, max_steps=-1, limit_train_batches=10, limit_val_batches=0, callbacks=[probe])
    fit.fit_loop.max_epochs = 1
    fit.fit(Adversarial(second_from), torch.utils.data.DataLoader(torch.zeros(10, 1), batch_size=1))
    assert [record.step for record in RecordStore(tmp_path).read("clock")] == expected


def test_loggers_have_one_axis_where_a_batch_takes_several_steps(tmp_path):
    """Lightning logs the first batch at 0 and the second at 1, and a probe after the second at 2. So it is for steps
    by hand, too, two a batch, also in a run that goes on; records are of optimizer steps."""

    def go_on(num_batches, **more):
        logger = ResumableCSVLogger(str(tmp_path), flush_logs_every_n_steps=1)
        settings = {"limit_train_batches": num_batches, "limit_val_batches": 0, "log_every_n_steps": 1}
        fit = trainer(tmp_path, max_steps=2 * num_batches, logger=logger, callbacks=[TrainingClock(4)], **settings)
        fit.fit(Adversarial(0), torch.utils.data.DataLoader(torch.zeros(10, 1), batch_size=1), **more)
        return fit

    go_on(5).save_checkpoint(tmp_path / "five.ckpt")
    go_on(8, ckpt_path=str(tmp_path / "five.ckpt"), weights_only=True)
    rows = list(csv.DictReader((tmp_path / "lightning_logs/version_0/metrics.csv").open()))
    batches = {float(row["train/batch"]): int(row["step"]) for row in rows if row["train/batch"]}
    probed = [int(row["step"]) for row in rows if row["probe_clock/training_seconds"]]
    assert batches == {step: step for step in range(8)}
    assert probed == [0, 2, 4, 5, 6, 8]
    assert [record.step for record in RecordStore(tmp_path).read("clock")] == [0, 4, 8, 10, 12, 16]


def test_a_basis_of_another_codec_is_refused(tmp_path):
    two = stopped(tmp_path, 2, callbacks=[ddim()])
    state = torch.load(two, weights_only=True)
    state["state_dict"]["codec.scale"] *= 2
    torch.save(state, two)
    other = module(codec=LatentCodec(scale=2.0))
    with refused("fitted on latents of another codec"):
        trainer(tmp_path, max_steps=4, callbacks=[ddim()]).fit(other, digits(), ckpt_path=two)


def test_a_directory_with_another_run_is_refused_before_training(tmp_path):
    trainer(tmp_path, max_steps=2, callbacks=[ddim()]).fit(module(), digits())
    with refused("already holds a run"):
        trainer(tmp_path, max_steps=2, callbacks=[ddim()]).fit(module(), digits())


def test_probes_use_the_averaged_weights_and_say_so(tmp_path):
    def probed(decay):
        folder = tmp_path / str(decay)
        trainer(folder, max_steps=2, callbacks=[ddim()]).fit(module(ema_decay=decay), digits())
        record = RecordStore(folder).read("ddim")[-1]
        return record.provenance["weights"], record.curves["step_kl"].value

    # decay 0 with warm-up is min(0, …) = 0: the average is the live network, so the same record.
    (ema, one), (raw, other), (_, lagging) = (probed(decay) for decay in (0.0, None, 0.9999))
    assert (ema, raw) == ("ema", "raw")
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert not np.allclose(lagging, other, rtol=1e-5)


def test_training_loss_per_band_is_the_mean_of_its_samples(tmp_path):
    seen = []

    class Spy(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append([outputs[name].double() for name in ("log_snr", "epsilon_mse", "sampling_probability")])

    cosine = DDPMScheduler(beta_schedule="squaredcos_cap_v2")  # from log-SNR −20
    fitted = module(scheduler=cosine, timesteps=UniformLogSNR())
    trainer(tmp_path, max_steps=4, callbacks=[Spy(), TrainingLoss(4)]).fit(fitted, digits())
    log_snr, error, probability = (torch.cat(column) for column in zip(*seen, strict=True))
    levels = fitted.schedule.log_snr.double()
    curve = RecordStore(tmp_path).read("training")[-1].curves["training_mse"]
    assert log_snr.min() < -12 < curve.log_snr.min()
    for place, value in zip(curve.log_snr, curve.value, strict=True):
        low = 1.5 * math.floor(place / 1.5)
        inside, timesteps = ((each > low) & (each <= low + 1.5) for each in (log_snr, levels))
        expected = (error / probability)[inside].sum() / (1 / probability)[inside].sum()
        assert value == pytest.approx(float(expected), rel=1e-6)
        assert place == pytest.approx(float(levels[timesteps].mean()))


def test_wandb_holds_every_scalar_and_picture_of_every_probe(run):
    rows = read_history(run)
    for record in RecordStore(run).read("ddim"):
        here = [row for row in rows if row.get("trainer/global_step") == record.step]
        merged = {key: value for row in here for key, value in row.items()}
        curve = record.curves["step_kl"]
        for timestep, value in zip(curve.timestep, curve.value, strict=True):
            logged = merged.get(f"probe_ddim/step_kl/t{timestep:04d}")
            assert logged == pytest.approx(value) or (logged is None and not math.isfinite(value))
        kinds = dict.fromkeys(("pca", "heatmaps", "samples"), "image-file") | {"pca_table": "table-file"}
        for key, kind in ((f"probe_ddim/{name}", kind) for name, kind in kinds.items()):
            found = {tuple(k.split(".")): v for k, v in merged.items() if k == key or k.startswith(f"{key}.")}
            assert kind in str(found), (key, found)
        picture = next((run / "wandb").glob("offline-run-*/files/media/images/probe_ddim/pca*.png"))
        assert Image.open(picture).size[0] > 600
    assert any("probe_ddim/step_kl_curves_table" in key for row in rows for key in row)
    for metric in ("timestep_density", "loss_weight", "training_emphasis"):  # line series, and no key per bin
        assert any(f"probe_objective/{metric}_curves_table" in key for row in rows for key in row)
        assert not any(key.startswith(f"probe_objective/{metric}/") for row in rows for key in row)
    steps = [row["trainer/global_step"] for row in rows if "probe_denoising/bound_nats" in row]
    assert steps == [0, 2]


def test_csv_logger_gets_the_scalars_and_a_report_is_written_at_the_end(run):
    text = next((run / "csv").rglob("metrics.csv")).read_text()
    assert "probe_ddim/step_kl/t0751" in text.splitlines()[0]
    assert "Denoising skill on held-out data" in (run / "report.html").read_text()


def test_a_probes_bar_is_no_endless_recursion_under_richs_bar_in_a_notebook(tmp_path, monkeypatch):
    """IPython's display flushes the standard error, into which rich writes what a bar has left in it, by IPython's
    display (rich #3183)."""
    notebook = types.ModuleType("IPython.display")
    notebook.display = lambda *_: sys.stderr.flush()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", FileProxy(Console(force_jupyter=True), written))
    fit = trainer(tmp_path, max_steps=1, enable_progress_bar=True, callbacks=[ddim(1)])
    fit.fit(module(), digits())
    assert "DDIMProbe" in written.getvalue()


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        (DDIMProbe(3), DDIMProbe(2), "ddim"),
        (SamplingProbe(2, sampler=Euler(), name="ddim"), DDIMProbe(2), "ddim"),
        (SamplingProbe(2, name="quality"), SampleQuality("builtin:digits"), "quality"),
        (TrainingLoss(2), SamplingProbe(2, name="training"), "training"),
    ],
)
def test_two_probes_whose_records_would_be_mixed_up_are_refused(tmp_path, first, second, name):
    with refused(rf"of {type(first).__name__} and {type(second).__name__} \({name}\) would be mixed up"):
        trainer(tmp_path, callbacks=[first, second]).fit(module(), digits())


def test_records_have_the_names_that_their_callbacks_say(run):
    assert {record.probe for record in RecordStore(run).read()} == {probe.records for probe in probes()}


def test_two_samplers_probes_keep_records_and_metrics_of_their_own(run):
    few, ddim = (RecordStore(run).read(name) for name in ("few_steps", "ddim"))
    assert [record.step for record in few] == [record.step for record in ddim] == [0, 2]
    assert few[-1].provenance["sampler"] == "euler"
    assert few[-1].scalars["sampler_gap"] > 0
    keys = {key for row in read_history(run) for key in row}
    assert {"probe_few_steps/network_gap", "probe_ddim/network_gap"} <= keys


@pytest.mark.parametrize("trained", [True, False])
def test_held_out_captions_are_encoded_anew_while_their_encoder_is_trained(tmp_path, trained):
    torch.manual_seed(0)
    data = ImageData("builtin:shapes", {"num_images": 80, "size": 8}, caption_column="caption", batch_size=8)
    encoder = SmallCLIP("a small large red circle", width=16, num_layers=1, max_tokens=48)
    text = TextConditioning(encoder, trained=trained)
    model = LatentDiffusion(conditional_unet(in_channels=3, out_channels=3), conditioning=text, ema_decay=None)
    probe = DenoisingProbe(every_n_steps=2, num_images=8, num_draws=32)
    trainer(tmp_path, max_steps=2, callbacks=[probe], limit_val_batches=0).fit(model, data)
    batch = next(data.reference_batches(8, held_out=True))
    now = text.encode(batch["caption"])["encoder_hidden_states"]
    torch.testing.assert_close(probe._latents._kept[True].condition["encoder_hidden_states"], now)
