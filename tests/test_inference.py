"""``ldmprobe probe`` and ``ldmprobe sample`` on diffusers pipeline folders of every supported family."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler
from PIL import Image

import ldmprobe.diffusion.measured_grid  # noqa: F401 (a grid is known by name where it is imported)
from ldmprobe import ClassifierFreeGuidance, RecordStore, Sampling, load_model, sample_images
from ldmprobe.cli import main
from ldmprobe.commands.options import GRIDS, SAMPLERS, Parser, add_model, add_sampling, add_weights, load
from ldmprobe.diffusion.grids import Grid
from ldmprobe.diffusion.named import by_name
from ldmprobe.diffusion.samplers import Sampler
from ldmprobe.inference import image_grid, real_latents
from ldmprobe.pretrained.load import load_pipeline
from ldmprobe.tracking.pictures import curves_figure, scatter_figure
from tests.helpers import WHOLE_PATH, refuses, tiny_unet
from tests.pipelines import autoencoder, clip, saved

TINY = ["--num-samples", "8", "--num-steps", "3", "--device", "cpu"]
FEW = ["--num-draws", "32"]


def _pictures(path: Path, mode: str = "RGB", n: int = 24, size: int = 16) -> str:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).convert(mode) for _ in range(n)]
    features = Features({"image": ImageFeature(), "label": Value("int64"), "caption": Value("string")})
    columns = {
        "image": images,
        "label": [i % 5 for i in range(n)],
        "caption": [["a red cat", "a dog"][i % 2] for i in range(n)],
    }
    Dataset.from_dict(columns, features=features).to_parquet(path)
    return str(path)


def test_probe_writes_a_record_two_figures_and_a_report(tmp_path, capsys):
    assert main(["probe", str(saved("LDMPipeline")), "--out", str(tmp_path / "out"), *TINY]) == 0
    (record,) = RecordStore(tmp_path / "out").read()
    assert (record.probe, record.provenance["num_samples"], record.provenance["num_steps"]) == ("ddim", 8, 3)
    assert len(record.curves["step_kl"].value) == 3
    for name in ("pca.png", "step_kl.png"):
        assert Image.open(tmp_path / "out" / name).size[0] > 100
    page = (tmp_path / "out" / "report.html").read_text()
    assert "</html>" in page
    assert "shifts the marginals" not in page
    assert f"report: {tmp_path / 'out' / 'report.html'}" in capsys.readouterr().out


def test_the_command_line_knows_all_samplers_and_grids_by_their_names():
    for base, names in ((Sampler, SAMPLERS), (Grid, GRIDS)):
        own = {name for name, make in by_name(base).items() if make.func.__module__.startswith("ldmprobe.")}
        assert set(names) == own


def test_a_probe_by_another_sampler_and_grid_says_so(tmp_path):
    out = tmp_path / "probed"
    options = ["--sampler", "dpmpp-2m", "--grid", "log-snr", "--num-steps", "5", "--num-samples", "8"]
    assert main(["probe", str(saved("DDPMPipeline")), "--out", str(out), *options]) == 0
    (record,) = RecordStore(out).read("dpmpp_2m")
    assert {"sampler": "dpmpp-2m", "grid": "log-snr", "num_steps": 5}.items() <= record.provenance.items()


def test_samplers_and_grids_have_their_settings():
    settings = ["--sampler-settings", "order=1", "lower_order_final=false", "--grid-settings", "rho=5"]
    parser = Parser("sample", "", "", "")
    add_model(parser)
    add_weights(parser)
    add_sampling(parser, num_samples=8)
    options = ["--sampler", "dpmpp-2m-sde", "--grid", "karras", "--num-steps", "5", "--device", "cpu"]
    args = parser.parse_args([str(saved("DDPMPipeline")), *options, *settings])
    args.data = None
    _, sampling = load(args)
    assert sampling.sampler.settings == {"order": 1, "sde": True, "lower_order_final": False}
    assert sampling.grid.settings == {"rho": 5.0}


def test_sample_makes_the_folder_of_its_grid_which_has_columns(tmp_path, capsys):
    out = tmp_path / "new" / "grid.png"
    command = ["sample", str(saved("LDMPipeline")), "--out", str(out), *TINY, "--columns"]
    _refused([*command, "0"], capsys, "--columns: got 0, expected at least 1")
    assert main([*command, "4"]) == 0
    assert Image.open(out).mode == "RGB"


def test_a_guided_probe_of_prompts_says_so_and_is_not_compared_with_others(capsys):
    command = ["probe", str(saved("StableDiffusionPipeline")), *TINY, "--guidance-scale", "3"]
    for out, prompts in (
        ("one", ["a red cat", "blue <dog>"]),
        ("same", ["a red cat", "blue <dog>"]),
        ("other", ["a cat"]),
    ):
        assert main([*command, "--out", out, "--prompt", *prompts]) == 0
    record = RecordStore(Path("one")).read()[0]
    assert record.provenance["prompts"] == ["a red cat", "blue <dog>"]
    assert record.provenance["guidance_scale"] == 3.0
    page = Path("one/report.html").read_text()
    assert "Guidance scale 3.0 shifts the marginals by design" in page
    assert "Prompts, in turn: “a red cat”, “blue &lt;dog&gt;”." in page
    for figure in (curves_figure([record], ["step_kl"]), scatter_figure(record, "pca")):
        assert "\nguidance scale 3.0 shifts the marginals by design" in figure.get_suptitle()
    capsys.readouterr()
    assert main(["compare", "one", "same", "--out", "alike"]) == 0
    differing = "samples (num_samples, guidance, prompts, seed, latent shape)"
    refuses(capsys, ["compare", "one", "other", "--out", "unlike"], differing)


@torch.no_grad()
def test_samples_are_those_of_diffusers_from_the_same_noise():
    from ldmprobe.diffusion.noise import sample_noise

    images = sample_images(load_model(str(saved("DDIMPipeline")), "cpu"), Sampling(2, 4, batch_size=1))
    pipeline = DDIMPipeline.from_pretrained(saved("DDIMPipeline"))
    pipeline.scheduler.set_timesteps(4)
    z = sample_noise([0, 1], (3, 8, 8), 0)
    for t in pipeline.scheduler.timesteps:
        z = pipeline.scheduler.step(pipeline.unet(z, t).sample, t, z, eta=0.0).prev_sample
    torch.testing.assert_close(images, z, **WHOLE_PATH)


def test_the_prompt_reaches_a_text_model():
    name = str(saved("StableDiffusionPipeline"))
    plain, prompted = load_pipeline(name), load_pipeline(name, ["a red cat"])
    ids = torch.arange(2)
    text, null = prompted.conditioning.for_samples(ids), prompted.conditioning.null(2, torch.device("cpu"))
    assert text["encoder_hidden_states"].shape == (2, 12, 16)
    assert not torch.allclose(text["encoder_hidden_states"], null["encoder_hidden_states"])
    torch.testing.assert_close(plain.conditioning.for_samples(ids), plain.conditioning.null(2, torch.device("cpu")))


def test_samples_depend_on_seed_and_guidance_and_not_on_the_batch_size():
    model = load_model(str(saved("DiTPipeline")), "cpu")
    assert model.conditioning.num_classes == 1000
    images = sample_images(model, Sampling(7, 2))
    torch.testing.assert_close(sample_images(model, Sampling(7, 2, batch_size=3)), images, **WHOLE_PATH)
    guided = sample_images(model, Sampling(7, 2, guidance=ClassifierFreeGuidance(4.0)))
    assert not torch.allclose(guided, images, atol=1e-4)
    assert not torch.allclose(sample_images(model, Sampling(7, 2, seed=1)), images, atol=1e-2)


@pytest.mark.parametrize("family", ["DDPMPipeline", "DiTPipeline", "StableDiffusionPipeline"])
def test_with_data_a_probe_also_compares_with_real_latents(family, tmp_path):
    data = ["--data", _pictures(tmp_path / "pictures.parquet")]
    size = ["--image-size", "8"] if family == "DDPMPipeline" else []
    label = ["--label-column", "label"] if family == "DiTPipeline" else []
    label += ["--caption-column", "caption"] if family == "StableDiffusionPipeline" else []
    assert main(["probe", str(saved(family)), "--out", "out", *TINY, *FEW, *data, *size, *label]) == 0
    records = {record.probe: record for record in RecordStore("out").read()}
    assert set(records) == {"ddim", "denoising"}
    assert records["ddim"].provenance["reference_latents"] == 22  # 24, of which a tenth is held out
    assert "step_kl_ideal" in records["ddim"].curves
    assert Path("out/reference.safetensors").is_file()


def test_a_gray_pixel_model_is_probed_with_built_in_digits(tmp_path):
    DDPMPipeline(tiny_unet(channels=1), DDPMScheduler()).save_pretrained(tmp_path / "gray")
    command = ["probe", "gray", "--out", "out", *TINY, *FEW, "--data", "builtin:digits", "--num-reference", "50"]
    assert main(command) == 0
    assert main(["sample", "gray", "--out", "gray.png", *TINY]) == 0
    assert Image.open("gray.png").mode == "L"


def test_a_grid_fills_rows_from_the_left():
    images = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, 0.0, 1.0)])
    expected = np.full((6, 6), 255, dtype=np.uint8)
    expected[:2, :2], expected[:2, 4:], expected[4:, :2] = 0, 128, 255
    np.testing.assert_array_equal(image_grid(images, columns=2), expected)


def test_without_captions_all_real_images_have_the_prompt(tmp_path):
    pictures, name = _pictures(tmp_path / "pictures.parquet"), str(saved("StableDiffusionPipeline"))
    model = load_model(name, "cpu", prompts=["no caption of theirs"])
    held_out = real_latents(model, pictures).held_out
    expected = model.conditioning.for_samples(torch.arange(len(held_out.latents)))["encoder_hidden_states"]
    torch.testing.assert_close(held_out.condition["encoder_hidden_states"], expected)
    captioned = real_latents(model, pictures, caption_column="caption").held_out
    assert not torch.allclose(captioned.condition["encoder_hidden_states"], expected)


# --- what is refused --------------------------------------------------------------------------------------------------


def _refused(command: list, capsys, text: str) -> None:
    files = sorted(Path().rglob("*"))
    refuses(capsys, command, text)
    assert [path for path in sorted(Path().rglob("*")) if path.is_file() and path not in files] == []


@pytest.mark.parametrize(
    ("pipeline", "size", "options", "told"),
    [
        ("LDMPipeline", 24, "", "have shape (3, 24, 24), the model's (3, 16, 16); set --image-size 16."),
        ("DiTPipeline", 16, "", "ClassConditioning reads 'label', which the data lacks; set --label-column."),
        ("StableDiffusionPipeline", 16, "--prompt a b", "there are 2 prompts; set --caption-column, or give one --prompt"),
        ("StableDiffusionPipeline", 16, "--prompt a b --caption-column text", "There is no column 'text'"),
    ],
)  # fmt: skip
def test_data_that_do_not_fit_the_model_are_refused(capsys, tmp_path, pipeline, size, options, told):
    data = ["--data", _pictures(tmp_path / "pictures.parquet", size=size), *options.split()]
    _refused(["probe", saved(pipeline), "--out", "out", *TINY, *data], capsys, told)


def test_guidance_without_a_prompt_is_refused(capsys):
    for command in (["probe", "--out", "out"], ["sample"]):
        command[1:1] = [saved("StableDiffusionPipeline"), *TINY, "--guidance-scale", "4"]
        _refused(command, capsys, "guidance scale is 4, but there is no prompt to guide by")


def test_what_a_model_has_no_use_for_is_refused(capsys):
    for option, text in (
        (["--prompt", "a cat"], "takes no text, so that --prompt is of no use to it"),
        (["--guidance-scale", "3"], "guidance scale is 3, but"),
        (["--guidance-scale", "nan"], "guidance scale is nan; expected a finite number"),
        (["--variant", "fp16"], "has no weights of a variant 'fp16'; leave"),
    ):
        _refused(["probe", saved("DDPMPipeline"), "--out", "out", *TINY, *option], capsys, text)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (["--num-samples", "0"], "--num-samples: got 0, expected 1 to 10,000,000"),
        (["--num-steps", "0"], "num_steps is 0; expected 1 to 1000"),
        (["--num-steps", "1001"], "num_steps is 1001; expected 1 to 1000"),
        (["--batch-size", "0"], "--batch-size: got 0, expected at least 1"),
        (["--sampler", "lcm"], "lcm is for networks that were distilled for consistency"),
        (["--sampler-settings", "eta"], "got 'eta', expected NAME=VALUE, such as eta=1"),
        (["--sampler-settings", "etta=1"], "names 'etta', which is no setting of DDIM; it has eta. Did you mean eta?"),
        (["--sampler", "euler", "--sampler-settings", "eta=1"], "no setting of Euler; it has none"),
        (["--sampler-settings", "eta=much"], "--sampler-settings of DDIM: "),
        (["--grid", "shift", "--grid-settings", "shift=-1"], "shift"),
        (["--sampler", "magic"], "--sampler: invalid choice: 'magic' (choose from 'ddim', 'ddpm'"),
        (["--grid", "edm"], "reaches from log-SNR"),
        (["--grid", "karras", "--timestep-spacing", "leading"], "--timestep-spacing is leading and --grid karras"),
        (["--device", "abacus"], "abacus"),
    ],
)
@pytest.mark.parametrize("command", ["probe", "sample"])
def test_numbers_and_names_out_of_range_are_refused(command, option, text, capsys):
    out = "out" if command == "probe" else "out.png"
    _refused([command, saved("DDPMPipeline"), "--out", out, *TINY, *option], capsys, text)


def test_sample_overwrites_nothing_and_says_where_it_cannot_write(capsys):
    Path("kept.png").write_bytes(b"mine")
    Path("link.png").symlink_to("nowhere/grid.png")
    for out, told in (
        ("kept.png", "kept.png exists already"),
        ("kept.jpg", "expected a file name that ends in .png"),
        ("kept.png/grid.png", "kept.png"),
        ("link.png", "link.png cannot be written"),
    ):
        _refused(["sample", saved("DDPMPipeline"), "--out", out, *TINY], capsys, told)
    assert Path("kept.png").read_bytes() == b"mine"


def test_a_refused_probe_can_be_put_right_and_run_again_and_overwrites_no_run(capsys):
    command = ["probe", str(saved("DDPMPipeline")), "--out", "out", *TINY]
    _refused([*command, "--num-steps", "0"], capsys, "num_steps is 0")
    assert main(command) == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    _refused(command, capsys, "out already holds a run (probes/ddim-00000000.parquet). Choose a new `--out`, or")
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


def test_predictions_that_are_not_finite_are_refused(tmp_path, capsys):
    pipeline = DDPMPipeline.from_pretrained(saved("DDPMPipeline"))
    torch.nn.init.constant_(pipeline.unet.conv_out.weight, 3e38)  # finite, unlike what it makes
    pipeline.save_pretrained(tmp_path / "broken")
    data = ["--data", _pictures(tmp_path / "pictures.parquet"), "--image-size", "8"]
    for command in (["sample"], ["probe", "--out", "out"], ["probe", "--out", "out", *data]):
        command[1:1] = [tmp_path / "broken", *TINY]
        _refused(command, capsys, "The model's predictions are not finite at t=666: NaN or Inf in its weights")


def test_parts_that_do_not_belong_together_are_refused_before_anything_else(tmp_path, capsys):
    for name, part, text in (
        ("text_encoder", clip(width=32)[0], "embeddings are 32 wide and UNet2DConditionModel has cross_attention_dim"),
        (
            "vae",
            autoencoder(channels=4),
            "takes latents of 2 channels, those of the vae have 4; they do not belong together",
        ),
    ):
        folder = shutil.copytree(saved("StableDiffusionPipeline"), tmp_path / name)
        part.save_pretrained(folder / name)
        for command in (["sample"], ["probe", "--out", "out"]):
            _refused([command[0], folder, *command[1:], *TINY], capsys, text)
