"""Whatever a user can put right is told in one message, before anything is written."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from ldmprobe.cli import main
from tests.helpers import tiny_unet_settings

UNET = tiny_unet_settings(channels=3, block_out_channels=[8, 8])
DIGITS_CODEC = {"class_path": "ldmprobe.LatentCodec", "init_args": {"autoencoder": "builtin:digits"}}


def _config() -> dict:
    """A run of two steps, that works."""
    return {
        "run_dir": "runs/one",
        "data": {
            "class_path": "ldmprobe.ImageData",
            "init_args": {
                "dataset": "builtin:shapes",
                "dataset_kwargs": {"num_images": 24, "size": 8},
                "batch_size": 4,
            },
        },
        "model": {
            "class_path": "ldmprobe.LatentDiffusion",
            "init_args": {"network": {"class_path": "diffusers.UNet2DModel", "init_args": dict(UNET)}},
        },
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}},
            ],
        },
    }


def _data(**init_args) -> dict:
    config = _config()
    config["data"]["init_args"] |= init_args
    return config


def _model(**init_args) -> dict:
    config = _config()
    config["model"]["init_args"] |= init_args
    return config


def _finetune(**init_args) -> dict:
    model = {
        "class_path": "ldmprobe.FinetunedDiffusion",
        "init_args": {"pretrained": "me/sd"} | init_args,
    }
    return _config() | {"model": model}


def _network(**init_args) -> dict:
    config = _config()
    config["model"]["init_args"]["network"]["init_args"] |= init_args
    return config


def _probe(**init_args) -> dict:
    config = _config()
    settings = {"num_samples": 8, "num_steps": 2} | init_args
    config["trainer"]["callbacks"].append({"class_path": "ldmprobe.callbacks.DDIMProbe", "init_args": settings})
    return config


def _fit(config: dict, *arguments: str) -> int:
    Path("config.yaml").write_text(yaml.safe_dump(copy.deepcopy(config)))
    return main(["fit", "--config", "config.yaml", *arguments])


def _files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}


def _refused(capsys, config: dict, *texts: str, arguments: tuple[str, ...] = ()) -> str:
    before = _files()
    assert _fit(config, *arguments) == 2
    error = capsys.readouterr().err
    for text in texts:
        assert text in error
    assert error.count("error:") == 1
    assert "Traceback" not in error
    assert _files() == before
    return error


def _parquet(images: list, **columns: list) -> str:
    features = Features({"image": Image()} | {name: Value("int64") for name in columns})
    Dataset.from_dict({"image": images, **columns}, features=features).to_parquet("pictures.parquet")
    return "pictures.parquet"


def _pictures(n: int = 24) -> list:
    return [PILImage.new("RGB", (8, 8), (5 * i, 0, 0)) for i in range(n)]


def test_the_configuration_that_every_case_spoils_works():
    assert _fit(_probe()) == 0
    assert sorted(path.name for path in Path("runs/one/probes").iterdir()) == [
        "ddim-00000000.parquet",
        "ddim-00000002.parquet",
    ]
    assert Path("runs/one/checkpoints/last.ckpt").is_file()


def test_a_fast_dev_run_tries_everything_and_leaves_nothing_in_the_way_of_the_real_run(capsys):
    config = _probe()
    config["trainer"]["callbacks"].append({"class_path": "ldmprobe.callbacks.ReportWriter"})
    assert _fit(config, "--trainer.fast_dev_run=true", "--ckpt_path=last") == 0
    assert "runs/one is neither read nor written" in capsys.readouterr().err
    assert _files() == {}
    assert _fit(config) == 0
    before = _files()
    assert _fit(config, "--trainer.fast_dev_run=2") == 0
    assert _files() == before


# --- data ----------------------------------------------------------------------------------------------------------------


def test_unknown_dataset(capsys):
    config = _data(dataset="nobody/nothing", dataset_kwargs={})
    _refused(
        capsys, config, "Dataset 'nobody/nothing' is no folder here and was not found on the hub", "Expected a hub id"
    )


def test_unknown_builtin_dataset(capsys):
    _refused(
        capsys, _data(dataset="builtin:faces"), "no built-in dataset 'faces'; expected one of digits, gaussian, shapes"
    )


def test_unknown_split(capsys):
    _refused(capsys, _data(train_split="training"), "There is no split 'training'; the dataset has 'train'.")


def test_unknown_column(capsys):
    _refused(capsys, _data(image_column="img"), "There is no column 'img'; the dataset has 'image', 'label'")


def test_empty_dataset(capsys):
    Dataset.from_dict({"image": []}, features=Features({"image": Image()})).save_to_disk("pictures")
    for dataset in ("pictures", _parquet([])):
        text = f"Dataset '{dataset}' holds no dataset that can be read"
        _refused(capsys, _data(dataset=dataset, dataset_kwargs={}), text)


def test_unreadable_image(capsys):
    images = _pictures()
    images[7] = {"bytes": b"broken", "path": None}
    config = _data(dataset=_parquet(images), dataset_kwargs={}, held_out_split="train")
    _refused(
        capsys,
        config,
        "Row 7 of split 'train', column 'image': the image cannot be read",
        "Remove the row or repair it.",
    )


def test_class_label_out_of_range_of_the_data(capsys):
    path = _parquet(_pictures(), label=[0, 1, 9] * 8)
    config = _data(dataset=path, dataset_kwargs={}, label_column="label", num_classes=2)
    _refused(capsys, config, "class label 9 in column 'label', which is out of range; expected 0 to 1.")


def test_class_label_out_of_range_of_the_model(capsys):
    config = _network(num_class_embeds=6)
    config["data"]["init_args"]["label_column"] = "label"
    config["model"]["init_args"]["conditioning"] = {
        "class_path": "ldmprobe.ClassConditioning",
        "init_args": {"num_classes": 5},
    }
    _refused(capsys, config, "A class label is out of range: the data has 20 classes", "set it to 20.")


def test_max_epochs_instead_of_max_steps(capsys):
    config = _config()
    del config["trainer"]["max_steps"]
    config["trainer"]["max_epochs"] = 2
    _refused(
        capsys,
        config,
        "ImageData is one endless epoch: `trainer.max_epochs: 2`",
        "limit training by `trainer.max_steps`",
    )


# --- data, codec and network do not fit ----------------------------------------------------------------------------------


def test_colour_images_for_a_grey_codec(capsys):
    config = _model(codec=DIGITS_CODEC)
    _refused(capsys, config, "The images have 3 channel(s) but AutoencoderKL encodes 1; set the data's `channels: 1`.")


def test_a_size_that_the_codec_cannot_divide(capsys):
    config = _model(codec=DIGITS_CODEC)
    config["data"]["init_args"] |= {"image_size": 30, "channels": 1}
    _refused(capsys, config, "Images of 30×30 cannot be divided by the autoencoder's factor 4", "such as 28.")


def test_latents_that_do_not_fit_the_network(capsys):
    config = _model(codec=DIGITS_CODEC)
    config["data"]["init_args"] |= {"image_size": 32, "channels": 1}
    text = "UNet2DModel cannot take latents of shape (2, 8, 8)"
    _refused(capsys, config, text, "Make its in_channels and out_channels 2")


def test_a_network_that_answers_in_another_shape(capsys):
    text = "UNet2DModel answers latents of shape (3, 8, 8) with (2, 8, 8); expected the same shape."
    _refused(capsys, _network(out_channels=2, norm_num_groups=2), text)


# --- probes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"num_samples": 0}, "DDIMProbe got num_samples 0; expected at least 8."),
        ({"num_steps": 0}, "num_steps 0; expected at least 1"),
        ({"num_steps": 1001}, "num_steps is 1001; expected 1 to 1000"),
        ({"every_n_steps": 0}, "DDIMProbe got every_n_steps 0; expected at least 1."),
        (
            {
                "grid": {
                    "class_path": "ldmprobe.ScheduleGrid",
                    "init_args": {"timestep_spacing": "sideways"},
                }
            },
            "sideways",
        ),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_a_probe_out_of_range(wrong, text, capsys):
    _refused(capsys, _probe(**wrong), text)


# --- numbers -------------------------------------------------------------------------------------------------------------


def _optimizer(name, **init_args) -> dict:
    return _model(optimizer={"class_path": f"torch.optim.{name}", "init_args": init_args})


def _scheduler(**init_args) -> dict:
    return _model(scheduler={"class_path": "diffusers.DDIMScheduler", "init_args": init_args}, validation_timesteps=1)


def _shapes(**kwargs) -> dict:
    return _data(dataset_kwargs={"num_images": 24, "size": 8} | kwargs)


def _rates(**init_args) -> dict:
    config = _optimizer("AdamW", lr=1e-3)
    schedule = {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"total_steps": 9} | init_args}
    config["model"]["init_args"]["lr_scheduler"] = schedule
    return config


def _trainer(**settings) -> dict:
    config = _config()
    config["trainer"] |= settings
    return config


@pytest.mark.parametrize(
    ("config", "texts"),
    [
        (_optimizer("AdamW", lr=-1.0), ("`optimizer`", "-1.0")),
        (_optimizer("SGD", lr=float("nan")), ("`optimizer`", "lr", "nan")),
        (_rates(max_lr=-1.0), ("`lr_scheduler`", "lr", "-0.04")),
        (_scheduler(num_train_timesteps=1), ("num_train_timesteps 1", "at least 2")),
        (_shapes(num_images=10**12), ("num_images 1000000000000",)),
        (_data(num_workers=-1), ("ImageData got num_workers -1",)),
        (_probe(num_samples=10**12), ("num_samples 1000000000000",)),
        (_probe(seed=-1), ("got seed -1",)),
        (_trainer(accumulate_grad_batches=0), ("accumulate_grad_batches",)),
        (_trainer(gradient_clip_val=float("nan")), ("gradient_clip_val",)),
        (_trainer(val_check_interval=0), ("val_check_interval",)),
    ],
)
def test_a_number_that_makes_no_sense_is_told_with_its_name_before_training(config, texts, capsys):
    _refused(capsys, config, *texts)


# --- the run directory ---------------------------------------------------------------------------------------------------


def test_a_directory_that_holds_another_run(capsys):
    assert _fit(_config()) == 0
    capsys.readouterr()
    _refused(capsys, _network(layers_per_block=2), "runs/one already holds a run", "Choose a new `--run_dir`")


def test_a_checkpoint_of_another_model(capsys):
    assert _fit(_config()) == 0
    capsys.readouterr()
    config = _network(block_out_channels=[8, 16])
    text = "The checkpoint is of another model: its network.block_out_channels is"
    arguments = ("--ckpt_path", "runs/one/checkpoints/last.ckpt")
    _refused(capsys, config, text, arguments=arguments)


def test_a_checkpoint_that_is_not_there(capsys):
    _refused(capsys, _config(), "runs/none.ckpt", arguments=("--ckpt_path", "runs/none.ckpt"))


def test_a_file_in_place_of_the_run_directory(capsys):
    Path("runs").mkdir()
    Path("runs/one").write_text("mine")
    _refused(capsys, _config(), "runs/one", "`--run_dir`")


def test_a_file_in_place_of_the_directory_above(capsys):
    Path("runs").write_text("mine")
    _refused(capsys, _config(), "runs/one cannot be created: Not a directory. Choose another `--run_dir`.")
    assert Path("runs").read_text() == "mine"


# --- the configuration file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (_config() | {"run_directory": "runs/one"}, "run_directory"),
        (_data(batchsize=4), "batchsize"),
        (_network(in_chanels=3), "in_chanels"),
        (_probe(number_of_samples=8), "number_of_samples"),
    ],
)
def test_a_misspelt_key(config, key, capsys):
    assert len(_refused(capsys, config, key)) < 250


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (_model(offset_noise="a lot"), "model.offset_noise cannot be read: Expected a float. Got value: a lot. Compare"),
        (_network(in_channels="many"), "model.network.in_channels cannot be read: Expected a int. Got value: many."),
        (_probe(num_samples="eight"), "trainer.callbacks.num_samples cannot be read: Expected a int. Got value: eight."),
        (_finetune(prompts="a cat"), "model.prompts cannot be read: Expected a collections.abc.Sequence (Given value: a cat)."),
        (_finetune(scheduler="diffusers.DDIMScheduler"), "model.scheduler cannot be read: Expected a dict (Given value: diffu"),
        (_model(weighting="ldmprobe.LogSNR"), "model.weighting cannot be read: Problem with given class_path 'ldmprobe.LogSNR'"),
        (_model(scheduler="diffusers.UNet2DModel"), "model.scheduler cannot be read: Import path does not correspond to a subclass of Sch"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_told_in_a_line(config, text, capsys):
    error = _refused(capsys, config, text)
    assert error.count("\n") == 1
    assert len(error) < 300


@pytest.mark.parametrize("as_string", [False, True])
@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_class_whose_module_is_not_installed(as_string, capsys):
    path = "bitsandbytes.optim.AdamW8bit"
    config = _model(optimizer=path if as_string else {"class_path": path, "init_args": {"lr": 1e-4}})
    text = "model.optimizer needs the Python module 'bitsandbytes', which is not installed: `pip install 'ldmprobe[8bit]'`."
    _refused(capsys, config, text)
    config = _config() | {"data": {"class_path": "nowhere.Data"}}
    _refused(capsys, config, "data needs the Python module 'nowhere', which is not installed: install it, or, if it is")


def test_a_configuration_file_that_is_not_there(capsys):
    assert main(["fit", "--config", "nothing.yaml"]) == 2
    assert "nothing.yaml" in capsys.readouterr().err
