"""Whatever a user can put right is told in one message, before anything is written."""

import copy
from functools import partial, reduce
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from ldmprobe.cli import main
from tests.helpers import refuses, tiny_unet_settings
from tests.run_config import component

UNET = tiny_unet_settings(channels=3)


def _config() -> dict:
    """A run of two steps, that works."""
    images = {"dataset": "builtin:shapes", "dataset_kwargs": {"num_images": 24, "size": 8}, "batch_size": 4}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    checkpoints = component("lightning.pytorch.callbacks.ModelCheckpoint", save_last=True)
    return {
        "run_dir": "runs/one",
        "data": component("ImageData", **images),
        "model": component("LatentDiffusion", network=component("diffusers.UNet2DModel", **UNET)),
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "callbacks": [checkpoints],
            **quiet,
        },
    }


def _changed(*place: str, **init_args) -> dict:
    """That run, with other settings of one of its parts."""
    config = _config()
    part = reduce(lambda part, name: part[name]["init_args"], place, config)
    part |= init_args
    return config


_data, _model = partial(_changed, "data"), partial(_changed, "model")
_network = partial(_changed, "model", "network")


def _finetune(**init_args) -> dict:
    return _config() | {"model": component("FinetunedDiffusion", **{"pretrained": "me/sd", **init_args})}


def _probe(**init_args) -> dict:
    config = _config()
    settings = {"num_samples": 8, "num_steps": 2} | init_args
    config["trainer"]["callbacks"].append(component("DDIMProbe", **settings))
    return config


def _command(config: dict, *arguments: str) -> list[str]:
    Path("config.yaml").write_text(yaml.safe_dump(copy.deepcopy(config)))
    return ["fit", "--config", "config.yaml", *arguments]


def _fit(config: dict, *arguments: str) -> int:
    return main(_command(config, *arguments))


def _files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}


def _refused(capsys, config: dict, *texts: str, arguments: tuple[str, ...] = ()) -> str:
    before = _files()
    error = refuses(capsys, _command(config, *arguments), *texts)
    assert _files() == before
    return error


def _parquet(images: list, **columns: list) -> str:
    features = Features({"image": Image()} | {name: Value("int64") for name in columns})
    Dataset.from_dict({"image": images, **columns}, features=features).to_parquet("pictures.parquet")
    return "pictures.parquet"


def _pictures(n: int = 24) -> list:
    return [PILImage.new("RGB", (8, 8), (5 * i, 0, 0)) for i in range(n)]


def test_a_fast_dev_run_tries_everything_and_leaves_nothing_in_the_way_of_the_real_run(capsys):
    config = _probe()
    config["trainer"]["callbacks"].append({"class_path": "ldmprobe.callbacks.ReportWriter"})
    assert _fit(config, "--trainer.fast_dev_run=true", "--ckpt_path=last") == 0
    assert "runs/one is neither read nor written" in capsys.readouterr().err
    assert _files() == {}
    assert _fit(config) == 0  # the configuration that every case below spoils works
    before = _files()
    written = ("probes/ddim-00000000.parquet", "probes/ddim-00000002.parquet", "checkpoints/last.ckpt")
    assert {Path("runs/one", name) for name in written} <= before.keys()
    assert _fit(config, "--trainer.fast_dev_run=2") == 0
    assert _files() == before


# --- before anything is written ---------------------------------------------------------------------------------------


def _empty_folder() -> dict:
    Dataset.from_dict({"image": []}, features=Features({"image": Image()})).save_to_disk("pictures")
    return _data(dataset="pictures", dataset_kwargs={})


def _unreadable_image() -> dict:
    images = [*_pictures(7), {"bytes": b"broken", "path": None}, *_pictures(16)]
    return _data(dataset=_parquet(images), dataset_kwargs={}, held_out_split="train")


def _labels(num_classes: int) -> dict:
    path = _parquet(_pictures(), label=[0, 1, 9] * 8)
    return _data(dataset=path, dataset_kwargs={}, label_column="label", num_classes=num_classes)


