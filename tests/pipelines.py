"""One tiny pipeline of each family, with random weights, of diffusers' and transformers' own classes: tokenizers
included."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from ldmprobe.data.in_order import GivenRows
from ldmprobe.models.conditioning import OfRows
from ldmprobe.models.conditioning.small_clip import word_tokenizer
from ldmprobe.models.corruption import downsampled
from ldmprobe.models.diffusion_model import DiffusionModel
from ldmprobe.models.pixels import as_bytes
from tests.helpers import sd_scheduler, tiny_unet_with_attention

Network = TypeVar("Network", bound=nn.Module)
PROMPTS, IMAGE_SIZE = ["a red cat", "photo of blue dog"], 16
WORDS = "a photo of red blue cat dog small large green yellow purple circle square triangle star on the left right"


def autoencoder(cls: Any = diffusers.AutoencoderKL, channels: int = 2, levels: int = 2, **options: Any) -> Any:
    """Divides the sides of images by 2^(levels − 1)."""
    if cls is diffusers.AutoencoderTiny:
        sides = ("encoder_block_out_channels", "decoder_block_out_channels")
        blocks = dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1,) * levels)
        return cls(**dict.fromkeys(sides, (8,) * levels), **blocks, latent_channels=channels, **options)
    if cls is diffusers.AutoencoderDC:
        options.pop("out_channels", None)  # those of its input
        widths = {"block_out_channels": (8,), "layers_per_block": (1,), "qkv_multiscales": ((),)}
        sides = {f"{side}_{name}": value * levels for side in ("encoder", "decoder") for name, value in widths.items()}
        return cls(**sides, latent_channels=channels, attention_head_dim=8, **options)
    return cls(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        **options,
    )


def dit(num_classes: int = 1000, **options: Any) -> diffusers.DiTTransformer2DModel:
    settings = {"in_channels": 2, "out_channels": 4, "num_layers": 1, "sample_size": 8, "norm_num_groups": 2}
    return _stirred(diffusers.DiTTransformer2DModel(2, 8, num_embeds_ada_norm=num_classes, **{**settings, **options}))


def clip(cls: Any = transformers.CLIPTextModel, width: int = 16) -> tuple[Any, Any]:
    """A CLIP text model and its tokenizer, of 12 tokens."""
    tokenizer = word_tokenizer(WORDS, max_tokens=12)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return cls(config), tokenizer


def t5(cls: Any = transformers.T5EncoderModel, config: Any = transformers.T5Config, width: int = 16) -> tuple[Any, Any]:
    """A T5 encoder and its tokenizer."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS.split()])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=12
    )
    settings = config(vocab_size=len(vocabulary), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return cls(settings), tokenizer


def _texts(*encoders: tuple[Any, Any]) -> dict[str, Any]:
    """Text encoders and their tokenizers, by the names that they have in a pipeline."""
    numbered = zip(("", "_2", "_3"), encoders, strict=False)
    return {
        f"{kind}{n}": part
        for n, pair in numbered
        for kind, part in zip(("text_encoder", "tokenizer"), pair, strict=True)
    }


def conditional_unet(**options: Any) -> diffusers.UNet2DConditionModel:
    settings = {
        "sample_size": 8,
        "in_channels": 2,
        "out_channels": 2,
        "layers_per_block": 1,
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "mid_block_type": None,
        "up_block_types": ("CrossAttnUpBlock2D",),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DConditionModel(**{**settings, **options})


def _ldm() -> Any:
    return diffusers.LDMPipeline(
        autoencoder(diffusers.VQModel, num_vq_embeddings=16, scaling_factor=0.5),
        tiny_unet_with_attention(),
        sd_scheduler(),
    )


def _stable_diffusion(**scheduler: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        **_texts(clip()),
        vae=autoencoder(scaling_factor=0.5),
        unet=conditional_unet(),
        scheduler=sd_scheduler(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _beside_text(cls: Any, channels: int, scaling_factor: float = 0.5, **options: Any) -> Any:
    """Stable Diffusion whose network is told a picture beside latents of four channels, which are certain: the pipeline
    for inpainting draws those of its masked image."""
    texts = _texts(clip())
    vae = autoencoder(channels=4, scaling_factor=scaling_factor)
    nn.init.zeros_(vae.quant_conv.weight[4:].detach())
    nn.init.constant_(vae.quant_conv.bias[4:].detach(), -30.0)  # the log-variance
    embeds = options["max_noise_level"] + 1 if "max_noise_level" in options else None
    unet = conditional_unet(in_channels=4 + channels, out_channels=4, num_class_embeds=embeds)
    without = dict.fromkeys(("safety_checker", "feature_extractor"))
    return cls(**texts, vae=vae, unet=unet, scheduler=sd_scheduler(), **without, **options)


def _upscale() -> Any:
    table = diffusers.DDPMScheduler(beta_schedule="scaled_linear")
    return _beside_text(
        diffusers.StableDiffusionUpscalePipeline, 3, 0.08333, low_res_scheduler=table, max_noise_level=40
    )


def stable_diffusion_xl(channels: int = 2, **scaling: Any) -> Any:
    """Stable Diffusion XL with these settings of its autoencoder."""
    texts = _texts(clip(), clip(transformers.CLIPTextModelWithProjection))
    unet = conditional_unet(
        in_channels=channels,
        out_channels=channels,
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )
    return diffusers.StableDiffusionXLPipeline(
        **texts,
        vae=autoencoder(channels=channels, scaling_factor=0.5, **scaling),
        unet=unet,
        scheduler=sd_scheduler(),
        add_watermarker=False,
    )


_SIZES = {"sample_size": 8, "patch_size": 2, "in_channels": 2, "attention_head_dim": 8, "num_attention_heads": 2}


def pixart(**settings: Any) -> diffusers.PixArtTransformer2DModel:
    widths = dict.fromkeys(("cross_attention_dim", "caption_channels"), 16)
    sizes = {**_SIZES, **widths, "out_channels": 4, "num_layers": 1}
    return _stirred(diffusers.PixArtTransformer2DModel(**{**sizes, **settings}))


def wide_pixart(**settings: Any) -> diffusers.PixArtTransformer2DModel:
    """A network that has room for resolution and aspect ratio."""
    return pixart(attention_head_dim=12, cross_attention_dim=24, **settings)


def _pixart(cls: Any) -> Any:
    vae = autoencoder(scaling_factor=0.5)
    return cls(**_texts(t5()), vae=vae, transformer=pixart(), scheduler=sd_scheduler())


def _stable_diffusion_3() -> Any:
    texts = _texts(
        clip(transformers.CLIPTextModelWithProjection), clip(transformers.CLIPTextModelWithProjection), t5(width=32)
    )
    widths = {"joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 32}
    transformer = diffusers.SD3Transformer2DModel(**_SIZES, **widths, out_channels=2, num_layers=1)
    return diffusers.StableDiffusion3Pipeline(
        **texts,
        transformer=_stirred(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(scaling_factor=0.5, shift_factor=0.1),
    )


def _aura_flow() -> Any:
    texts = _texts(t5(transformers.UMT5EncoderModel, transformers.UMT5Config))
    widths = dict.fromkeys(("joint_attention_dim", "caption_projection_dim", "pos_embed_max_size"), 16)
    layers = dict.fromkeys(("num_mmdit_layers", "num_single_dit_layers"), 1)
    transformer = diffusers.AuraFlowTransformer2DModel(**_SIZES, **widths, **layers, out_channels=2)
    return diffusers.AuraFlowPipeline(
        **texts,
        vae=autoencoder(scaling_factor=0.5),
        transformer=_stirred(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def _stirred(network: Network) -> Network:
    """Transformers start with zeros, and would predict nothing."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


TINY: dict[str, Callable[[], Any]] = {
    "DDPMPipeline": lambda: diffusers.DDPMPipeline(tiny_unet_with_attention(channels=3), diffusers.DDPMScheduler()),
    "DDIMPipeline": lambda: diffusers.DDIMPipeline(tiny_unet_with_attention(channels=3), diffusers.DDIMScheduler()),
    "LDMPipeline": _ldm,
    "DiTPipeline": lambda: diffusers.DiTPipeline(dit(), autoencoder(scaling_factor=0.5), sd_scheduler()),
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionPipeline, v": lambda: _stable_diffusion(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", set_alpha_to_one=True
    ),
    "StableDiffusionInpaintPipeline": lambda: _beside_text(
        diffusers.StableDiffusionInpaintPipeline, 1 + 4, requires_safety_checker=False
    ),
    "StableDiffusionUpscalePipeline": _upscale,
    "StableDiffusionInstructPix2PixPipeline": lambda: _beside_text(
        diffusers.StableDiffusionInstructPix2PixPipeline, 4, requires_safety_checker=False
    ),
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "PixArtAlphaPipeline": lambda: _pixart(diffusers.PixArtAlphaPipeline),
    "PixArtSigmaPipeline": lambda: _pixart(diffusers.PixArtSigmaPipeline),
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "AuraFlowPipeline": _aura_flow,
}
"""By pipeline class; Stable Diffusion also as its second version, with v-prediction and zero terminal SNR."""


def tiny(family: str) -> Any:
    """The same at every call."""
    torch.manual_seed(0)
    return TINY[family]()


_FOLDER = TemporaryDirectory()


@cache
def saved(family: str) -> Path:
    """The folder of that pipeline, saved once for all tests of a process, which leave it as it is."""
    folder = Path(_FOLDER.name) / family
    tiny(family).save_pretrained(folder)
    return folder


# --- pictures beside latents ------------------------------------------------------------------------------------------


def pictures() -> dict[str, Tensor]:
    """Two images of 8 bits with holes, one along cells of latents and one that cuts them."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (2, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator)
    holes = torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    holes[0, 4:10, 2:8], holes[1, 3:12, 5:] = 255, 255
    return {"image": images / 127.5 - 1, "hole": holes, "source": images / 127.5 - 1}


def as_files(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in as_bytes(images)]


BESIDE = {
    "StableDiffusionInpaintPipeline": lambda: {
        "image": as_files(pictures()["image"]),
        "mask_image": [Image.fromarray(hole.numpy()) for hole in pictures()["hole"]],
        "height": IMAGE_SIZE,
        "width": IMAGE_SIZE,
    },
    "StableDiffusionUpscalePipeline": lambda: {"image": as_files(downsampled(pictures()["image"], 2, "bicubic"))},
    "StableDiffusionInstructPix2PixPipeline": lambda: {"image": as_files(pictures()["source"])},
}
"""By class, for those whose network is told a picture beside latents, the arguments of a call that say which."""
ALONE = [name for name in TINY if name not in BESIDE]


def tell_pictures(model: DiffusionModel) -> None:
    """Tell samples the pictures of `BESIDE`."""
    rows = GivenRows([{**pictures(), "caption": PROMPTS, "index": torch.arange(2)}], None)
    model.conditioning.prepare(model.network, rows, model.codec)
    model.conditioning = OfRows(model.conditioning, rows.batches)
