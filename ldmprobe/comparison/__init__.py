"""``ldmprobe compare``: runs laid side by side."""
