"""``ldmprobe probe`` and ``compare`` of anybody's autoencoders."""

import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from ldmprobe import RecordStore
from ldmprobe.cli import main
from ldmprobe.commands import probe
from tests.helpers import refused
from tests.pipelines import autoencoder

DATA = ["--data", "builtin:digits", "--image-size", "16", "--num-reference", "40"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A KL and a VQ autoencoder as diffusers saves them."""
    folder = tmp_path_factory.mktemp("autoencoders")
    torch.manual_seed(0)
    for name, network in (
        ("kl", autoencoder(AutoencoderKL, in_channels=1, out_channels=1)),
        ("vq", autoencoder(VQModel, in_channels=1, out_channels=1, num_vq_embeddings=8, levels=3)),
    ):
        network.save_pretrained(folder / name)
    return folder


def test_autoencoders_are_probed_and_lie_beside_each_other(folders, tmp_path, capsys):
    for name in ("kl", "vq"):
        assert main(["probe", str(folders / name), *DATA, "--out", str(tmp_path / name)]) == 0
        assert "held-out images of 16×16 come back from" in capsys.readouterr().out
        assert (tmp_path / name / "report.html").is_file()
    (kl,), (vq,) = (RecordStore(tmp_path / name).read() for name in ("kl", "vq"))
    assert (kl.provenance["factor"], vq.provenance["factor"]) == (2, 4)
    assert {"rfid", "kl_nats"} <= kl.scalars.keys()
    assert main(["compare", str(tmp_path / "kl"), str(tmp_path / "vq"), "--out", str(tmp_path / "both")]) == 0
    page = (tmp_path / "both" / "comparison.html").read_text()
    for words in ("<b>vq</b>: held-out images", "Codes used", "Radial spectrum of latents", "<h2>Reconstructions</h2>"):
        assert words in page
    assert "started from the same noise" not in page
    assert "denoising" not in page.rpartition("</style>")[2].partition("<main>")[0].rpartition("</script>")[2]
    assert "could not be drawn" not in page.lower()


def test_what_an_autoencoder_cannot_be_asked_is_said_before_it_is_loaded(folders, tmp_path):
    command = ["probe", str(folders / "kl"), f"--out={tmp_path / 'out'}"]
    with refused("is an autoencoder, which is probed with images; give --data"):
        probe.run(command)
    for steps in (["--num-steps", "5"], ["--num-steps=5"]):
        with refused("which is not sampled; leave out --num-steps"):
            probe.run([*command, *DATA, *steps])
    with refused(r"Images of 15×15 cannot be divided .* set --image-size to a multiple of 2"):
        probe.run([*command, "--data", "builtin:digits", "--image-size", "15"])
    assert not (tmp_path / "out").exists()
