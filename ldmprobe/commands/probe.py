"""``ldmprobe probe``: records and a report of a diffusion model or an autoencoder, without training."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ldmprobe.commands.further_probes import FurtherProbe, add_further, asked_for, real_features
from ldmprobe.commands.options import (
    Parser,
    add_data,
    add_model,
    add_sampling,
    add_weights,
    further_columns,
    integer,
    load,
    option,
    settings_as_options,
    source_of,
)
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.plain_text import plain

if TYPE_CHECKING:
    from ldmprobe.inference import RealLatents
    from ldmprobe.io.store import RecordStore
    from ldmprobe.models.diffusion_model import DiffusionModel
    from ldmprobe.pretrained.source import Source
    from ldmprobe.probing.sampling import Sampling

_OF_AUTOENCODERS = (
    *("--out", "--data", "--image-column", "--image-size", "--num-reference", "--feature-network", "--batch-size"),
    *("--seed", "--ema-length", "--revision", "--local-files-only", "--device"),
)


def parser(command: str) -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        command,
        "MODEL --out DIR [options]",
        "Probe a checkpoint or a diffusers pipeline without training, into a new directory: records, figures and "
        "report.html. Of an autoencoder (a checkpoint of Autoencoding, or a folder or hub id of one of diffusers) the "
        "reconstructions are probed.",
        "runs/digits/checkpoints/last.ckpt --data builtin:digits --label-column label --image-size 32 --out probed",
    )
    add_model(parser)
    add_weights(parser, several="; several are compared on the held-out images of --data, and the best is probed")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new directory to write to")
    add_sampling(parser, num_samples=256)
    group = parser.add_argument_group(
        "data",
        "Real images give the ideal curves, and held-out ones the denoising skill; without --data both are left out.",
    )
    add_data(group)
    option(group, "--image-size PIXELS", "resize images to this (default: leave as they are)", integer(1))
    option(group, "--num-reference N", "number of real images", integer(2), 4096)
    option(group, "--num-draws N", "noised latents of real images at each noise level", integer(32), 512)
    option(
        group,
        "--feature-network NAME",
        "network that an autoencoder's rFID is taken in, or none, and the FID of --relevance; another than the "
        "autoencoder's perceptual loss is in (default: builtin:digits for gray, builtin:cifar10 for RGB images). "
        "Several --ema-length are compared by FID, too, where it is given",
    )
    add_further(parser)
    return parser


def run(argv: list[str]) -> int:
    """Probe the model that ``argv`` names.

    Raises:
        ConfigurationError: an option is wrong, or the model or data cannot be used.
    """
    args = parser(argv[0]).parse_args(argv[1:])
    further = asked_for(args)
    args.lengths = list(dict.fromkeys(args.ema_length or ()))
    args.ema_length = args.lengths[0] if len(args.lengths) == 1 else None
    if len(args.lengths) > 1 and args.data is None:
        raise ConfigurationError("Several --ema-length are compared on held-out images; give --data, or one length.")
    from ldmprobe.io.run_directory import locked
    from ldmprobe.training.checkpoint.load import is_autoencoder

    with settings_as_options(args):
        source = source_of(args)
        probe_into = (
            _autoencoder_probe(source, args, argv) if is_autoencoder(source) else _diffusion_probe(args, further)
        )
        with locked(args.out, resuming=False, option="--out") as out:
            print(plain(probe_into(out)))
    return 0


def _autoencoder_probe(source: Source, args: Namespace, argv: Sequence[str]) -> Callable[[Path], str]:
    """Load the autoencoder and its images; return what probes it into a directory and says where the report is."""
    from ldmprobe.inference import real_images
    from ldmprobe.training.checkpoint.load import load_autoencoder

    flags = [text.partition("=")[0] for text in argv if text.startswith("--")]
    if superfluous := [flag for flag in flags if flag not in _OF_AUTOENCODERS]:
        raise ConfigurationError(f"{args.model} is an autoencoder, which is not sampled; leave out {superfluous[0]}.")
    if args.data is None:
        raise ConfigurationError(f"{args.model} is an autoencoder, which is probed with images; give --data.")
    if len(args.lengths) > 1:
        raise ConfigurationError(
            f"{args.model} is an autoencoder, which has no bound to compare; give one --ema-length."
        )
    model, feature_network, originals, held_out = real_images(
        load_autoencoder(source, args.device),
        args.data,
        args.image_column,
        args.image_size,
        args.num_reference,
        feature_network=args.feature_network,
    )

    def probe_into(out: Path) -> str:
        from ldmprobe.io.store import RecordStore
        from ldmprobe.probing.probe import progress_bar
        from ldmprobe.probing.reconstruction import probe_reconstruction
        from ldmprobe.tracking.report import write_report

        how = {"batch_size": args.batch_size, "seed": args.seed, "step": model.trained_steps}
        with progress_bar("reconstruction probe") as progress:
            record = probe_reconstruction(model, held_out, originals, feature_network, progress=progress, **how)
        RecordStore(out).append(record)
        return f"{record.provenance['summary']}\nreport: {write_report(out)}"

    return probe_into


def _diffusion_probe(args: Namespace, further: Sequence[FurtherProbe]) -> Callable[[Path], str]:
    if args.feature_network is not None and args.relevance is None and len(args.lengths) < 2:
        raise ConfigurationError(
            "--feature-network is for an autoencoder's rFID, --relevance and several --ema-length; leave it out."
        )
    model, sampling = load(args, real=args.data is not None)
    return lambda out: _probe_into(out, model, sampling, args, further)


def _probe_into(
    out: Path, model: DiffusionModel, sampling: Sampling, args: Namespace, further: Sequence[FurtherProbe]
) -> str:
    from ldmprobe.inference import OnlyFinite
    from ldmprobe.io.store import RecordStore
    from ldmprobe.probing.denoising import probe_denoising
    from ldmprobe.probing.probe import progress_bar
    from ldmprobe.probing.sampling_probe import default_analyses, probe_sampling
    from ldmprobe.tracking.charts.static import png
    from ldmprobe.tracking.pictures import curves_figure, scatter_figure
    from ldmprobe.tracking.report import write_report

    store, step = RecordStore(out), model.trained_steps
    how = {"batch_size": args.batch_size, "seed": args.seed, "step": step}
    real = None if args.data is None else _real(model, args)
    prepared = {} if real is None else {probe.name: probe.prepared(real, sampling, args) for probe in further}
    if real is not None and len(args.lengths) > 1:
        model = _best_average(model, real, sampling, store, args)
    reference, held_out = (None, None) if real is None else (real.reference, real.held_out)
    with progress_bar("sampling probe") as progress:
        analyses = [OnlyFinite(), *default_analyses(reference, held_out)]
        record = probe_sampling(
            model, reference, sampling, analyses=analyses, held_out=held_out, step=step, progress=progress
        )
    store.append(record)
    if real is not None:
        real.reference.save(out / "reference.safetensors")
        store.append(probe_denoising(model, real.held_out, real.reference, args.num_draws, **how))
    for name, probe in prepared.items():
        with progress_bar(f"{name} probe") as progress:
            found = probe(model, progress=progress, **how)
        store.append(found)
        if "summary" in found.provenance:
            print(plain(found.provenance["summary"]))
    (out / "pca.png").write_bytes(png(scatter_figure(record, "pca")))
    (out / "step_kl.png").write_bytes(png(curves_figure([record], ["step_kl"])))
    return f"report: {write_report(out)}\nfigures: {out / 'pca.png'}, {out / 'step_kl.png'}"


def _real(model: DiffusionModel, args: Namespace) -> RealLatents:
    from ldmprobe.inference import real_latents

    return real_latents(
        model,
        args.data,
        args.image_column,
        args.label_column,
        args.image_size,
        args.num_reference,
        caption_column=args.caption_column,
        columns=further_columns(args, model.conditioning),
    )


def _best_average(
    model: DiffusionModel, real: RealLatents, sampling: Sampling, store: RecordStore, args: Namespace
) -> DiffusionModel:
    """Return the model with the best of several averages of its weights; how they compare goes into the store."""
    from ldmprobe.probing.averages import BEST, probe_averages
    from ldmprobe.probing.probe import progress_bar

    how = {"batch_size": args.batch_size, "seed": args.seed, "step": model.trained_steps}
    judges = args.feature_network not in (None, "none")
    judge, features = real_features(real, sampling, args, "--ema-length") if judges else (None, None)
    sampling = sampling.fitted(sampling.levels(model, real=True), real.reference.basis)
    averages = {length: partial(_averaged, args, model, length) for length in args.lengths}
    with progress_bar("averages") as progress:
        compared = probe_averages(
            model,
            averages,
            real.held_out,
            args.num_draws,
            progress=progress,
            real=features,
            feature_network=judge,
            sampling=sampling,
            **how,
        )
    store.append(compared)
    print(plain(compared.provenance["summary"]))
    return averages[compared.scalars[BEST]]()


def _averaged(args: Namespace, model: DiffusionModel, length: float) -> DiffusionModel:
    """Return ``model`` with another average of its weights."""
    from ldmprobe.training.checkpoint.load import load_model

    other = load_model(replace(source_of(args), ema_length=length), args.device)
    return replace(model, network=other.network, weights=other.weights)
