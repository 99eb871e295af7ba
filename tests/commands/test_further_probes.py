"""Probes that ``ldmprobe probe`` makes where they are asked for: as a run's callbacks do, and only of what is known."""

import shlex

import pytest
import torch
from datasets import DatasetDict
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import ImageOps

from ldmprobe import RecordStore
from ldmprobe.callbacks import MemorizationProbe, PrecisionProbe
from ldmprobe.cli import main
from ldmprobe.commands.further_probes import FORMATS, FURTHER
from ldmprobe.data.builtin import load_builtin
from ldmprobe.probing import precision
from tests.helpers import refuses, tiny_unet
from tests.probing.gaussian import assert_same_record
from tests.training.test_latent_diffusion import digits, module, trainer

FEW = "--num-samples 32 --num-steps 2 --num-draws 32 --num-reference 48 --batch-size 32 --device cpu"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps with such probes at its end; its directory and its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    few = {"num_draws": 32, "batch_size": 32}
    probes = [MemorizationProbe(4, 16, num_reference=48, **few), PrecisionProbe(4, ["bf16"], num_images=512, **few)]
    fit = trainer(folder, 4, callbacks=probes, limit_val_batches=0)
    fit.fit(module(), digits())
    fit.save_checkpoint(path := folder / "last.ckpt")
    return folder, path


def probe(arguments: str) -> int:
    return main(shlex.split(f"probe {arguments} --out probed {FEW}"))


def test_the_command_finds_in_a_checkpoint_what_the_callbacks_found_in_training(run, capsys):
    folder, path = run
    earlier = torch.load(path, weights_only=True)
    for name in [name for name in earlier["state_dict"] if name.startswith(("network.", "ema."))]:
        earlier["state_dict"][name] = 0.9 * earlier["state_dict"][name]
    torch.save(earlier, "earlier.ckpt")
    data = "--data builtin:digits --label-column label"
    assert probe(f"{path} {data} --memorization 16 --precision bf16 --likelihood 2 --relevance earlier.ckpt") == 0
    told, found = capsys.readouterr().out, {record.probe: record for record in RecordStore("probed").read()}
    assert set(found) == {"ddim", "denoising", "memorization", "precision", "likelihood", "relevance"}
    for kind in ("memorization", "precision"):
        in_training = RecordStore(folder).read(kind)[-1]
        assert in_training.step == found[kind].step == 4
        assert_same_record(found[kind], in_training, rtol=1e-5)
        assert found[kind].provenance["summary"] in told
    assert found["memorization"].provenance["num_images"] == 16
    assert found["likelihood"].provenance["num_images"] == 2
    assert found["relevance"].curves["relevance_fid"].value.all()
    found_by_spectrum = "--sampler predictor-corrector --sampler-settings step=auto"
    assert main(shlex.split(f"probe {path} {data} --relevance earlier.ckpt {found_by_spectrum} --out auto {FEW}")) == 0
    refuses(capsys, shlex.split(f"probe {path} {data} --relevance {path} --out other {FEW}"), "have the same weights")
    assert found["relevance"].provenance["feature_network"].startswith("ImageClassifier")


def test_what_a_model_was_trained_on_has_to_be_known(run, tmp_path, capsys):
    DDPMPipeline(tiny_unet(channels=1), DDPMScheduler()).save_pretrained("gray")
    rows = load_builtin("digits").select(range(60))
    rows = rows.map(lambda row: {"image": ImageOps.flip(row["image"])}, load_from_cache_file=False)
    parts = DatasetDict(train=rows.select(range(40)), test=rows.select(range(40, 60)))
    parts.save_to_disk("parts")
    assert probe("gray --data parts --memorization 16") == 0  # the user says so, by the names of splits
    assert RecordStore("probed").read("memorization")[0].provenance["num_images"] == 16
    rows.to_parquet("whole.parquet")
    capsys.readouterr()
    for arguments, told in (
        ("gray --data whole.parquet", 'data with a split "train", which it was trained on, and one called "test"'),
        (f"{run[1]} --data parts --label-column label", "trained on 1,617 rows that are not the 40 training rows of"),
    ):
        assert main(shlex.split(f"probe {arguments} --memorization 16 --out other {FEW}")) == 2
        assert told in " ".join(capsys.readouterr().err.split())


def test_each_needs_data_and_says_so(capsys):
    values = {"--precision": "int8"}
    for further in FURTHER:
        error = refuses(capsys, ["probe", "nowhere.ckpt", "--out", "out", further.flag, values.get(further.flag, "16")])
        assert f"{further.flag} is of {further.of}; give --data." in error


def test_the_command_line_knows_all_formats():
    assert tuple(precision.FORMATS) == FORMATS
