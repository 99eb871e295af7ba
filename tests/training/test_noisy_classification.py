"""A classifier of noisy latents is trained, probed, resumed, read from its checkpoint, and guides a model's samples."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from ldmprobe import (
    ClassifierGuidance,
    ClassifierModel,
    ImageData,
    LatentCodec,
    NoisyClassification,
    NoisyClassifier,
    RecordStore,
)
from ldmprobe.callbacks import ClassifierProbe, DDIMProbe, ReportWriter
from ldmprobe.cli import main
from ldmprobe.data.latent_writer import write_cache
from ldmprobe.models.conditioning import Unconditional
from tests.helpers import refused, refuses, tiny_unet
from tests.training.test_latent_diffusion import assert_same_state, digits, module, stopped, trainer


def classification(**settings) -> NoisyClassification:
    torch.manual_seed(0)
    network = NoisyClassifier(1, 10, (8, 16), ("DownBlock2D", "DownBlock2D"), norm_num_groups=4, attention_head_dim=8)
    optimizer = lambda params: torch.optim.AdamW(params, 5e-3)
    return NoisyClassification(network, **{"optimizer": optimizer, "ema_decay": 0.9, **settings})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    callbacks = [ClassifierProbe(50, num_images=64), ReportWriter()]
    fit = trainer(folder, max_steps=100, callbacks=callbacks, val_check_interval=50)
    data = ImageData("builtin:digits", label_column="label", batch_size=32, check_rows=5)
    fit.fit(classification(), data)
    fit.save_checkpoint(folder / "last.ckpt")
    assert float(fit.callback_metrics["val/accuracy"]) > 0.2
    return folder


def test_it_learns_where_noise_hides_nothing_and_stays_at_chance_where_it_hides_all(run):
    records = RecordStore(run).read("classifier")
    assert [record.step for record in records] == [0, 50, 100]
    accuracy, chance = (records[-1].curves[f"classifier_{name}"].value for name in ("accuracy", "chance"))
    assert accuracy[-1] > 0.5 > 2 * chance[-1]
    assert abs(accuracy[0] - chance[0]) < 0.15
    assert records[0].curves["classifier_nats"].value == pytest.approx(2.3026, abs=0.2)
    assert (records[-1].curves["classifier_calibration"].value < 0.5).all()
    assert "How often the classifier is right" in (run / "report.html").read_text()


def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_not_stopped(tmp_path):
    def fit(folder, **options):
        kept = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        model = classification()
        checked = trainer(tmp_path / folder, 4, callbacks=[kept], limit_val_batches=0, enable_checkpointing=True)
        checked.fit(model, digits(), **options)
        return model

    whole = fit("whole")
    torch.manual_seed(99)
    resumed = fit("resumed", ckpt_path=tmp_path / "whole/step=2.ckpt", weights_only=True)
    assert_same_state(whole.state_dict(), resumed.state_dict())


def test_it_guides_samples_from_yaml_and_from_the_command_line(run, tmp_path, capsys):
    classifier = ClassifierModel.load(run / "last.ckpt")
    assert (classifier.weights, classifier.trained_steps, classifier.num_classes) == ("ema", 100, 10)
    assert_same_state(classifier.network.state_dict(), ClassifierModel.load(run / "last.ckpt").network.state_dict())
    model = module(conditioning=Unconditional())
    model.network = tiny_unet(channels=1)
    model.ema = None
    guidance = ClassifierGuidance(str(run / "last.ckpt"), 3.0)
    probe = DDIMProbe(2, num_samples=20, num_steps=4, num_reference=256, guidance=guidance)
    data = ImageData("builtin:digits", batch_size=16, check_rows=5)
    checkpoint = stopped(tmp_path, 2, model, data, callbacks=[probe], limit_val_batches=0)
    assert RecordStore(tmp_path).read("ddim")[-1].provenance["classifier_scale"] == 3.0
    sample = ["sample", checkpoint, "--num-samples", "4", "--num-steps", "2"]
    pictures = []
    for name, more in (("plain", []), ("guided", ["--classifier", str(run / "last.ckpt"), "--classifier-scale", "9"])):
        assert main([*sample, "--out", str(tmp_path / f"{name}.png"), *more]) == 0, capsys.readouterr().err
        pictures.append(Image.open(tmp_path / f"{name}.png").tobytes())
    assert pictures[0] != pictures[1]
    error = refuses(capsys, ["sample", str(run / "last.ckpt"), "--out", str(tmp_path / "no.png")])
    assert "holds a classifier of noisy latents" in error
    refuses(capsys, [*sample, "--out", str(tmp_path / "no.png"), "--classifier-scale", "2"], "give --classifier")


def test_it_trains_on_latents_of_its_own_codec_alone(tmp_path):
    data = {"dataset": "builtin:digits", "label_column": "label", "batch_size": 16, "check_rows": 5}
    for name, codec in (("pixels", LatentCodec()), ("latents", LatentCodec("builtin:digits"))):
        write_cache(ImageData(**data), codec, Unconditional(), tiny_unet(), tmp_path / name)
    trainer(tmp_path, max_steps=1).fit(classification(), ImageData(**data, latents=str(tmp_path / "pixels")))
    with refused("holds latents of something else: its codec"):
        trainer(tmp_path, max_steps=1).fit(classification(), ImageData(**data, latents=str(tmp_path / "latents")))


def test_what_does_not_fit_is_refused_before_training(tmp_path):
    with refused("channels 2|channels: 1"):
        other = NoisyClassification(NoisyClassifier(2, 10, (8, 16), norm_num_groups=4, attention_head_dim=4))
        trainer(tmp_path, max_steps=1).fit(other, digits())
    with refused("'label', which the data lacks"):
        trainer(tmp_path, max_steps=1).fit(classification(), ImageData("builtin:digits", batch_size=16, check_rows=5))
    with refused("NoisyClassification got trainer.precision bf16-true.*bf16-mixed"):
        trainer(tmp_path, max_steps=1, precision="bf16-true").fit(classification(), digits())
    with refused("noisier"):
        classification(min_log_snr=2.0, max_log_snr=-2.0)
    with refused("ClassifierProbe is for ldmprobe.NoisyClassification"):
        trainer(tmp_path, max_steps=1, callbacks=[ClassifierProbe(1)]).fit(module(), digits())
