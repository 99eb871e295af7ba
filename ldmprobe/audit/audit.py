"""The audit of a configuration: trained without and with its probes, compared after every batch, and judged.

The first optimizer steps are run without probes and with them, in fresh processes, and the whole state of training
(``ledger.py``) is compared after every batch. Around every hook of every probe the state is compared too, which names
the culprit, and holds where training itself is not repeatable.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from ldmprobe.audit.comparison import compare, table, unsteady_metrics, verdict
from ldmprobe.audit.configuration import read_configuration
from ldmprobe.audit.run import every_n_steps, in_fresh_process


def audit(fit_arguments: list[str], steps: int) -> int:
    """Print a table and a verdict; return 0 (undisturbed) or 1.

    Raises:
        ConfigurationError: the configuration names no probe, or cannot be run.
    """
    config = read_configuration(fit_arguments)
    print(
        f"The first {steps} optimizer steps on one device, without and with probes (every {every_n_steps(steps)} "
        "steps), in a temporary folder:"
    )
    with tempfile.TemporaryDirectory(prefix="ldmprobe-audit-") as folder:
        run = functools.partial(in_fresh_process, config, steps)
        plain = run(Path(folder) / "plain", False, "without probes")
        probed = run(Path(folder) / "probed", True, "with probes")
        compared, control = compare(plain, probed), None
        if compared.first is not None:
            again = run(Path(folder) / "again", False, "without probes, once more")
            unsteady = unsteady_metrics(plain, again)
            if unsteady:
                print(f"Left out, as they differ between two runs without probes: {', '.join(sorted(unsteady))}.")
            control, compared = (compare(plain, other, leave_out=unsteady) for other in (again, probed))
    print("\n" + table(compared) + "\n")
    undisturbed, sentences = verdict(probed, compared, control)
    print(sentences)
    return 0 if undisturbed else 1
