"""A real pretrained score network, of others, probed by three samplers: galaxies of the Hyper Suprime-Cam survey.

    pip install --no-deps galaxygrad==0.0.20
    python scripts/probe_galaxies.py --out runs/galaxies

The package holds networks that were trained on images of real galaxies (Sampson et al., 2024, arXiv:2401.07313). Its
arrays are read by numpy and put into a torch module that follows the Denoiser protocol, which is all that ldmprobe asks
of a network of someone else's. No images come with it: what stands for real data are samples that the network itself
draws finely, from other noise, so that the ideal curves are those of a perfect model of these.

In ``--out`` are a record for each sampler, one of the denoising probe, the two figures of Roh et al. for each sampler,
the samples, and ``report.html``.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import starmap
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, layer_norm, linear, relu

from ldmprobe.diffusion.grids import LogSNRGrid
from ldmprobe.diffusion.processes import VPSDE
from ldmprobe.diffusion.samplers import DDIM, DPMSolver, EulerMaruyama, Sampler
from ldmprobe.errors import ConfigurationError
from ldmprobe.inference import sample_images
from ldmprobe.io.digest import fingerprint
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.run_directory import locked
from ldmprobe.io.store import RecordStore
from ldmprobe.models.codec import LatentCodec
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.probing.denoising import probe_denoising
from ldmprobe.probing.held_out import HeldOut
from ldmprobe.probing.latent_statistics import LatentStatistics
from ldmprobe.probing.sampling import Sampling
from ldmprobe.probing.sampling_probe import probe_sampling
from ldmprobe.tracking.charts.static import png
from ldmprobe.tracking.pictures import curves_figure, scatter_figure
from ldmprobe.tracking.report import write_report

PACKAGE = "galaxygrad"
PATCH = 4
BLOCK = 12  # arrays of a block of the mixer
BRIGHTEST = 6.0  # of the networks' 10 ln(1 + flux), shown as white


class MixerBlock(nn.Module):
    """A block of an MLP-Mixer (Tolstikhin et al., 2021, arXiv:2105.01601) on (N, channels, patches), with layer norms
    over both.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        super().__init__()
        self.weights = parameters(arrays)

    def forward(self, y: Tensor) -> Tensor:
        patch_mlp, hidden_mlp, norm_1, norm_2 = (
            self.weights[:4],
            self.weights[4:8],
            self.weights[8:10],
            self.weights[10:],
        )
        y = y + mlp(norm(y, norm_1), patch_mlp)
        y = y.transpose(1, 2)
        return (y + mlp(norm(y, norm_2), hidden_mlp)).transpose(1, 2)