def _too_few_classes() -> dict:
    conditioning = component("ClassConditioning", num_classes=5)
    network = component("diffusers.UNet2DModel", **UNET, num_class_embeds=6)
    return _model(conditioning=conditioning, network=network) | {"data": _data(label_column="label")["data"]}


def _digits_codec(**data) -> dict:
    return _data(**data) | {"model": _model(codec=component("LatentCodec", autoencoder="builtin:digits"))["model"]}


def _optimizer(name, **init_args) -> dict:
    return _model(optimizer=component(f"torch.optim.{name}", **init_args))


def _rates(**init_args) -> dict:
    schedule = component("torch.optim.lr_scheduler.OneCycleLR", total_steps=9, **init_args)
    return _model(optimizer=component("torch.optim.AdamW", lr=1e-3), lr_scheduler=schedule)


def _trainer(**settings) -> dict:
    config = _config()
    config["trainer"] |= settings
    return config


ONE_STEP = component("diffusers.DDIMScheduler", num_train_timesteps=1)
SIDEWAYS = component("ScheduleGrid", timestep_spacing="sideways")


@pytest.mark.parametrize(
    ("config", "texts"),
    [
        # data
        (lambda: _data(dataset="nobody/nothing", dataset_kwargs={}), ("Dataset 'nobody/nothing'", "Expected a hub id")),
        (lambda: _data(dataset="builtin:faces"), ("no built-in dataset 'faces'", "one of digits, gaussian, shapes")),
        (lambda: _data(train_split="training"), ("There is no split 'training'; the dataset has 'train'.",)),
        (lambda: _data(image_column="img"), ("There is no column 'img'; the dataset has 'image', 'label'",)),
        (_empty_folder, ("Dataset 'pictures' holds no dataset that can be read",)),
        (lambda: _data(dataset=_parquet([]), dataset_kwargs={}), ("'pictures.parquet' holds no dataset that can be read",)),
        (_unreadable_image, ("Row 7 of split 'train', column 'image': the image cannot be read", "Remove the row")),
        (lambda: _labels(2), ("class label 9 in column 'label', which is out of range; expected 0 to 1.",)),
        (_too_few_classes, ("A class label is out of range: the data has 20 classes", "set it to 20.")),
        (lambda: _trainer(max_steps=-1, max_epochs=2), ("`trainer.max_epochs: 2`", "limit training by `trainer.max_steps`")),
        # data, codec and network that do not fit
        (_digits_codec, ("have 3 channel(s) but AutoencoderKL encodes 1; set the data's `channels: 1`.",)),
        (lambda: _digits_codec(image_size=30, channels=1), ("Images of 30×30", "factor 4", "such as 28.")),
        (lambda: _digits_codec(image_size=32, channels=1), ("UNet2DModel", "(2, 8, 8)", "Make its in_channels and out_channels 2")),
        (lambda: _network(out_channels=2, norm_num_groups=2), ("latents of shape (3, 8, 8) with (2, 8, 8); expected the same",)),
        # probes
        (lambda: _probe(num_samples=0), ("DDIMProbe got num_samples 0; expected at least 8.",)),
        (lambda: _probe(num_steps=0), ("num_steps 0; expected at least 1",)),
        (lambda: _probe(num_steps=1001), ("num_steps is 1001; expected 1 to 1000",)),
        (lambda: _probe(every_n_steps=0), ("DDIMProbe got every_n_steps 0; expected at least 1.",)),
        (lambda: _probe(grid=SIDEWAYS), ("sideways",)),
        (lambda: _probe(batch_size=0), ("batch_size",)),
        (lambda: _probe(num_samples=10**12), ("num_samples 1000000000000",)),
        (lambda: _probe(seed=-1), ("got seed -1",)),
        # other numbers
        (lambda: _optimizer("AdamW", lr=-1.0), ("`optimizer`", "-1.0")),
        (lambda: _optimizer("SGD", lr=float("nan")), ("`optimizer`", "lr", "nan")),
        (lambda: _rates(max_lr=-1.0), ("`lr_scheduler`", "lr", "-0.04")),
        (lambda: _model(lr_scheduler=component("torch.optim.lr_scheduler.ReduceLROnPlateau")), ("ReduceLROnPlateau", "OneCycleLR")),
        (lambda: _model(scheduler=ONE_STEP, validation_timesteps=1), ("num_train_timesteps 1", "at least 2")),
        (lambda: _data(dataset_kwargs={"num_images": 10**12, "size": 8}), ("num_images 1000000000000",)),
        (lambda: _data(num_workers=-1), ("ImageData got num_workers -1",)),
        (lambda: _trainer(accumulate_grad_batches=0), ("accumulate_grad_batches",)),
        (lambda: _trainer(gradient_clip_val=float("nan")), ("gradient_clip_val",)),
        (lambda: _trainer(val_check_interval=0), ("val_check_interval",)),
        # misspelt keys
        (lambda: _config() | {"run_directory": "runs/one"}, ("run_directory",)),
        (lambda: _data(batchsize=4), ("batchsize",)),
        (lambda: _network(in_chanels=3), ("in_chanels",)),
        (lambda: _probe(number_of_samples=8), ("number_of_samples",)),
    ],
)  # fmt: skip
def test_what_a_user_can_put_right_is_told_before_anything_is_written(config, texts, capsys):
    error = _refused(capsys, config(), *texts)
    assert len(error) < 600


