"""``judge``: from the records of one run to a verdict. It needs no other run to compare with.

Each band of log-SNR, and the run, is in one state. What tells *unfinished* from *at fault* are the siblings that one
run has: a level's neighbors (``analysis/humps.py``), and its own earlier probes, compared draw by draw
(``analysis/comparison.py``). What a single probe finds is ``analysis/faults.py``'s, of which a denoiser that is
optimal for its data, Gaussian or not, has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite, nan

from ldmprobe.analysis.faults import FALSE_ALARMS, NEGLIGIBLE, OF_SCALE, in_nats, listed
from ldmprobe.io.record import ProbeRecord
from ldmprobe.probing.band_evidence import BandEvidence, gather
from ldmprobe.probing.copies import QUALITY, copied_in
from ldmprobe.probing.denoising_record import PROBE, can_be_judged, half_width_of, seen_in_training
from ldmprobe.probing.forecast import Forecast, forecast
from ldmprobe.probing.memorization_record import BY_HEART, Memorized, memorized_by_band
from ldmprobe.probing.memorization_record import PROBE as MEMORIZATION
from ldmprobe.probing.objective import PROBE as OBJECTIVE
from ldmprobe.probing.probe_before import well_apart
from ldmprobe.probing.verdict import BandVerdict, State, Verdict, signed

LEAST_FALL = 0.001  # of the bound: a band that falls by less has levelled off
_HIDDEN = 0.25  # of the bound: where more than that could be hidden, nothing can be said
_NAMED = 3  # unfinished bands, at most
_EARLY = 100  # steps: a network that is worse than a linear denoiser everywhere is then young, not broken


def judge(records: Sequence[ProbeRecord]) -> Verdict:
    """Return the verdict on a run.

    Args:
        records: of one run, in order of training step; those of other probes, and those that are measured otherwise
            than the last, are passed over.
    """
    whole = [record for record in records if record.probe == PROBE and can_be_judged(record)]
    if not whole:
        told = (
            "A verdict rests on a diffusion model's held-out error, of which there is no record.",
            "Add a DenoisingProbe to the callbacks, or held-out data. Of autoencoders and classifiers there is none.",
        )
        return Verdict(State.CANNOT_SAY, 0, None, nan, nan, nan, (), *told, "No denoising record.")
    last = whole[-1]
    alike = [record for record in whole if record.fingerprints == last.fingerprints]
    objective = [record for record in records if record.probe == OBJECTIVE and record.step <= last.step]
    evidence, stands_out = gather(alike, objective[-1] if objective else None)
    by_heart = [record for record in records if record.probe == MEMORIZATION and record.step <= last.step]
    memorized = memorized_by_band(by_heart[-1]) if by_heart else {}
    bound, hidden = sum(band.nats for band in evidence), sum(band.hidden for band in evidence)
    ahead: Sequence[Forecast | None] = forecast(alike, 2 * last.step) or (None,) * (len(evidence) + 1)
    bands = tuple(
        replace(_of_band(band, bound, memorized.get(band.low)), forecast=fall)
        for band, fall in zip(evidence, ahead, strict=False)
    )
    copied = _copied([record for record in records if record.probe == QUALITY and record.step <= last.step], last.step)
    states = [*(band.state for band in bands), *([State.MEMORIZING] if copied else [])]
    state = max(states, key=lambda state: state.code)
    before = well_apart(alike)[-2] if len(alike) > 1 else None
    known = f"{last.provenance['num_images']:,} held-out images, {last.provenance['num_draws']:,} draws a level"
    skill = last.curves["denoising_skill"]
    if last.step < _EARLY and bool((skill.value + half_width_of(skill) < 0).all()):
        young = f"After {last.step:,} steps the network is hardly trained" if last.step else "The network is untrained"
        state, told = State.CANNOT_SAY, (f"{young}: it is worse than a linear denoiser at every level.", "Train on.")
    elif state.exit_code == 0 and (seen := seen_in_training(last)):
        state = State.CANNOT_SAY
        told = (
            f"{seen} What the network does to others is not known.",
            "Give images that are in no training split (`held_out_split` of the data, `held_out` of `ldmprobe.probe`).",
        )
    elif state.exit_code == 0 and not hidden <= _HIDDEN * bound:
        state = State.CANNOT_SAY
        told = (
            f"{known} are too few: faults of {hidden / bound:.0%} of the bound could be hidden.",
            "Give the DenoisingProbe more images (`num_images`, `num_draws`).",
        )
    else:
        told = _in_words(state, bands, evidence, stands_out, None if before is None else before.step)
        if state in (State.LEARNING, State.LEVELLED_OFF) and ahead[-1] is not None:
            told = (f"{told[0]} {ahead[-1].in_words}", told[1])
        if copied:
            told = (f"{told[0]} {copied}".lstrip(), told[1])
    more = f"Faults of {in_nats(hidden)} nats more could be hidden, at most. " if isfinite(hidden) else ""
    return Verdict(
        state=state,
        step=last.step,
        since=None if before is None else before.step,
        bound=bound,
        change=sum(band.change for band in bands),
        recoverable=sum(band.recoverable for band in bands),
        bands=bands,
        sentence=told[0],
        action=told[1],
        confidence=f"{known}. {more}Of a perfect denoiser's probes {FALSE_ALARMS:.0%} at most are accused.",
        forecast=ahead[-1],
    )


def _copied(quality: Sequence[ProbeRecord], step: int) -> str:
    """Return what the last record of samples says of copies, where they are copies, and when it was."""
    told = copied_in(quality[-1]) if quality else ""
    return f"{told} That was at step {quality[-1].step:,}." if told and quality[-1].step < step else told


def _of_band(known: BandEvidence, bound: float, memorized: Memorized | None) -> BandVerdict:
    """Return the verdict on one band: the first of the states, from grave to harmless, whose evidence there is."""
    gain, weighs = known.gain, known.in_sight >= NEGLIGIBLE * bound
    falls = gain is not None and gain.significant and gain.gain > 0
    moves = falls and gain is not None and gain.gain >= LEAST_FALL * bound
    unfinished = falls or known.begun
    if known.lost:
        state, told = State.BROKEN, "predictions are NaN or Inf"
    elif known.useless and not unfinished:
        state, told = State.BROKEN, "the error is above that of predicting no noise at all, and does not fall"
    elif memorized is not None and memorized.share - memorized.half_width >= BY_HEART:
        state, told = State.MEMORIZING, f"{memorized.in_words} (probed at step {memorized.step:,})"
    elif known.rise is not None and known.rise.nats >= NEGLIGIBLE * bound:
        state = State.OVERFITTING
        told = f"held-out error has risen by {in_nats(known.rise.nats)} nats since step {known.rise.best:,}"
    elif told := known.by_chance or known.untrained or known.stands_out:
        state = State.AT_FAULT
    elif known.faults and (weighs or known.moved >= OF_SCALE) and not unfinished:
        told = "; ".join(f"{fault.weighed[0].lower()}{fault.weighed[1:]}" for fault in known.faults)
        state = State.AT_FAULT
    elif moves or (known.begun and known.faults):
        state, told = State.LEARNING, _left(known)
    elif gain is not None and (known.faults or known.light or falls):
        state, told = State.LEVELLED_OFF, _left(known)
    elif known.faults or known.light:
        state, told = State.CALIBRATED, f"what can be measured weighs next to nothing; {_left(known)}"
    else:
        state, told = State.CALIBRATED, f"nothing is measurable; {in_nats(known.hidden)} nats could be hidden at most"
    change = (-gain.gain, gain.half_width) if gain is not None else (nan, nan)
    return BandVerdict(known.name, known.low, known.high, state, known.nats, known.recoverable, *change, told)


def _left(known: BandEvidence) -> str:
    parts = []
    if known.gain is not None:
        parts.append(f"{signed(-known.gain.gain)} ± {in_nats(known.gain.half_width)} nats")
    if known.recoverable >= 0.01:
        parts.append(f"{in_nats(known.recoverable)} of its {in_nats(known.nats)} could still go, at least")
    return "; ".join(parts) or f"{in_nats(known.nats)} nats"


def _in_words(
    state: State, bands: Sequence[BandVerdict], evidence: Sequence[BandEvidence], stands_out: str, since: int | None
) -> tuple[str, str]:
    """Return what is the matter, and what to do next."""
    here, bound = [band for band in bands if band.state is state], sum(band.nats for band in bands)
    names, total = f"log-SNR {listed([band.name for band in here])}", f"{in_nats(bound)} nats"
    heavy = sorted((band for band in bands if band.recoverable >= NEGLIGIBLE * bound), key=lambda b: -b.recoverable)
    left = listed([f"{in_nats(band.recoverable)} at log-SNR {band.name}" for band in heavy[:_NAMED]]) if heavy else ""
    unfinished = f" At least {left} could still go." if left else ""
    before = bound - sum(band.change for band in bands)
    moved = f"The held-out bound {'rose' if bound > before else 'fell'} from {in_nats(before)} to {total}"
    risen = f" {moved} since step {since:,}." if bound - before >= NEGLIGIBLE * bound else ""
    match state:
        case State.BROKEN:
            return (
                f"Predictions are worthless at {names}: {here[0].evidence}.",
                "Look here first: learning rate, precision, what the network predicts, how data are scaled.",
            )
        case State.MEMORIZING:
            return (
                f"Training images are known by heart at {names}: {here[0].evidence}." if here else "",
                "Stop, and take an earlier checkpoint; or more data, a smaller network, a smaller LoRA rank.",
            )
        case State.OVERFITTING:
            best = min(known.rise.best for known in evidence if known.rise)
            told = f"the checkpoint of step {best:,} or so" if best else "the model that training began with"
            return (
                f"At {names}, {here[0].evidence}.",
                f"Stop, and take {told}; more data or a smaller network would help.",
            )
        case State.AT_FAULT if by_chance := next((known.by_chance for known in evidence if known.by_chance), ""):
            return (
                f"{by_chance}.",
                "Turn off what is random in evaluation: dropout, added noise, layers that are dropped or drawn from.",
            )
        case State.AT_FAULT if untrained := dict.fromkeys(known.untrained for known in evidence if known.untrained):
            alike = {why: [known.name for known in evidence if known.untrained == why] for why in untrained}
            told = "; at ".join(f"log-SNR {listed(at)}, {why}" for why, at in alike.items())
            return (
                f"At {told}.",
                "Draw these levels more often (`ldmprobe init balancer`), or find what keeps them from being trained.",
            )
        case State.AT_FAULT if stands_out:
            return (
                f"{stands_out[0].upper()}{stands_out[1:]}.",
                "Look for what is special at these levels: schedule, time embedding, weighting, sampler of timesteps.",
            )
        case State.AT_FAULT if since is None:
            told = f"{here[0].evidence[0].upper()}{here[0].evidence[1:]}."
            return told, "Train on and probe again: what falls is unfinished, what does not is at fault."
        case State.AT_FAULT:
            return (
                f"Left behind, and falling no longer: {names}.{risen or unfinished}",
                "Draw these levels more often (a weighting, or `ldmprobe init balancer`), or look for a bug.",
            )
        case State.LEARNING:
            often = ", or draw these levels more often (`ldmprobe init balancer`)" if left else ""
            return f"{moved} since step {since:,}.{unfinished}", f"Go on{often}."
        case State.LEVELLED_OFF | State.CALIBRATED if risen:
            return risen.lstrip(), "Probe again: what keeps rising is overfitting, or too high a learning rate."
        case State.LEVELLED_OFF:
            return (
                f"The held-out bound has levelled off at {total}.{unfinished}",
                "Stop, or go on with a lower learning rate or a larger network.",
            )
    more = ": training has levelled off" if since is not None else "; a second probe tells whether it still learns"
    return f"No noise level has a fault that weighs anything; the bound is {total}.", f"Nothing to do{more}."
