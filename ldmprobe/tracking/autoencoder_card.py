"""The model card of an exported autoencoder: what it is, how its latents are scaled, and how to use it."""

from __future__ import annotations

from pathlib import Path

from ldmprobe import __version__
from ldmprobe.models.autoencoder import factor_of
from ldmprobe.models.autoencoder_model import AutoencoderModel
from ldmprobe.models.latent_scale import SCALING
from ldmprobe.tracking.model_card import averaged_in_words, size_of, table


def write_autoencoder_card(folder: Path, name: str, model: AutoencoderModel, measured: int | None) -> None:
    """Write ``README.md`` into the folder of an autoencoder.

    Args:
        name: what it is called.
        model: with the scale of its latents in its configuration.
        measured: on how many training images; None if it is that of the encoder, which was not trained.
    """
    kind = type(model.network).__name__
    article = "An" if kind.startswith("A") else "A"
    averaged = averaged_in_words(model.weights)
    scale = ", ".join(f"{key} {model.network.config[key]}" for key in SCALING if model.network.config.get(key))
    origin = "its encoder's own" if measured is None else f"measured on {measured:,} training images, without a draw"
    images, latents = (" × ".join(map(str, shape)) or "any" for shape in (model.image_shape, model.latent_shape))
    facts = [
        ("Network", size_of(model.network)),
        ("Training steps", f"{model.trained_steps:,}{averaged}"),
        ("Images", images),
        ("Latents", f"{latents}, sides divided by {factor_of(model.network)}"),
        ("Scale of latents", f"{scale}; {origin}"),
    ]
    text = f"""---
library_name: diffusers
tags:
- diffusers:{kind}
- autoencoder
- ldmprobe
---

# {name}

{article} {kind} of diffusers, the first stage of a latent diffusion model, trained and exported with ldmprobe
{__version__}.

{table(facts)}
```python
from diffusers import {kind}

autoencoder = {kind}.from_pretrained("{name}")
```

ldmprobe trains a diffusion model on its latents with `codec: {{class_path: ldmprobe.LatentCodec, init_args:
{{autoencoder: {name}}}}}`.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