class GalaxyScore(nn.Module):
    """One of galaxygrad's score networks as a denoiser: told u in (0, 1], it answers ε = −σ s(z, u).

    Args:
        arrays: its arrays in the order of the file: convolution into patches, transposed convolution out of them, the
            blocks, the last norm, and the length t_1 of its time.
        schedule: the process it was trained on; it says what σ is.
    """

    def __init__(self, arrays: Sequence[np.ndarray], schedule: VPSDE) -> None:
        super().__init__()
        (conv_in, bias_in, conv_out, bias_out), rest = arrays[:4], arrays[4:-1]
        *blocks, last = (rest[start : start + BLOCK] for start in range(0, len(rest), BLOCK))
        # Equinox correlates where torch's transposed convolution convolves.
        flipped = conv_out[:, :, ::-1, ::-1].swapaxes(0, 1)
        self.patches, self.norm = parameters([conv_in, bias_in.ravel(), flipped, bias_out.ravel()]), parameters(last)
        self.blocks = nn.ModuleList(MixerBlock(block) for block in blocks)
        self.schedule = schedule

    def forward(self, z_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        weight_in, bias_in, weight_out, bias_out = self.patches
        u = t.to(z_t).view(-1, 1, 1, 1)
        y = conv2d(torch.cat([z_t, u.expand_as(z_t)], dim=1), weight_in, bias_in, stride=PATCH)
        shape = y.shape
        y = y.flatten(2)
        for block in self.blocks:
            y = block(y)
        score = conv_transpose2d(norm(y, self.norm).view(shape), weight_out, bias_out, stride=PATCH)
        return -(-torch.expm1(-self.schedule.exponent(u))).sqrt() * score


def parameters(arrays: Sequence[np.ndarray]) -> nn.ParameterList:
    return nn.ParameterList(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)


def mlp(y: Tensor, weights: Sequence[Tensor]) -> Tensor:
    weight_1, bias_1, weight_2, bias_2 = weights
    return linear(relu(linear(y, weight_1, bias_1)), weight_2, bias_2)


def norm(y: Tensor, weights: Sequence[Tensor]) -> Tensor:
    weight, bias = weights
    return layer_norm(y, weight.shape, weight, bias)


def read_arrays(path: Path) -> list[np.ndarray]:
    """Return the arrays of an ``.eqx`` file: NumPy's own format, one after another. Nothing is unpickled."""
    arrays, size = [], path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            arrays.append(np.load(file, allow_pickle=False))
    return arrays


def galaxy_model(path: Path) -> DiffusionModel:
    """Return the model in an ``.eqx`` file of galaxygrad: a VP-SDE of β = 1 over a time of t_1 = 10."""
    arrays = read_arrays(path)
    t_1, pixels = float(arrays[-1]), PATCH * int(np.sqrt(arrays[4].shape[1]))
    schedule = VPSDE(beta_0=t_1, beta_1=t_1, time_scale=1.0)
    codec = LatentCodec(scale=BRIGHTEST / 2)
    codec.shift.fill_(-1.0)
    return DiffusionModel(GalaxyScore(arrays, schedule).eval(), schedule, (1, pixels, pixels), codec)


def installed(network: str) -> Path:
    """Return the file of one of the networks of the installed package, which is not imported: it would want JAX."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigurationError(f"{PACKAGE} is not installed: `pip install --no-deps {PACKAGE}==0.0.20`.")
    folder = Path(spec.origin).parent
    if not (folder / f"eqx_{network}.eqx").is_file():
        there = ", ".join(sorted(path.stem.removeprefix("eqx_") for path in folder.glob("eqx_*.eqx")))
        raise ConfigurationError(f"{PACKAGE} in {folder} has no network {network!r}; it has {there or 'none'}.")
    return folder / f"eqx_{network}.eqx"


def drawn(model: DiffusionModel, num_samples: int, seed: int) -> Tensor:
    """Return latents that the model draws finely."""
    images = sample_images(model, Sampling(num_samples, 25, DPMSolver(), LogSNRGrid(), seed=seed))
    return model.codec.encode(images)


def probes(model: DiffusionModel, args: argparse.Namespace) -> Iterator[ProbeRecord]:
    """Yield the records of the three samplers, and of the denoising probe."""
    samples = drawn(model, args.num_reference + args.num_held_out, seed=1)
    reference = LatentStatistics.fit(samples[: args.num_reference], fingerprint(model.codec.description))
    held_out = HeldOut(samples[args.num_reference :], {})
    samplers: list[Sampler] = [DDIM(), DPMSolver(), EulerMaruyama()]
    for sampler in samplers:
        sampling = Sampling(args.num_samples, args.num_steps, sampler, LogSNRGrid())
        yield probe_sampling(model, reference, sampling, held_out=held_out)
    yield probe_denoising(model, held_out, reference, num_draws=2 * args.num_held_out)


def run(args: argparse.Namespace) -> None:
    model = galaxy_model(installed(args.network))
    with locked(args.out, resuming=False, option="--out") as out:
        store, start = RecordStore(out), time.perf_counter()
        for record in probes(model, args):
            store.append(record)
            print(f"{record.probe}: {time.perf_counter() - start:.0f} s", flush=True)
            if "pca" in record.scatters:
                (out / f"pca_{record.probe}.png").write_bytes(png(scatter_figure(record, "pca")))
                (out / f"step_kl_{record.probe}.png").write_bytes(png(curves_figure([record], ["step_kl"])))
        gain = record.curves["prediction_gain"]
        print(*starmap("log-SNR {:5.1f}: gain {:.3f}".format, zip(gain.log_snr, gain.value, strict=True)), sep="\n")
        print(f"report: {write_report(out)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder for records, figures and report")
    parser.add_argument(
        "--network", default="hsc_ScoreNet32", help="hsc or ZTF, 32 or 64 pixels, as its file is called"
    )
    parser.add_argument("--num-samples", type=int, default=128)
    parser.add_argument("--num-steps", type=int, default=30)
    parser.add_argument("--num-reference", type=int, default=256)
    parser.add_argument("--num-held-out", type=int, default=128)
    try:
        run(parser.parse_args())
    except ConfigurationError as error:
        parser.exit(2, f"probe_galaxies: error: {error}\n")
    sys.exit(0)
