"""Files from strangers: pickles do not go off, code that they bring is named before it runs, and every refusal is a
sentence."""

import json
import logging
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler

from ldmprobe import ProbeRecord, RecordStore
from ldmprobe.cli import main
from ldmprobe.io.record_table import to_table
from tests.helpers import tiny_unet
from tests.run_config import component
from tests.test_bad_input import UNET, _config, _data, _fit, _model
from tests.training.killing import run

TINY = ["--num-samples", "8", "--num-steps", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _quiet_logging(monkeypatch):
    """Libraries' loggers keep the standard error of an earlier test, which is closed by now."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


class Bomb:
    """Unpickled, it creates a file ``went_off``."""

    def __reduce__(self):
        return Path.touch, (Path.cwd() / "went_off",)


def _refused(capsys, *texts: str, code: int) -> str:
    error = capsys.readouterr().err
    assert not Path("went_off").exists()
    assert code == 2, error
    assert "Traceback" not in error
    assert error.count("ldmprobe: error:") == 1 or error.count("\nerror:") == 1
    for text in texts:
        assert text in error
    return error


def _main(*arguments: str) -> int:
    try:
        return main(list(arguments))
    except SystemExit as stopped:
        return int(stopped.code or 0)


@pytest.fixture
def bomb(tmp_path) -> Path:
    """A checkpoint that goes off when it is unpickled, as the test of the test shows."""
    path = tmp_path / "bomb.ckpt"
    torch.save({"state_dict": {}, "global_step": 1, "ldmprobe": Bomb()}, path)
    torch.load(path, weights_only=False)
    Path("went_off").unlink()
    return path


@pytest.fixture
def pipeline(tmp_path) -> Path:
    folder = tmp_path / "pipeline"
    DDPMPipeline(tiny_unet(channels=3), DDPMScheduler()).save_pretrained(folder)
    return folder


def _plant(folder: Path, name: str = "diffusion_pytorch_model") -> None:
    """A bomb in place of a folder's safetensors."""
    (folder / f"{name}.safetensors").unlink()
    torch.save({"conv_in.weight": Bomb()}, folder / f"{name}.bin")


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_pickle_as_checkpoint_of_a_trainer_command(command, bomb, capsys):
    Path("config.yaml").write_text(yaml.safe_dump(_config()))
    code = _main(command, "--config", "config.yaml", "--ckpt_path", str(bomb))
    _refused(capsys, str(bomb), "weights_only", code=code)


def test_a_pickle_in_place_of_the_last_checkpoint(bomb, capsys):
    assert _fit(_config()) == 0
    for path in Path("runs/one/checkpoints").glob("*.ckpt"):
        bomb.replace(path) if path.name == "last.ckpt" else path.unlink()
    capsys.readouterr()
    _refused(capsys, "last.ckpt", code=_fit(_config(), "--ckpt_path", "last"))


@pytest.mark.parametrize("command", ["probe", "sample"])
def test_a_pickle_as_checkpoint_to_probe(command, bomb, capsys):
    out = "probed" if command == "probe" else "samples.png"
    code = _main(command, str(bomb), "--out", out, *TINY)
    _refused(capsys, f"{bomb} is not a readable checkpoint", code=code)


def test_a_checkpoints_hyperparameters_choose_no_class(tmp_path, capsys, monkeypatch):
    """Lightning builds the class that ``hyper_parameters`` name in place of the configuration's."""
    _module("planted", tmp_path, monkeypatch)
    assert _fit(_config()) == 0
    path = Path("runs/one/checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "hyper_parameters": {"_class_path": "planted.Net"}}, path)
    assert _fit(_config(), "--ckpt_path", str(path), "--trainer.max_steps", "3") == 0
    assert not Path("went_off").exists()


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["probe", "sample"])
def test_a_pipeline_with_pickled_weights(command, pipeline, capsys):
    _plant(pipeline / "unet")
    code = _main(command, str(pipeline), "--out", "out.png", *TINY)
    _refused(capsys, "a pickle, which can run code", "safetensors", code=code)


def test_an_autoencoder_with_pickled_weights(tmp_path, capsys):
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    _plant(tmp_path / "vae")
    codec = component("ldmprobe.LatentCodec", autoencoder=str(tmp_path / "vae"))
    _refused(capsys, "No AutoencoderKL can be loaded from", "safetensors", code=_fit(_model(codec=codec)))


def test_a_network_with_pickled_weights(pipeline, capsys):
    _plant(pipeline / "unet")
    path = "diffusers.UNet2DModel.from_pretrained"
    network = component(path, pretrained_model_name_or_path=str(pipeline / "unet"))
    _refused(capsys, code=_fit(_model(network=network)))


# --- pipelines that bring code ---------------------------------------------------------------------------------------


def _index(pipeline: Path, **changes: object) -> None:
    path = pipeline / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"_class_name": ["mine", "Net"]}, "not supported"),
        ({"unet": ["mine", "Net"]}, "mine.Net"),
        *(
            ({"unet": component}, "unet")
            for component in (
                ["os", "system"],
                ["torch.hub", "load"],
                ["transformers", "AutoModel"],
                "text",
                [1, 2],
                [],
            )
        ),
    ],
)
def test_a_pipeline_with_code_of_its_own_or_of_no_known_library(entry, told, pipeline, capsys):
    for folder in (pipeline, pipeline / "unet"):
        (folder / "mine.py").write_text("open('went_off', 'w')\nclass Net: ...\n")
    _index(pipeline, **entry)
    _refused(capsys, told, code=_main("sample", str(pipeline), *TINY))


