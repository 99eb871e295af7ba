"""Real latents that the probes of a run share."""

import pytest

from ldmprobe import RecordStore
from ldmprobe.callbacks import DDIMProbe, DenoisingProbe
from tests.training.test_latent_diffusion import digits, module, trainer


@pytest.mark.parametrize("first", [0, 1])
def test_the_reference_is_of_as_many_images_as_the_probe_that_wants_most(tmp_path, first):
    """Whichever probe comes first."""
    few = DDIMProbe(2, num_samples=16, num_steps=4, num_reference=64)
    many = DenoisingProbe(2, num_images=16, num_draws=32, num_reference=256)
    trainer(tmp_path, max_steps=1, callbacks=[few, many] if first == 0 else [many, few]).fit(module(), digits())
    (ddim, *_), (denoising, *_) = (RecordStore(tmp_path).read(name) for name in ("ddim", "denoising"))
    assert ddim.provenance["reference_latents"] == 256
    assert ddim.fingerprints["reference"] == denoising.fingerprints["reference"]
