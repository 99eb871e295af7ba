"""Every YAML says how it is run, and builds what it names."""

import json
import re
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor

import ldmprobe.callbacks
from ldmprobe import LatentCodec
from ldmprobe.callbacks import DDIMProbe, DenoisingProbe, ReportWriter, TimestepBalancer, TrainingLoss
from ldmprobe.configuration.cli import LDMProbeCLI
from ldmprobe.diffusion.balanced_timesteps import BalancedTimesteps
from ldmprobe.models.denoiser import network_config
from ldmprobe.models.latent_scale import SCALING
from tests.pipelines import saved

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FAMILIES, FIRST_STAGE, TASKS = CONFIGS / "families", CONFIGS / "first_stage", CONFIGS / "tasks"
PATHS = sorted(CONFIGS.glob("*.yaml")) + sorted(
    path for folder in (FAMILIES, FIRST_STAGE, TASKS) for path in folder.glob("*.yaml")
)


def build(tmp_path, *configs, overrides=()) -> LDMProbeCLI:
    arguments = [part for config in configs for part in ("--config", str(config))]
    return LDMProbeCLI([*arguments, "--run_dir", str(tmp_path / "run"), *overrides], run=False)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_first_line_is_the_command(path):
    assert path.read_text().startswith("# ldmprobe fit --config ")
    assert path.name in path.read_text().splitlines()[0]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_configuration_is_built_from_bare_names_and_saved_with_flat_ones(tmp_path, path):
    given, bare = path.read_text(), tmp_path / "bare.yaml"
    bare.write_text(re.sub(r"ldmprobe\.(?:callbacks\.)?", "", given))
    assert "ldmprobe." not in bare.read_text()
    under = CONFIGS / ("shapes_finetune.yaml" if "lora" in path.stem else "gaussian.yaml")
    if path.parent in (FAMILIES, FIRST_STAGE, TASKS):
        under = path.parent / "base.yaml"
    is_whole = "data" in yaml.safe_load(given) and (path.parent != TASKS or path.name == "base.yaml")
    arguments = [f"--config={under}", "--trainer.callbacks=[{class_path: ModelCheckpoint}]"]
    arguments = [*([] if is_whole else arguments), f"--config={bare}"]
    if path.parent == FIRST_STAGE and "autoencoder:" not in given:
        arguments.insert(1 if is_whole else -1, f"--config={FIRST_STAGE / 'kl_f4.yaml'}")
    if "finetune" in path.stem or "lora" in path.stem:
        arguments.append(f"--model.init_args.pretrained={saved('StableDiffusionPipeline')}")
    if "rank: 16" in given:
        arguments.append("--model.init_args.lora.rank=4")  # the small network's matrices have rank 8
    run_dir = str(tmp_path / "run")
    cli = LDMProbeCLI([*arguments, f"--run_dir={run_dir}"], run=False)
    assert cli.trainer.default_root_dir == run_dir
    checkpoints = [callback for callback in cli.trainer.callbacks if type(callback).__name__ == "ModelCheckpoint"]
    assert {callback.dirpath for callback in checkpoints} == {f"{run_dir}/checkpoints"}
    assert all(str(logger.save_dir).startswith(run_dir) for logger in cli.trainer.loggers)
    names = re.compile(r"^[^#\n]*class_path: ldmprobe\.(?:callbacks\.)?([\w.]+)", re.MULTILINE)
    named, saved_names = set(names.findall(given)), set(names.findall(cli.parser.dump(cli.config)))
    assert named <= saved_names <= {*ldmprobe.__all__, *ldmprobe.callbacks.__all__}
    if path.parent == FAMILIES:
        assert cli.model.timesteps.coverage(cli.model.schedule) > 0.999


def test_fragment_of_probes_appends_to_the_callbacks(tmp_path):
    own = yaml.safe_load((CONFIGS / "gaussian.yaml").read_text())
    own["trainer"]["callbacks"] = [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    kinds = {
        type(callback) for callback in build(tmp_path, tmp_path / "own.yaml", CONFIGS / "probes.yaml").trainer.callbacks
    }
    assert {LearningRateMonitor, DDIMProbe, DenoisingProbe, TrainingLoss, ReportWriter} <= kinds


def test_fragment_of_the_balancer_puts_in_its_sampler(tmp_path):
    cli = build(tmp_path, CONFIGS / "gaussian.yaml", CONFIGS / "balancer.yaml")
    assert isinstance(cli.model.timesteps, BalancedTimesteps)
    assert sum(isinstance(callback, TimestepBalancer) for callback in cli.trainer.callbacks) == 1


def test_short_names_work_on_the_command_line(tmp_path):
    cli = build(
        tmp_path,
        CONFIGS / "gaussian.yaml",
        overrides=["--trainer.callbacks+=DDIMProbe", "--trainer.callbacks.every_n_steps=7"],
    )
    assert [c.every_n_steps for c in cli.trainer.callbacks if isinstance(c, DDIMProbe)] == [500, 7]


def test_fragment_of_lora_trains_updates_alone(tmp_path):
    base = [f"--model.init_args.pretrained={saved('StableDiffusionPipeline')}"]
    cli = build(tmp_path, CONFIGS / "shapes_finetune.yaml", CONFIGS / "shapes_lora.yaml", overrides=base)
    trained = [name for name, parameter in cli.model.network.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)


def test_first_stages_are_what_their_names_say(tmp_path):
    for path in sorted(FIRST_STAGE.glob("*_f*.yaml")):
        kind, factor = path.stem.split("_f")
        given = yaml.safe_load(path.read_text())
        autoencoder = given["model"]["init_args"]["autoencoder"]
        assert 2 ** (len(autoencoder["init_args"]["block_out_channels"]) - 1) == int(factor)
        assert (autoencoder["class_path"] == "diffusers.AutoencoderKL") == (kind == "kl")
        assert given["run_dir"] == f"runs/first_stage/{path.stem}"
    built = build(tmp_path / "digits", FIRST_STAGE / "digits.yaml").model.autoencoder
    ours, shipped = (
        json.loads(json.dumps(network_config(network)))
        for network in (built, LatentCodec("builtin:digits").meta_module)
    )
    assert {name for name in ours if name not in SCALING and ours[name] != shipped[name]} == set()


def test_families_differ_in_their_process_alone():
    """Same data, same U-Net but for what it is told, same steps."""
    base = yaml.safe_load((FAMILIES / "base.yaml").read_text())["model"]["init_args"]["network"]
    processes = {}
    for path in FAMILIES.glob("*.yaml"):
        config = yaml.safe_load(path.read_text())
        assert config["run_dir"] == f"runs/families/{path.stem}"
        if path.stem == "base":
            continue
        assert set(config) == {"run_dir", "model"}
        settings = config["model"]["init_args"]
        network = settings.get("network", base)
        assert network["init_args"].get("network", network) == base
        processes[path.stem] = (settings["scheduler"]["class_path"], network["class_path"])
    assert processes == {
        "ddpm": ("diffusers.DDIMScheduler", "diffusers.UNet2DModel"),
        "subvp": ("ldmprobe.SubVPSDE", "diffusers.UNet2DModel"),
        "ve": ("ldmprobe.VESDE", "ldmprobe.Preconditioned"),
        "edm": ("ldmprobe.EDMProcess", "ldmprobe.Preconditioned"),
        "ncsn": ("ldmprobe.VESDE", "ldmprobe.Preconditioned"),
        "flow": ("diffusers.FlowMatchEulerDiscreteScheduler", "diffusers.UNet2DModel"),
    }
