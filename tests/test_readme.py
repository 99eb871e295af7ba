"""What the README says is so: its files exist, its commands are understood, its example runs."""

import re
import shlex
from pathlib import Path

import lightning as L
import pytest
import torch

import ldmprobe
from ldmprobe.callbacks import DDIMProbe, DenoisingProbe
from ldmprobe.cli import main
from tests.helpers import sd_scheduler, tiny_unet

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
TREE = re.search(r"## The tree\n\n```\n(.*?)```", README, re.DOTALL).group(1)
COMMANDS = [line for block in re.findall(r"```\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


def tree_paths() -> list[str]:
    """Each path of the tree, from its indentation."""
    found, folders = [], []
    for line in TREE.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].rstrip("/").split(", ")
        depth = (len(line) - len(line.lstrip())) // 2
        found += ["/".join([*folders[:depth], name]) for name in names]
        folders = [*folders[:depth], names[-1]]
    return found


def test_every_path_in_the_tree_exists():
    missing = [path for path in tree_paths() if not (ROOT / path).exists()]
    assert missing == []


def test_every_module_is_in_the_tree():
    listed = set(tree_paths())
    for path in (ROOT / "ldmprobe").rglob("*.py"):
        place = path.relative_to(ROOT).as_posix()
        if path.name == "__init__.py" or "callbacks" in place:
            continue
        assert place in listed or any(
            place.startswith(f"{folder}/") for folder in listed if folder.endswith("analyses")
        ), place


def test_scripts_configs_and_pictures_that_are_named_exist():
    named = re.findall(r"(?:scripts|configs|docs)/[\w/]+\.(?:py|yaml|md|png)", README)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "command", sorted({line.split("#")[0].strip() for line in COMMANDS if line.startswith("ldmprobe ")})
)
def test_commands_are_understood(command, capsys):
    _, subcommand, *arguments = shlex.split(command)
    with pytest.raises(SystemExit) as stop:
        main([subcommand, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for flag in (part for part in arguments if part.startswith("--") and "." not in part):
        assert flag in shown


def test_own_lightning_module_is_probed_as_the_readme_says(tmp_path):
    class Mine(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.unet, self.noise_scheduler = tiny_unet(channels=1), sd_scheduler()

        def training_step(self, batch, batch_idx):
            (images,) = batch
            t = torch.randint(0, 1000, (len(images),))
            noise = torch.randn_like(images)
            noisy = self.noise_scheduler.add_noise(images, noise, t)
            return torch.nn.functional.mse_loss(self.unet(noisy, t).sample, noise)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

        def diffusion_model(self):
            return ldmprobe.DiffusionModel(self.unet, self.noise_scheduler, latent_shape=(1, 8, 8))

    data = torch.utils.data.TensorDataset(torch.rand(64, 1, 8, 8) * 2 - 1)
    loader = torch.utils.data.DataLoader(data, batch_size=16)
    probes = [
        DDIMProbe(every_n_steps=2, num_samples=8, num_steps=3),
        DenoisingProbe(every_n_steps=2, num_draws=32, held_out=loader),
    ]
    trainer = L.Trainer(
        max_steps=4,
        callbacks=probes,
        default_root_dir=str(tmp_path),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(Mine(), loader)
    assert [record.step for record in ldmprobe.RecordStore(tmp_path).read("ddim")] == [0, 2, 4]
    assert [record.step for record in ldmprobe.RecordStore(tmp_path).read("denoising")] == [0, 2, 4]
