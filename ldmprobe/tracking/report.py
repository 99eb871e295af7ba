"""The report: one self-contained HTML page from a run directory.

Records and configuration may be a stranger's. All their text is escaped; their images are shown only if they are PNGs; a section that cannot be
drawn from them says so; and the page's own policy forbids the browser to load anything or to run a script that is not of this file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np

from ldmprobe.analysis.bands import range_name
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.errors import ConfigurationError
from ldmprobe.io.atomic import atomic_write
from ldmprobe.io.record import ProbeRecord
from ldmprobe.io.store import RecordStore
from ldmprobe.probing.forgetting import lost_or_gained
from ldmprobe.tracking import charts
from ldmprobe.tracking.comparable import comparable
from ldmprobe.tracking.figures import caveats
from ldmprobe.tracking.history import comparable_series, steps_of, thinned
from ldmprobe.tracking.page import chart, guarded, page, script, section
from ldmprobe.tracking.thumbnails import sample_uris

_PROMPTS_SHOWN, _COLUMNS = 20, 256  # records of a heatmap, or of a line over training


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the records in ``run_dir/probes`` to ``out`` (default: ``run_dir/report.html``).

    Raises:
        ConfigurationError: there are no records, or ``out`` cannot be written.
    """
    run_dir = Path(run_dir)
    store = RecordStore(run_dir)
    series = comparable_series(store)
    records = [record for each in series.values() for record in each.thinned(_COLUMNS).numbers()]
    if not records:
        raise store.no_records
    pictured = series["ddim"].thinned(charts.FRAMES) if "ddim" in series else []
    counts = {probe: len(each) for probe, each in series.items()}
    path = Path(out) if out is not None else run_dir / "report.html"
    html = report_html(records, _config_text(run_dir), run_dir.resolve().name, pictured, counts)
    try:
        with atomic_write(path) as file:
            file.write(html.encode())
    except OSError as error:
        raise ConfigurationError(f"The report cannot be written to {path}: {error.strerror}.") from error
    return path


def report_html(
    records: Sequence[ProbeRecord],
    config_text: str | None,
    title: str,
    pictured: Sequence[ProbeRecord] | None = None,
    counts: Mapping[str, int] | None = None,
) -> str:
    """The page as text, of a size that does not grow with the number of records.

    Args:
        pictured: DDIM records with samples and scatters, where ``records`` come without; gone through one at a time.
        counts: how many records there are of each probe, where ``records`` are some of them.
    """
    probes = ("ddim", "denoising", "training", "quality", "objective", "balance", "forgetting")
    found = {probe: comparable([record for record in records if record.probe == probe]) for probe in probes}
    counts = {probe: len(each) for probe, each in found.items()} | dict(counts or {})
    ddim, denoising, training, quality, objective, balance, forgetting = (
        thinned(each, _COLUMNS) for each in found.values()
    )
    if pictured is None:
        pictured = thinned([record for record in ddim if record.images or record.scatters], charts.FRAMES)
    sections = [
        guarded("Samples over training", lambda: _samples_section(pictured, counts["ddim"])),
        guarded("FID over training", lambda: _quality_section(quality)),
        guarded("What finetuning forgot and gained", lambda: _forgetting_section(forgetting)),
        guarded("KL before and after each denoiser pass", lambda: _kl_section(ddim)),
        guarded("Samples against real latents, level by level", lambda: _gap_section(ddim)),
        guarded("Noise level × training step", lambda: _heatmap_section(ddim, denoising)),
        guarded("Latents during sampling", lambda: _pca_section(pictured, counts["ddim"])),
        guarded("What the optimiser sees of the noise levels", lambda: _objective_section(objective)),
        guarded("Where the balancer steered to", lambda: _balance_section(balance)),
        guarded("Where loss can still be recovered", lambda: _calibration_section(denoising)),
        guarded("Denoising skill on held-out data", lambda: _denoising_section(denoising, training)),
        guarded("How it was measured", lambda: _provenance_section(records, config_text, counts)),
    ]
    header = guarded(title, lambda: _header(title, records, ddim, denoising, forgetting, counts))
    return page(title, header, "".join(sections))


# --- sections --------------------------------------------------------------------------------------------------------


