"""Short runs to compare, and their records."""

import shutil

from ldmprobe import RecordStore
from ldmprobe.callbacks import DDIMProbe, DenoisingProbe
from tests.training.test_latent_diffusion import digits, module, trainer

NASTY = "</script><script>alert(1)</script>{0}"


def fit(folder, max_steps=1, ddim=None, denoising=None, **settings):
    probes = [
        DDIMProbe(2, **{"num_samples": 16, "num_steps": 6, "num_reference": 128, **(ddim or {})}),
        DenoisingProbe(2, **{"num_images": 16, "num_draws": 64, "num_reference": 128, **(denoising or {})}),
    ]
    trainer(folder, max_steps=max_steps, callbacks=probes).fit(module(**settings), digits())
    return folder


def at_step(runs_dir, name, step, probe="denoising"):
    (record,) = [record for record in RecordStore(runs_dir / name).read(probe) if record.step == step]
    return record


def copied(run, target, without=""):
    """A copy of a run's records, without those of a probe."""
    shutil.copytree(
        run / "probes", target / "probes", ignore=shutil.ignore_patterns(f"{without}*") if without else None
    )
    return target
