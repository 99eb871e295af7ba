"""What of a record is a scalar for loggers, and under which name."""

import numpy as np

from ldmprobe import Curve, Metric, ProbeRecord, scalar_metrics


def test_gaps_are_left_out_and_levels_are_named_by_timestep_or_else_by_log_snr():
    metric = Metric("gap", "Gap", ideal=0.0, pool="mean", shown="headline")
    curve = Curve(np.array([900, 800, -1]), np.array([-4.0, -3.5, 6.25]), np.array([np.nan, 1.0, 2.0]))
    record = ProbeRecord("ddim", 3, curves={"gap": curve}, metrics=(metric,))
    bands = {"probe_ddim/gap/logsnr+06": 2.0}
    assert scalar_metrics(record) == bands
    levels = {"probe_ddim/gap/t0800": 1.0, "probe_ddim/gap/logsnr+06.2": 2.0}
    assert scalar_metrics(record, "levels") == bands | levels


def test_levels_of_one_timestep_have_names_of_their_own():
    """Of a log-SNR grid, whose levels lie between the timesteps, and of a sampler that comes back to a level."""
    metric = Metric("gap", "Gap", shown="headline")
    log_snr = np.array([-4.0, 7.04, 7.06, 7.06])
    record = ProbeRecord(
        "ddim", 3, curves={"gap": Curve(np.array([900, 0, 0, 0]), log_snr, np.arange(4.0))}, metrics=(metric,)
    )
    assert scalar_metrics(record, "levels") == {
        "probe_ddim/gap/000-logsnr-04.0": 0.0,
        "probe_ddim/gap/001-logsnr+07.0": 1.0,
        "probe_ddim/gap/002-logsnr+07.1": 2.0,
        "probe_ddim/gap/003-logsnr+07.1": 3.0,
    }


def test_what_loggers_need_not_have_stays_in_the_record(records):
    objective, ddim = records["objective"][0], records["ddim"][-1]
    names = set(scalar_metrics(objective))
    assert names == {"probe_objective/timestep_mean_log_snr", "probe_objective/emphasis_mean_log_snr"}
    assert {"step_kl_ideal", "step_kl_ratio/band0"} <= set(ddim.curves)
    names = scalar_metrics(ddim, "levels")
    assert any(name.startswith("probe_ddim/step_kl/t") for name in names)
    assert not any("ideal" in name or "step_kl_ratio/band" in name for name in names)