def _header(
    title: str,
    records: Sequence[ProbeRecord],
    ddim: Sequence[ProbeRecord],
    denoising: Sequence[ProbeRecord],
    forgetting: Sequence[ProbeRecord],
    counts: Mapping[str, int],
) -> str:
    last = max(record.step for record in records)
    numbers = [
        ("Training steps", f"{last:,}", ""),
        ("Probes on record", f"{sum(counts[probe] for probe in ('ddim', 'denoising', 'forgetting')):,}", ""),
    ]
    if denoising:
        first, final = (_bound(record) for record in (denoising[0], denoising[-1]))
        low, high = denoising[-1].curves["denoising_mse"].log_snr[[0, -1]]
        covered = f"log-SNR {range_name(low, high)}"
        numbers.append(("Held-out bound", f"{final:.1f}", f"nats, from {first:.0f}; {covered}"))
        skill = denoising[-1].curves["denoising_skill"]
        if np.isfinite(skill.value).any():
            k = int(np.nanargmin(skill.value))
            numbers.append(("Lowest skill", f"{skill.value[k]:.2f}", f"at log-SNR {skill.log_snr[k]:.1f}"))
    if forgetting:
        scalars = forgetting[-1].scalars
        for data, total, sign in (("The base model's data", "forgotten_nats", -1), ("The new data", "gained_nats", 1)):
            change, half_width = sign * scalars[total], scalars[f"{total}_half_width"]
            if np.isfinite(change):
                numbers.append((data, f"{abs(change):,.1f}", f"± {half_width:,.1f} nats {lost_or_gained(change)}"))
    if ddim:
        numbers.append(
            (
                "DDIM probe",
                f"{ddim[-1].provenance['num_samples']} × {ddim[-1].provenance['num_steps']}",
                "samples × steps",
            )
        )
    cards = "".join(
        f"<div><span>{escape(a)}</span><strong>{escape(b)}</strong> <em>{escape(c)}</em></div>" for a, b, c in numbers
    )
    return (
        f"<h1>{escape(title)} <small>ldmprobe report</small></h1>"
        f'<p class="summary">{_summary(denoising, forgetting)}</p><div class="numbers">{cards}</div>'
    )


def _bound(record: ProbeRecord) -> float:
    """The likelihood bound between the record's first level and its last, in nats, whichever ldmprobe wrote the record."""
    mse = record.curves["denoising_mse"]
    return float(nats_per_error(mse.log_snr, float(record.provenance["dimension"])) @ mse.value)


def _summary(denoising: Sequence[ProbeRecord], forgetting: Sequence[ProbeRecord]) -> str:
    if not denoising and forgetting:
        return escape(str(forgetting[-1].provenance["summary"]))
    if not denoising:
        return "What each noise level of this model does. Without held-out data there is no verdict on where it falls short."
    sentence, remarks = (str(denoising[-1].provenance.get(name, "")) for name in ("summary", "remarks"))
    return f"<b>{escape(sentence[:1].upper() + sentence[1:])}</b> {escape(remarks)}"


def _samples_section(pictured: Sequence[ProbeRecord], count: int) -> str:
    uris, all_steps = sample_uris(pictured), steps_of(pictured)
    frames, steps = [frame for frame in uris if frame], [step for step, f in zip(all_steps, uris, strict=True) if f]
    if not frames:
        return ""
    last = pictured[all_steps.index(steps[-1])]
    pictures = "".join(f'<img alt="sample {i}" src="{uri}">' for i, uri in enumerate(frames[-1]))
    control = ""
    if len(frames) > 1:
        control = (
            f'<div class="slider"><output id="samples-step">training step {steps[-1]:,}</output>'
            f'<input id="samples-slider" type="range" min="0" max="{len(frames) - 1}" value="{len(frames) - 1}" '
            f'aria-label="training step"></div>{script(_slider_script(frames, steps))}'
        )
    return section(
        "Samples over training",
        "The same starting noise"
        + (" and class" if "sample_labels" in last.provenance else "")
        + " at every probe; move the slider to see what each sample becomes as the model trains."
        + _some_of(len(frames), count)
        + _prompted(last)
        + _guided(last),
        f'<div class="samples" id="samples">{pictures}</div>{control}',
    )


def _quality_section(quality: Sequence[ProbeRecord]) -> str:
    if not quality:
        return ""
    known = {name: escape(str(value)) for name, value in quality[-1].provenance.items()}
    fid = section(
        "FID over training",
        f"Fréchet distance of {known['num_samples']} decoded samples from {known['num_real']} real images, in the features of "
        f"{known['feature_network']}. It compares only with FIDs of the same network, images and number of samples.",
        chart(charts.fid_chart(quality)),
    )
    kid = section(
        "KID over training",
        "Kernel distance of the same features, which the number of samples does not bias: 0 is no difference. Bars are the standard deviation "
        "over its random subsets.",
        chart(charts.kid_chart(quality)),
    )
    return f'<div class="pair">{fid}{kid}</div>'


