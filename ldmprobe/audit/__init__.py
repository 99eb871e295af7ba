"""``ldmprobe audit``: the proof that probes leave training as it is."""
