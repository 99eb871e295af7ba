"""What the audit is tried on: a small run by YAML, networks and probes of one's own, and probes that disturb it."""

import random
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from ldmprobe.audit.comparison import LedgerDiff, compare
from ldmprobe.audit.configuration import read_configuration
from ldmprobe.audit.observation import Observation
from ldmprobe.audit.run import observe
from ldmprobe.callbacks import DDIMProbe, ProbeCallback
from ldmprobe.probing.probe import Ranks
from tests.run_config import component, stateful_run, written

ALL_PROBES = [
    component("DDIMProbe", num_samples=8, num_steps=3),
    component("DenoisingProbe", num_images=16, num_draws=32),
    *({"class_path": name} for name in ("TrainingLoss", "TrainingObjective")),
]


def own(name, **init_args):
    return component(f"{__name__}.{name}", **init_args)


def write_config(path: Path, callbacks=ALL_PROBES, model=None, data=None, own_data=None, **trainer) -> Path:
    """A stateful run with these probes, clipping, and no loggers."""
    settings = {"max_steps": 50, "gradient_clip_val": 1.0, "val_check_interval": 25, "logger": False, **trainer}
    config = stateful_run(model or {}, data or {}, callbacks=list(callbacks), **settings)
    config |= {"run_dir": str(path.parent / "never_written")} | ({"data": own_data} if own_data else {})
    return written(config, path)


def audit_in_process(config: Path, steps: int = 4) -> tuple[Observation, LedgerDiff]:
    """The two runs of ``ldmprobe audit``, without its fresh processes, which cost seconds each."""
    settings = read_configuration(["--config", str(config)])
    folder = config.parent
    plain = observe(settings, folder / "plain", steps, probed=False)
    probed = observe(settings, folder / "probed", steps, probed=True)
    return probed, compare(plain, probed)


class OwnData(L.LightningDataModule):
    """A user's own loaders: shuffled by a generator, with workers that stay between epochs."""

    def __init__(self, num_workers: int) -> None:
        super().__init__()
        rows = [{"image": torch.full((2, 4, 4), i / 16 - 1), "index": i} for i in range(32)]
        workers = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
        generator = torch.Generator().manual_seed(0)
        self.train_dataloader = lambda: DataLoader(rows, 8, shuffle=True, generator=generator, **workers)
        self.val_dataloader = lambda: DataLoader(rows, 8, **workers)


class NormedDenoiser(nn.Module):
    """A user's own network, with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.2), nn.SiLU(), nn.Conv2d(8, 2, 3, padding=1)
        )

    def forward(self, z_t, t, condition):
        return self.layers(z_t)


class Convolutions(nn.Module):
    """A user's own network of features, whose weights do not come from the generator that training draws from."""

    num_features = 6

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = (nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.layers = nn.Sequential(*layers)

    def forward(self, images):
        return self.layers(images)


class AtEveryTurn(DDIMProbe):
    """Probes with gradients half gathered, fully gathered but unused, just used, and around validation."""

    def __init__(self) -> None:
        super().__init__(num_samples=8, num_steps=2)

    def _look(self, trainer, pl_module, *_):
        self.probe(trainer, pl_module, Ranks())

    on_after_backward = on_before_optimizer_step = on_train_batch_end = _look
    on_validation_start = on_validation_end = _look


class Disturbing(ProbeCallback):
    """Looks at the model, and does one thing that a probe must not do."""

    def __init__(self, how: str) -> None:
        super().__init__(every_n_steps=100)
        self.how = how

    def probe(self, trainer, pl_module, ranks):
        if trainer.global_step > 0:
            getattr(self, f"_{self.how}")(trainer, pl_module)

    def _draws_from_torch(self, trainer, pl_module):
        torch.randn(3)

    def _draws_from_numpy(self, trainer, pl_module):
        np.random.rand()

    def _draws_from_python(self, trainer, pl_module):
        random.random()

    def _leaves_eval_mode_on(self, trainer, pl_module):
        pl_module.network.layers.eval()

    def _steps_batch_norm(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.network(torch.ones(4, 2, 4, 4), torch.zeros(4), {})

    def _touches_a_weight(self, trainer, pl_module):
        weight = pl_module.network.layers[0].weight
        weight.data.view(-1)[0] = torch.nextafter(weight.data.view(-1)[0], torch.tensor(torch.inf))

    def _touches_the_average(self, trainer, pl_module):
        pl_module.ema.network.layers[0].bias.data[0] += 1

    def _leaves_a_gradient(self, trainer, pl_module):
        with torch.enable_grad():
            pl_module.network.layers[4].bias.sum().backward()

    def _freezes_a_weight(self, trainer, pl_module):
        pl_module.network.layers[0].weight.requires_grad_(False)

    def _changes_the_optimizer(self, trainer, pl_module):
        next(iter(trainer.optimizers[0].state.values()))["exp_avg"].mul_(2)

    def _changes_the_learning_rate(self, trainer, pl_module):
        trainer.optimizers[0].param_groups[0]["lr"] *= 2

    def _steps_the_schedule(self, trainer, pl_module):
        trainer.lr_scheduler_configs[0].scheduler.last_epoch += 1

    def _counts_a_batch(self, trainer, pl_module):
        trainer.fit_loop.epoch_loop.batch_progress.increment_ready()

    def _logs_a_training_metric(self, trainer, pl_module):
        trainer.logger.log_metrics({"train/loss": 0.0}, step=trainer.global_step)

    def _raises(self, trainer, pl_module):
        raise RuntimeError("nothing to see")

    def _looks(self, trainer, pl_module):
        pl_module.diffusion_model()


class Restless(L.Callback):
    """Makes training itself unrepeatable: in earnest, or in a logged time only."""

    runs = 0

    def __init__(self, in_earnest: bool) -> None:
        Restless.runs += 1
        self.in_earnest = in_earnest

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.in_earnest:
            random.seed(f"{id(self)} {Restless.runs}")
        trainer.logger.log_metrics({"seconds": Restless.runs + id(self)}, step=trainer.global_step)


class OwnLogger(TensorBoardLogger):
    """A logger of a user's own."""