def _forgetting_section(forgetting: Sequence[ProbeRecord]) -> str:
    if not forgetting:
        return ""
    last = forgetting[-1]
    change = section(
        "What finetuning forgot and gained",
        f"<b>{escape(str(last.provenance.get('summary', '')))}</b> Both models denoise the same held-out draws, of "
        f"{_images_of(last)}.",
        chart(charts.forgetting_chart(last)),
    )
    history = section(
        "Forgetting over training",
        "All noise levels together. Where the upper line has levelled off and the lower one still falls, training any longer only forgets.",
        chart(charts.forgetting_history_chart(forgetting)),
    )
    skill = section(
        "Skill before and after finetuning",
        "Dotted: the base model on the same data. 0 is the best linear denoiser of that kind of data; where a dotted line and its solid one part, the "
        "level has changed, and the nats above say how much that weighs.",
        chart(charts.before_and_after_chart(last, "forgetting_skill", "skill: 1 − MSE ÷ linear optimum")),
    )
    residual = section(
        "Residual R before and after finetuning",
        "The share of a level's error that a linear correction would remove. Where it has risen, predictions have "
        "become miscalibrated, which a linear correction would mend; where only skill has fallen, none would.",
        chart(charts.before_and_after_chart(last, "forgetting_residual", "R: recoverable share of the loss")),
    )
    return f'<div class="pair">{change}{history}</div><div class="pair">{skill}{residual}</div>'


def _left_out(ddim: ProbeRecord) -> str:
    """The directions that KL is not of, and those along which only the samples have ceased to vary."""
    of, without, collapsed = (
        int(ddim.provenance.get(name) or 0)
        for name in ("kl_dimension", "directions_without_variance", "directions_collapsed")
    )
    told = ""
    if without:
        told += (
            f" Left out are {without:,} of {of:,} directions along which real latents do not vary (less than 1e-8 of the largest variance), where "
            "KL has no bound."
        )
    if collapsed:
        told += f" <b>Along {collapsed:,} directions the samples no longer vary, though real latents do.</b>"
    return told


def _kl_section(ddim: Sequence[ProbeRecord]) -> str:
    shown = [record for record in ddim if "step_kl" in record.curves]
    if not shown:
        return ""
    first = section(
        "KL before and after each denoiser pass",
        "The paper's measurement: how much one pass changes the distribution of the latents. <b>A perfect model shows this shape "
        "too</b>, near 0 early and steep late: read a curve only by its distance from the dashed ideal."
        + _left_out(shown[-1])
        + _guided(shown[-1]),
        chart(charts.kl_chart(shown)),
    )
    if "step_kl_ideal" not in shown[-1].curves:
        return first
    second = section(
        "The same, relative to the ideal",
        "1 is what a perfect denoiser of Gaussian data with these latents' mean and covariance would do. A level that stays away from 1, "
        "or drifts, is where to look first; real latents are not Gaussian, so a healthy model need not reach 1 everywhere."
        + _guided(shown[-1]),
        chart(charts.ratio_chart(shown)),
    )
    return f'<div class="pair">{first}{second}</div>'


def _gap_section(ddim: Sequence[ProbeRecord]) -> str:
    shown = [record for record in ddim if "marginal_gap" in record.curves]
    if not shown or "variance_ratio/band0" not in shown[-1].curves:
        return ""
    gap = section(
        "Samples against real latents, level by level",
        "KL of the sampled latents from real ones noised to the same level. Errors are carried from left to right: a rise says where the samples "
        "leave the data, not which level is to blame." + _guided(shown[-1]),
        chart(charts.gap_chart(shown)),
    )
    variance = section(
        "How: their variance, by eigen-band",
        "The latest probe. Below its dashed line a band's samples have lost variety along those directions; above it they hold noise that real "
        "latents do not. The dashed lines are a perfect denoiser's: the length of the steps alone takes it below 1."
        + _guided(shown[-1]),
        chart(charts.variance_chart(shown[-1])),
    )
    single = [record for record in ddim if "one_step_excess" in record.curves]
    if not single:
        return f'<div class="pair">{gap}{variance}</div>'
    excess = section(
        "Each step by itself",
        "Error of one sampling step from <b>true</b> noised latents, less that of the best linear denoiser (dashed) on the same. It inherits nothing "
        "from the steps before: a level that is above 0 here is at fault itself.",
        chart(charts.excess_chart(single)),
    )
    return f'<div class="pair">{gap}{variance}</div>{excess}'


