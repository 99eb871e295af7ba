"""The reconstruction probe in a Trainer: on a module of one's own that trains an autoencoder."""

import lightning as L
import pytest
import torch
from diffusers import VQModel
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from ldmprobe import AutoencoderModel, FeatureNetwork, ImageData, RecordStore
from ldmprobe.callbacks import DDIMProbe, ReconstructionProbe, ReportWriter, TrainingClock
from ldmprobe.features.classifier import ImageClassifier
from tests.helpers import refused
from tests.pipelines import autoencoder
from tests.tracking.wandb_file import read_history
from tests.training.test_latent_diffusion import trainer


class Own(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = autoencoder(VQModel, num_vq_embeddings=8, in_channels=1, out_channels=1)

    def training_step(self, batch, batch_idx):
        return (self.network(batch["image"]).sample - batch["image"]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.network.parameters(), 1e-3)

    def autoencoder_model(self):
        return AutoencoderModel(self.network, image_shape=(1, 16, 16))


def digits():
    return ImageData("builtin:digits", image_size=16, batch_size=8, check_rows=5)


def features(channels=1):
    return FeatureNetwork(ImageClassifier(channels, 2, width=(4, 6), image_size=16))


def reconstruction(**settings):
    return ReconstructionProbe(features(), 2, num_images=24, num_reference=64, kid_subset_size=8, **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    wandb = WandbLogger(project="test", offline=True, save_dir=str(folder))
    callbacks = [TrainingClock(2), reconstruction(), ReportWriter()]
    trainer(folder, max_steps=3, logger=wandb, callbacks=callbacks, limit_val_batches=0).fit(Own(), digits())
    wandb.experiment.finish()
    return folder


def test_it_runs_at_step_0_every_n_steps_and_at_the_end(run):
    records = RecordStore(run).read("reconstruction")
    assert [record.step for record in records] == [0, 2, 3]
    assert len({str(record.fingerprints) for record in records}) == 1
    assert records[0].scalars["psnr"] != records[-1].scalars["psnr"]
    assert records[0].scalars["pca_psnr"] == records[-1].scalars["pca_psnr"]


def test_wandb_has_its_numbers_pictures_and_curves(run):
    rows = read_history(run)
    record = RecordStore(run).read("reconstruction")[-1]
    here = {key: value for row in rows if row.get("trainer/global_step") == 3 for key, value in row.items()}
    for name in ("psnr", "rfid", "codes_used", "latent_slope"):
        assert here[f"probe_reconstruction/{name}"] == pytest.approx(record.scalars[name])
    assert any("probe_reconstruction/latent_spectrum_curves_table" in key for key in here)
    media = next((run / "wandb").glob("offline-run-*/files/media/images/probe_reconstruction"))
    pictures = {path.name.partition("_")[0]: Image.open(path) for path in media.glob("*.png")}
    assert {"reconstructions", "prior"} <= pictures.keys()
    assert pictures["reconstructions"].size[1] > pictures["reconstructions"].size[0] / 5  # columns of three


def test_the_page_reads_as_one_of_a_first_stage(run):
    page = (run / "report.html").read_text()
    assert page.count("<h1>") == 1
    for words in ("Held-out images of 16×16 come back from", "Reconstructions of held-out images", "noise by design"):
        assert words in page
    assert 'class="summary">Held-out images' in page  # where a diffusion model's page has its verdict
    assert "DenoisingProbe" not in page
    assert page.count('<div class="samples stacked"') == 1
    assert "noise level" not in page.split("<main>")[0].rpartition("</script>")[2]
    assert "Could not be drawn" not in page


def test_what_cannot_be_probed_is_refused_before_training(tmp_path):
    with refused("Own cannot be probed: give it a method `diffusion_model"):
        trainer(tmp_path / "a", callbacks=[DDIMProbe(2)]).fit(Own(), digits())
    with refused("BoringModel trains no autoencoder that could be probed"):
        from lightning.pytorch.demos.boring_classes import BoringModel

        trainer(tmp_path / "b", callbacks=[reconstruction()]).fit(BoringModel())
    with refused("feature network takes 3; use"):
        trainer(tmp_path / "c", callbacks=[ReconstructionProbe(features(3))]).fit(Own2(), digits())
    with refused("num_images 4; expected at least 8"):
        ReconstructionProbe(num_images=4)


class Own2(Own):
    def autoencoder_model(self):
        network = autoencoder(VQModel, num_vq_embeddings=8, in_channels=2, out_channels=2)
        return AutoencoderModel(network, image_shape=(2, 16, 16))
