"""The reconstruction probe: what an autoencoder keeps of held-out images, and what its latents are like."""

from ldmprobe.probing.reconstruction.measure import Measure, Reconstructed
from ldmprobe.probing.reconstruction.originals import Originals
from ldmprobe.probing.reconstruction.probe import METRICS, PROBE, probe_reconstruction

__all__ = ["METRICS", "PROBE", "Measure", "Originals", "Reconstructed", "probe_reconstruction"]