def _heatmap_section(ddim: Sequence[ProbeRecord], denoising: Sequence[ProbeRecord]) -> str:
    ddim = [record for record in ddim if "step_kl" in record.curves]
    if not ddim and not denoising:
        return ""
    return section(
        "Noise level × training step",
        "How each noise level develops. White is where it should be (KL) or where a linear denoiser is (skill, nats); a horizontal band that "
        "keeps its colour while the rest fades is a level that training leaves behind.",
        chart(charts.heatmap_chart(ddim, denoising)),
    )


def _pca_section(pictured: Sequence[ProbeRecord], count: int) -> str:
    shown = [replace(record, images={}) for record in pictured if record.scatters.get("pca")]
    if not shown:
        return ""
    shares = [shown[-1].scalars.get(f"pca_explained_{k}", float("nan")) for k in (1, 2)]
    real = "pca_real" in shown[-1].scatters
    behind = " Grey: real latents noised to the same level, which is where the samples should be." if real else ""
    return section(
        "Latents during sampling",
        f"Projected on two principal components of {escape(str(shown[-1].provenance.get('pca_basis')))}, fitted once and kept for the whole run "
        f"({shares[0]:.0%} and {shares[1]:.0%} of their variance)."
        + behind
        + _some_of(len(shown), count)
        + _guided(shown[-1]),
        chart(charts.pca_chart(shown)),
    )


def _objective_section(objective: Sequence[ProbeRecord]) -> str:
    if not objective:
        return ""
    return section(
        "What the optimiser sees of the noise levels",
        "Which levels are drawn, what their squared ε-errors are multiplied by, and the product, which is what is trained. Dashed: the same "
        "everywhere, the likelihood bound. What the loss makes of a level is this times its error.",
        chart(charts.objective_chart(objective)),
    )


def _balance_section(balance: Sequence[ProbeRecord]) -> str:
    if not balance:
        return ""
    known, steered = balance[-1].provenance, sum(record.scalars["balance_steered"] for record in balance)
    what = (
        "A dry run: nothing was changed, and this is what the controller wanted."
        if known["dry_run"]
        else f"Of {len(balance)} decisions {steered:.0f} were followed; the others would have moved too few of the draws."
    )
    progress = section(
        "Where held-out error falls",
        f"What {escape(str(known['controller']))} goes by: how much each level's held-out error fell since the decision before. "
        f"Measuring it took {balance[-1].scalars['balance_seconds']:,.0f} CPU seconds in all.",
        chart(charts.progress_chart(balance)),
    )
    density = section(
        "Where the balancer steered to",
        f"Density of the draws per log-SNR, before the sampler's floor is added. {what}",
        chart(charts.steering_chart(balance)),
    )
    return f'<div class="pair">{progress}{density}</div>'


def _calibration_section(denoising: Sequence[ProbeRecord]) -> str:
    if not denoising:
        return ""
    residual = section(
        "Where loss can still be recovered",
        "The calibration residual R: the share of a noise level's held-out error that a linear correction, fitted on other images, would "
        "remove. 0 is calibrated; what is above is error that training has yet to remove, at least.",
        chart(charts.residual_chart(denoising[1:] or denoising)),
    )
    nats = section(
        "The same levels in nats",
        "What each level weighs in the likelihood bound. A large R or a low skill matters only where this does.",
        chart(charts.nats_chart(denoising)),
    )
    return f'<div class="pair">{residual}{nats}</div>'


