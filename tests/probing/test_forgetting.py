"""Forgetting on Gaussian data, where both kinds' optimal denoisers are known: a base model perfect for one, a finetuned
one for the other."""

import numpy as np
import pytest
import torch
from torch import nn

from ldmprobe import DiffusionModel, HeldOut, ProbeRecord, probe_forgetting
from ldmprobe.analysis.likelihood import nats_per_error
from ldmprobe.probing.forgetting import KindOfData
from tests.helpers import FLOAT32, GaussianDenoiser, gaussian_model, refused
from tests.probing.gaussian import ScaledBand, assert_same_record, draw, exact_reference, on_ranks

DIMENSION = 32


def shifted(model: DiffusionModel, shift: float) -> DiffusionModel:
    """A perfect model of the same data moved by ``shift`` in every dimension."""
    network = GaussianDenoiser(model.network.mean.detach() + shift, model.network.variance.detach(), model.schedule)
    return DiffusionModel(network, model.schedule, model.latent_shape)


def probe(network: nn.Module, before: ProbeRecord | None, **options):
    model = DiffusionModel(network, BASE.schedule, BASE.latent_shape)
    return probe_forgetting(model, *KINDS, before=before, num_draws=256, **options)


def data_of(model: DiffusionModel) -> KindOfData:
    return KindOfData(HeldOut(draw(model, 128, seed=5), {}), exact_reference(model))


BASE = gaussian_model()
NEW = shifted(BASE, 0.5)
KINDS = (data_of(BASE), data_of(NEW))


@pytest.fixture(scope="module")
def before():
    return probe(BASE.network, None)


@pytest.fixture(scope="module")
def after(before):
    return probe(NEW.network, before, step=10)


def test_change_is_the_closed_form_at_every_level(after):
    """Perfect for means δ apart, the two predict σαδ/v apart, v = α²λ + σ², whatever the draw, so that each loses on
    the other's data the mean of its square: 3 standard errors (the paired interval is 1.96) at each of some 16
    levels."""
    for kind, sign in (("base", -1), ("new", 1)):
        curve = after.curves[f"forgetting_nats/{kind}"]
        alpha2 = BASE.schedule.alpha[curve.timestep].numpy()[:, None] ** 2
        variance = BASE.network.variance.detach().numpy().reshape(1, -1)
        apart = (1 - alpha2) * alpha2 * 0.5**2 / (alpha2 * variance + 1 - alpha2) ** 2
        expected = sign * nats_per_error(curve.log_snr, DIMENSION) * apart.mean(1)
        assert len(curve.value) >= 12
        assert (np.abs(curve.value - expected) < 3 / 1.96 * (curve.upper - curve.value)).all()


def test_small_changes_are_seen_since_draws_are_paired(before):
    small = probe(shifted(BASE, 0.05).network, before)
    each = small.per_sample["forgetting_errors/base"]
    errors = nats_per_error(each.log_snr, DIMENSION) @ each.value
    unpaired = 1.96 * errors.std() / np.sqrt(errors.size)
    assert 0 < small.scalars["forgotten_nats_half_width"] < 0.2 * unpaired


def test_totals_are_the_sums_over_levels_and_the_sentence_says_which_way(after):
    for kind, name, word, sign in (("base", "forgotten_nats", "lost", -1), ("new", "gained_nats", "gained", 1)):
        total, half_width = after.scalars[name], after.scalars[f"{name}_half_width"]
        assert total == pytest.approx(sign * after.curves[f"forgetting_nats/{kind}"].value.sum(), rel=1e-10)
        assert total > 2 * half_width > 0
        assert f"(all levels together: {total:.1f} ± {half_width:.1f} nats {word})" in after.provenance["summary"]


def test_change_of_skill_is_skill_after_less_skill_before(before, after):
    for kind in ("base", "new"):
        now, then, change = (
            after.curves[f"forgetting_{name}/{kind}"].value for name in ("skill", "skill_before", "skill_change")
        )
        np.testing.assert_allclose(change, now - then, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(then, before.curves[f"forgetting_skill/{kind}"].value)
    # A shift is linear: R sees all of it on the other's data, and nothing on its own.
    lost = after.curves["forgetting_skill_change/base"].value < -0.1
    assert lost.any()
    assert (after.curves["forgetting_residual/base"].value[lost] > 0.05).all()
    assert (after.curves["forgetting_residual_before/base"].value < 0.02).all()


def test_the_sentence_names_the_band_that_was_spoilt(before):
    levels = before.curves["forgetting_nats/base"]
    inside = levels.timestep[(levels.log_snr >= 0) & (levels.log_snr < 3)]
    spoilt = ScaledBand(BASE.network, int(inside.min()), int(inside.max()) + 1)
    found = probe(spoilt, before)
    assert found.provenance["summary"].startswith("Forgets most at log-SNR 0…+3: ")
    assert "None has measurably gained on the new data" in found.provenance["summary"]


def test_a_model_that_did_not_change_has_forgotten_nothing(before):
    again = probe(BASE.network, before)
    for record in (before, again):
        assert set(record.scalars.values()) == {0.0}
        assert record.provenance["summary"].startswith(
            "No band of noise levels has measurably forgotten anything of the base model's"
        )


def test_nan_is_said_to_be_nan(before):
    network = GaussianDenoiser(BASE.network.mean.detach() * torch.nan, BASE.network.variance.detach(), BASE.schedule)
    found = probe(network, before)
    assert found.provenance["summary"].startswith("Predictions have NaN or Inf in them")


def test_it_is_the_same_on_any_number_of_ranks(before, after):
    for record in on_ranks(2, lambda ranks: probe(NEW.network, before, step=10, ranks=ranks)):
        assert_same_record(record, after, **FLOAT32)


def test_progress_runs_through_both_kinds_of_data():
    seen = []
    probe_forgetting(BASE, *KINDS, num_draws=32, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total in seen} == {len(seen)}


def test_a_base_model_measured_otherwise_is_refused(before):
    with refused(r"what differs is held_out/base, held_out/new\. Give both the same data"):
        probe_forgetting(NEW, *KINDS, before=before, num_draws=64)
