"""Interactive charts (plotly) of the report page, each a function of records."""

from ldmprobe.tracking.charts.balance import progress_chart, steering_chart
from ldmprobe.tracking.charts.denoising import (
    gain_chart,
    history_chart,
    loss_chart,
    nats_chart,
    offset_chart,
    residual_chart,
    skill_chart,
)
from ldmprobe.tracking.charts.forgetting import before_and_after_chart, forgetting_chart, forgetting_history_chart
from ldmprobe.tracking.charts.heatmap import heatmap_chart
from ldmprobe.tracking.charts.layout import CURVES
from ldmprobe.tracking.charts.objective import objective_chart
from ldmprobe.tracking.charts.quality import fid_chart, kid_chart
from ldmprobe.tracking.charts.sampling import excess_chart, gap_chart, kl_chart, ratio_chart, variance_chart
from ldmprobe.tracking.charts.scatter import FRAMES, POINTS, pca_chart

__all__ = [
    "CURVES",
    "FRAMES",
    "POINTS",
    "before_and_after_chart",
    "excess_chart",
    "fid_chart",
    "forgetting_chart",
    "forgetting_history_chart",
    "gain_chart",
    "gap_chart",
    "heatmap_chart",
    "history_chart",
    "kid_chart",
    "kl_chart",
    "loss_chart",
    "nats_chart",
    "objective_chart",
    "offset_chart",
    "pca_chart",
    "progress_chart",
    "ratio_chart",
    "residual_chart",
    "skill_chart",
    "steering_chart",
    "variance_chart",
]