# --- data ------------------------------------------------------------------------------------------------------------


def test_a_dataset_with_a_loading_script(tmp_path, capsys):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "theirs.py").write_text("open('went_off', 'w')\n")
    _refused(capsys, "Dataset", code=_fit(_data(dataset=str(tmp_path / "theirs"), dataset_kwargs={})))
    code = _fit(_data(dataset=str(tmp_path / "theirs"), dataset_kwargs={"trust_remote_code": True}))
    _refused(capsys, "data.init_args.dataset_kwargs.trust_remote_code: True", "convert it to parquet", code=code)
    _refused(capsys, "Dataset", code=_fit(_data(dataset=str(tmp_path / "theirs" / "theirs.py"), dataset_kwargs={})))


def test_a_pickle_as_dataset(tmp_path, capsys):
    (tmp_path / "frame.pkl").write_bytes(pickle.dumps(Bomb()))
    code = _fit(_data(dataset="pandas", dataset_kwargs={"data_files": str(tmp_path / "frame.pkl")}))
    _refused(capsys, "Dataset 'pandas'", code=code)


def test_a_pickle_in_an_archive_of_data(tmp_path, capsys):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("0.pyd", "0.pickle", "0.pth", "0.npy"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    torch.save(Bomb(), tmp_path / "0.pth")
    with tarfile.open(folder / "train.tar", "w") as archive:
        for name in ("0.pyd", "0.pickle", "0.pth", "0.npy"):
            archive.add(tmp_path / name, name)
    config = _data(dataset="webdataset", dataset_kwargs={"data_files": str(folder / "train.tar")})
    _refused(capsys, "Dataset", code=_fit(config))


# --- records ---------------------------------------------------------------------------------------------------------


def _place_of_a_record(run_dir: Path) -> Path:
    (run_dir / "probes").mkdir()
    return run_dir / "probes" / "ddim-0.parquet"


def _is_skipped(run_dir: Path, told: str) -> None:
    with pytest.warns(UserWarning, match=told):
        assert RecordStore(run_dir).read() == []


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/b", "", "ddim\n", "..", "ddim\x00", "A" * 65])
def test_a_record_cannot_choose_where_it_is_written(name, tmp_path):
    with pytest.raises(ValueError, match="expected lower-case letters, digits and underscores"):
        ProbeRecord(name, 0)
    table = to_table(ProbeRecord("ddim", 0, scalars={"s": 1.0}))
    header = json.loads(table.schema.metadata[b"ldmprobe"]) | {"probe": name}
    table = table.set_column(0, "probe", pa.array([name])).replace_schema_metadata({"ldmprobe": json.dumps(header)})
    pq.write_table(table, _place_of_a_record(tmp_path))
    _is_skipped(tmp_path, "was skipped: the probe is called")


def test_a_pipe_in_place_of_a_record_is_skipped(tmp_path):
    os.mkfifo(_place_of_a_record(tmp_path))
    _is_skipped(tmp_path, "was skipped: not a regular file")


def test_a_small_file_that_stands_for_a_large_table_is_skipped(tmp_path):
    n = 60_000_000
    zeros = pa.chunked_array([pa.array(np.zeros(1_000_000, np.int64))] * (n // 1_000_000))
    table = pa.table({"value": zeros}).replace_schema_metadata({"ldmprobe": "{}"})
    path = _place_of_a_record(tmp_path)
    pq.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 1_000_000
    _is_skipped(tmp_path, "are more than a probe finds")


# --- configurations that bring code ----------------------------------------------------------------------------------


def _module(name: str, folder: Path, monkeypatch) -> None:
    """A module that creates ``went_off`` where it is imported."""
    text = "from pathlib import Path\nPath('went_off').touch()\nfrom diffusers import UNet2DModel\nclass Net(UNet2DModel): ...\n"
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_the_name_comes_first_in_a_process_of_its_own(tmp_path, monkeypatch):
    """The module prints too: its line comes second."""
    _module("loud", tmp_path, monkeypatch)
    with Path("loud.py").open("a") as file:
        file.write("import sys\nprint('IMPORTED', file=sys.stderr, flush=True)\n")
    config = _model(network=component("loud.Net", **UNET))
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert run(["fit", "--config", "config.yaml", "--print_config"], tmp_path / "output.txt") == 0
    said = (tmp_path / "output.txt").read_text()
    assert 0 <= said.index("libraries: loud.Net") < said.index("IMPORTED")
