"""Recipe: whether a run's own records recommend ``configs/recipe.yaml``, a learning rate that rises and falls to 0.

Of networks that were trained from nothing on two data sets, those whose rate did so, to a tuned peak, ended with a
lower held-out bound and better samples than those of a constant rate, in as many steps (docs/TRAINING.md). Of
finetuning nothing was measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from ldmprobe.io.record import ProbeRecord
from ldmprobe.probing.denoising_record import PROBE, is_untrained

_FEWEST = 3  # probes of a rate that is called constant, the first of them before training


def recipe_advice(records: Sequence[ProbeRecord]) -> str:
    """Return a sentence that recommends the recipe; "" where the records do not speak for it: the rate changes, it is
    not known, or training did not begin with an untrained network.

    Args:
        records: of one run, in order of training step; those of other probes than the denoising probe are passed over.
    """
    probed = [record for record in records if record.probe == PROBE]
    rates = {record.provenance.get("learning_rate") for record in probed}
    if len(probed) < _FEWEST or len(rates) != 1 or None in rates or not is_untrained(probed[0]):
        return ""
    return (
        f"The learning rate has been {rates.pop():g} throughout. One that rises to a tuned peak and then falls to 0 "
        "ended with a lower bound and better samples on both data sets that it was tried on: `ldmprobe init recipe`."
    )
