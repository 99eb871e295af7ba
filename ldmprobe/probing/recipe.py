"""Recipe: whether a run's own records recommend ``configs/recipe.yaml``: SOAP, draws at the noise levels that matter
and a learning rate that rises and falls to 0.

Of networks that were trained from nothing on two data sets, those trained so had the held-out bound and the FID of a
constant rate in half the steps and less (docs/TRAINING.md). Of finetuning nothing was measured.
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
        f"The learning rate has been {rates.pop():g} throughout. SOAP, other draws and a rate that rises and then "
        "falls to 0 had the bound and the samples of such runs in half their steps on the data sets that they were "
        "tried on: `ldmprobe init recipe`."
    )