# --- the run directory ------------------------------------------------------------------------------------------------


def test_a_directory_of_another_run_and_a_checkpoint_of_another_model(capsys):
    assert _fit(_config()) == 0
    capsys.readouterr()
    _refused(capsys, _network(layers_per_block=2), "runs/one already holds a run", "Choose a new `--run_dir`")
    text = "The checkpoint is of another model: its network.block_out_channels is"
    arguments = ("--ckpt_path", "runs/one/checkpoints/last.ckpt")
    _refused(capsys, _network(block_out_channels=[16]), text, arguments=arguments)


def test_a_checkpoint_that_is_not_there(capsys):
    _refused(capsys, _config(), "runs/none.ckpt", arguments=("--ckpt_path", "runs/none.ckpt"))


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("runs/one", ("runs/one", "`--run_dir`")),
        ("runs", ("runs/one cannot be created: Not a directory. Choose another `--run_dir`.",)),
    ],
)
def test_a_file_in_place_of_the_run_directory_or_the_one_above(place, told, capsys):
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).write_text("mine")
    _refused(capsys, _config(), *told)
    assert Path(place).read_text() == "mine"


# --- the configuration file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (_model(offset_noise="a lot"), "model.offset_noise cannot be read: Expected a float. Got value: a lot. Compare"),
        (_network(in_channels="many"), "model.network.in_channels cannot be read: Expected a int. Got value: many."),
        (_probe(num_samples="eight"), "trainer.callbacks.num_samples cannot be read: Expected a int. Got value: eight."),
        (_finetune(prompts="a cat"), "model.prompts cannot be read: Expected a collections.abc.Sequence (Given value: a cat)."),
        (_finetune(scheduler="diffusers.DDIMScheduler"), "model.scheduler cannot be read: Expected a dict (Given value: diffu"),
        (_model(weighting="ldmprobe.LogSNR"), "model.weighting cannot be read: Problem with given class_path 'ldmprobe.LogSNR'"),
        (_model(weighting="MinSNRR"), "Did you mean MinSNR?"),
        (_config() | {"data": component("ldmprobe.ImagData")}, "Did you mean ImageData?"),
        (_model(network=component("diffusers.UNet2DModle", **UNET)), "Did you mean UNet2DModel?"),
        (_model(optimizer=component("torch.optim.AdamW", lr="nan")), "model.optimizer.lr is 'nan'; expected a finite number, such as lr: 1.0e-3."),
        (_model(scheduler=component("torch.optim.lr_scheduler.OneCycleLR", max_lr=1e-3)), "model.scheduler is the noise schedule"),
        (_model(scheduler=component("OneCycleLR")), "a schedule of the learning rate; write it as the model's `lr_scheduler`."),
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
    refuses(capsys, ["fit", "--config", "nothing.yaml"], "nothing.yaml")