def _denoising_section(denoising: Sequence[ProbeRecord], training: Sequence[ProbeRecord]) -> str:
    if not denoising and not training:
        return ""
    parts = []
    if denoising:
        parts.append(
            section(
                "Denoising skill on held-out data",
                "No sampling: held-out latents are noised and denoised once. 0 is the best linear (Wiener) denoiser; below 0 is worse than "
                "that, an absolute red flag wherever the level still weighs something in nats.",
                chart(charts.skill_chart(denoising)),
            )
        )
    parts.append(
        section(
            "Training and held-out error by noise level",
            "Raw, unweighted, whatever the loss weighting and timestep sampler. Training far below held-out is overfitting at that level.",
            chart(charts.loss_chart(denoising, training)),
        )
    )
    history = section(
        "Error over training",
        "One line per noise level. A level whose line has levelled off has learnt what it will; one that still falls has not been trained enough.",
        chart(charts.history_chart(denoising, training)),
    )
    if denoising and "prediction_gain" in denoising[-1].curves:
        gain = section(
            "Are predictions of the right size?",
            "What they would have to be multiplied by to fit held-out noise best. Above 1 they are too small, below 1 too large; a few per cent "
            "in a band show here long before they show in a loss.",
            chart(
                charts.gain_chart(
                    [record for record in denoising[1:] or denoising if "prediction_gain" in record.curves]
                )
            ),
        )
        offset = section(
            "Are predictions shifted?",
            "The mean of the error by channel, root mean square. A finite number of images leaves something of it by chance (dashed): what lies well "
            "above is a shift of color or brightness.",
            chart(
                charts.offset_chart(
                    [record for record in denoising[1:] or denoising if "prediction_offset" in record.curves]
                )
            ),
        )
        history = f'<div class="pair">{gain}{offset}</div>{history}'
    return f'<div class="pair">{"".join(parts)}</div>{history}'


def _provenance_section(records: Sequence[ProbeRecord], config_text: str | None, counts: Mapping[str, int]) -> str:
    rows = []
    for probe in dict.fromkeys(record.probe for record in records):
        last = [record for record in records if record.probe == probe][-1]
        facts = {"last record": f"step {last.step:,}, {last.created}", **last.provenance, **last.fingerprints}
        facts.pop("sample_labels", None)
        listed = "; ".join(f"{escape(str(key)[:200])}: {escape(str(value)[:4000])}" for key, value in facts.items())
        rows.append(f"<tr><th>{escape(probe)}</th><td>{listed}</td></tr>")
    config = ""
    if config_text is not None:
        config = f"<details><summary>Configuration</summary><pre>{escape(config_text)}</pre></details>"
    return section(
        "How it was measured",
        "Records are compared only where their fingerprints (grid, reference, sampler, held-out data) agree."
        + _drawn(counts),
        f"<details open><summary>Provenance</summary><table>{''.join(rows)}</table></details>{config}",
    )


# --- pieces ----------------------------------------------------------------------------------------------------------


def _some_of(shown: int, count: int) -> str:
    return f" Shown are {shown} of {count:,} probes, evenly spaced." if shown < count else ""


def _drawn(counts: Mapping[str, int]) -> str:
    """What is left out of a page of many records."""
    if max(counts.values(), default=0) <= charts.FRAMES:
        return ""
    most = max(counts, key=lambda probe: counts[probe])
    return (
        f" Of the many records ({counts[most]:,} of {most}) the page draws some, evenly spaced, the first and the last among them: at most {_COLUMNS} "
        f"in heatmaps and over training, {charts.CURVES} as curves, {charts.FRAMES} with scatters (of at most {charts.POINTS} samples a level) and "
        "samples (large ones reduced). The records themselves, in probes/, are whole."
    )


def _images_of(forgetting: ProbeRecord) -> str:
    counts = [escape(str(count)) for count in forgetting.provenance["num_images"].values()]
    return f"{counts[0]} images of the base model's data and {counts[1]} of the new"


def _guided(record: ProbeRecord) -> str:
    return "".join(
        f" <b>{escape(caveat[0].upper() + caveat[1:])[:400]}</b>: what parts them from the ideal and from real data is its doing, too."
        for caveat in caveats(record)
        if caveat
    )


def _prompted(record: ProbeRecord) -> str:
    prompts = record.provenance.get("prompts")
    if not isinstance(prompts, list):
        return ""
    quoted = ", ".join(f"“{escape(str(prompt)[:200])}”" for prompt in prompts[:_PROMPTS_SHOWN])
    return f" Prompts, in turn: {quoted}{' …' if len(prompts) > _PROMPTS_SHOWN else ''}."


def _slider_script(frames: list[list[str]], steps: list[int]) -> str:
    return (
        f"(() => {{ const frames = {json.dumps(frames)}, steps = {json.dumps(steps)};"
        "const images = document.querySelectorAll('#samples img'), label = document.getElementById('samples-step');"
        "document.getElementById('samples-slider').addEventListener('input', event => {"
        "const k = +event.target.value; frames[k].forEach((uri, i) => { images[i].src = uri; });"
        "label.textContent = 'training step ' + steps[k].toLocaleString('en'); }); })();"
    )


def _config_text(run_dir: Path) -> str | None:
    path = run_dir / "config.yaml"
    try:
        if not path.is_file():
            return None
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(1_000_000)
    except OSError:
        return None
