"""The Denoiser protocol: (z_t, t, condition) → prediction. Everything that is trained or probed sits behind it."""

from __future__ import annotations

import copy
import inspect
from typing import Protocol

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.library import class_named
from ldmprobe.models.wrapper import Condition, config_of, is_of_diffusers, wrapped, wrapper_of
from ldmprobe.types import Component, PlainValues

CONCAT = "concat"

# diffusers' networks take what they are told of a sample as keyword arguments, these of it bundled in one dictionary:
_BUNDLED = {
    "UNet2DConditionModel": ("text_embeds", "time_ids"),  # Stable Diffusion XL
    "PixArtTransformer2DModel": ("resolution", "aspect_ratio"),
}
_PREDICTS_VARIANCE = ("DiTTransformer2DModel", "PixArtTransformer2DModel")  # appended to the prediction
_TIME_TO_ONE = ("AuraFlowTransformer2DModel",)  # is told t/1000
# What they call the width of text embeddings:
_TEXT_WIDTHS = ("caption_channels", "joint_attention_dim", "cross_attention_dim")


class Denoiser(Protocol):
    """The protocol of a network that can be trained and probed: it answers z_t (N, C, H, W) at timesteps t (N,) with a
    prediction of the same shape. A ``torch.nn.Module`` whose ``forward`` has this signature will do.
    """

    def __call__(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor: ...


def as_denoiser(network: nn.Module, scores: bool = False) -> Denoiser:
    """Return ``network`` as a Denoiser that takes ``"concat"`` and latents of any precision: diffusers' U-Nets and
    transformers are adapted, anything else must follow the protocol itself.

    Args:
        scores: whether it is asked for a score, told σ.

    Raises:
        ConfigurationError: it is told its guidance scale, as one distilled for few steps is; or it answers a score and
            is asked for something else.
    """
    if (wrapper := wrapper_of(network)) is not None:
        return wrapper
    own: Denoiser = _adapted(network, scores) if is_of_diffusers(network) else _as_it_is(network)

    def denoise(z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        first = next(network.parameters(), None)
        dtype = z_t.dtype if first is None else first.dtype
        z_t, others = z_t.to(dtype), {name: _in(dtype, value) for name, value in condition.items() if name != CONCAT}
        if CONCAT in condition:
            z_t = torch.cat([z_t, condition[CONCAT].to(z_t)], dim=1)
        return own(z_t, t, others)

    if not any(name in _PREDICTS_VARIANCE for name in _class_names(network)):
        return denoise
    return lambda z_t, t, condition: denoise(z_t, t, condition)[:, : z_t.shape[1]]


def _as_it_is(network: nn.Module) -> Denoiser:
    """Return a network of one's own, which may do without the third argument if there is no condition."""
    parameters = inspect.signature(network.forward).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) or len(parameters) != 2:
        return network

    def denoise(z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        if condition:
            raise ConfigurationError(
                f"{type(network).__name__}.forward takes {' and '.join(p.name for p in parameters)} and is to be told "
                f"{', '.join(condition)}, too; give it a third argument, `condition`, a dictionary."
            )
        return network(z_t, t)

    return denoise


def _in(dtype: torch.dtype, value: Tensor) -> Tensor:
    """Floating point numbers in this dtype; labels and masks stay."""
    return value.to(dtype) if value.is_floating_point() else value


def _class_names(network: nn.Module) -> list[str]:
    """Return its classes: FSDP puts one of its own before diffusers', and ``torch.compile`` wraps the network."""
    inner = dict(network.named_children()).get("_orig_mod", network)
    return [cls.__name__ for cls in type(inner).__mro__]


def _adapted(network: Component, scores: bool) -> Denoiser:
    config, classes = network.config, _class_names(network)
    if config.get("time_embedding_type") == "fourier" and not scores:
        raise ConfigurationError(
            f"{type(network).__name__} has time_embedding_type 'fourier': it is told σ and divides its answer by it, "
            "which makes it a score. Write `network: {class_path: ScoreNetwork, init_args: {network: …}}` with a "
            "VESDE, or time_embedding_type 'positional'."
        )
    if config.get("time_cond_proj_dim") is not None:
        raise ConfigurationError(
            f"{type(network).__name__} has time_cond_proj_dim {config['time_cond_proj_dim']}: it was distilled to be "
            "told its guidance scale, and is no denoiser of one noise level. Give the network that it was distilled "
            "from."
        )

    bundled = next((_BUNDLED[name] for name in classes if name in _BUNDLED), ())
    always_bundled = any(name in _PREDICTS_VARIANCE for name in classes)
    time_unit = 1000 if any(name in _TIME_TO_ONE for name in classes) else 1

    def denoise(z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        given: PlainValues = {name: value for name, value in condition.items() if name not in bundled}
        if bundled and (always_bundled or len(given) < len(condition)):
            given["added_cond_kwargs"] = {name: condition.get(name) for name in bundled}
        return network(z_t, timestep=t / time_unit if time_unit > 1 else t, **given).sample

    return denoise


def check_denoiser(
    network: nn.Module,
    latent_shape: tuple[int, ...],
    condition: Condition,
    device: torch.device,
    image_shape: tuple[int, ...] | None = None,
) -> None:
    """Try ``network`` on one zero latent, before any training.

    Args:
        image_shape: (C, H, W) of the images behind the latents, where known, to say what sizes would fit.

    Raises:
        ConfigurationError: the network does not take latents of this shape, or text of this width, or does not answer
            with the same shape.
    """
    check_condition(network, latent_shape, condition)
    was_training = {module: module.training for module in network.modules()}
    network.eval()
    z = torch.zeros(1, *latent_shape, device=device)
    try:
        with torch.no_grad():
            shape = as_denoiser(network)(z, torch.ones(1, dtype=torch.long, device=device), condition).shape
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ConfigurationError(
            f"{type(network).__name__} cannot take latents of shape {tuple(latent_shape)}: {str(error).rstrip('.')}. "
            f"{_what_fits(network, latent_shape, condition, image_shape)}"
        ) from error
    finally:
        for module, training in was_training.items():
            module.training = training
    if tuple(shape) != tuple(z.shape):
        raise ConfigurationError(
            f"{type(network).__name__} answers latents of shape {tuple(latent_shape)} with {tuple(shape[1:])}; "
            f"expected the same shape. {_what_fits(network, latent_shape, condition, image_shape)}"
        )


def _what_fits(
    network: nn.Module, latent_shape: tuple[int, ...], condition: Condition, image_shape: tuple[int, ...] | None
) -> str:
    """Return what to write for latents that a network does not take: if only images have a wrong size, another."""
    config = config_of(network)
    channels, size = latent_shape[0], latent_shape[-1]
    inputs = channels + (condition[CONCAT].shape[1] if CONCAT in condition else 0)
    multiple = config.get("patch_size") or 2 ** (len(config.get("block_out_channels") or [0]) - 1)
    if config.get("in_channels") != inputs or all(pixels % multiple == 0 for pixels in latent_shape[1:]):
        needed = (
            f"in_channels and out_channels {channels}"
            if inputs == channels
            else f"in_channels {inputs}, its out_channels {channels}"
        )
        return f"Make its {needed} and its number of levels fit {size} pixels."
    if not image_shape:
        return f"Their height and width have to be multiples of {multiple}."
    multiple *= image_shape[-1] // size
    fitting = max(multiple, image_shape[-1] // multiple * multiple)
    return f"Set the data's `image_size` to a multiple of {multiple}, such as {fitting}."


def check_condition(network: nn.Module, latent_shape: tuple[int, ...], condition: Condition) -> None:
    """Compare the picture and the text in a condition, where there are any, with what a network of diffusers takes.

    Raises:
        ConfigurationError: the picture has another size than the latents, or the network other channels; or it takes no
            text, or text of another width.
    """
    config = config_of(network)
    if CONCAT in condition:
        beside, channels = tuple(condition[CONCAT].shape[1:]), latent_shape[0]
        if beside[1:] != tuple(latent_shape[1:]):
            raise ConfigurationError(
                f"The conditioning's concat has shape {beside}, the latents {tuple(latent_shape)}; expected the same "
                "height and width."
            )
        inputs = config.get("in_channels", channels + beside[0])
        if inputs != channels + beside[0]:
            raise ConfigurationError(
                f"{type(network).__name__} has in_channels {inputs}; expected {channels + beside[0]}: {channels} of "
                f"the latents and {beside[0]} of the conditioning's concat."
            )
    if not config or "encoder_hidden_states" not in condition:
        return
    widths = {name: config[name] for name in _TEXT_WIDTHS if config.get(name) is not None}
    if not widths or type(network).__name__ == "UNet2DModel":
        raise ConfigurationError(
            f"{type(network).__name__} takes no text; use UNet2DConditionModel or a transformer that does."
        )
    (name, expected), width = next(iter(widths.items())), condition["encoder_hidden_states"].shape[-1]
    if isinstance(expected, int) and expected != width:
        raise ConfigurationError(
            f"The text encoder's embeddings are {width} wide and {type(network).__name__} has {name} {expected}; make "
            "them equal."
        )


def network_config(network: Component) -> PlainValues | None:
    """Return a diffusers module's class and arguments, and its wrapper's, as plain values; None for any other."""
    if (wrapper := wrapper_of(network)) is not None:
        inner = network_config(wrapper.network)
        return inner and {**wrapper.description, "network": inner}
    if not is_of_diffusers(network):
        return None
    config = {key: value for key, value in config_of(network).items() if not key.startswith("_")}
    return {"class_name": type(network).__name__, **copy.deepcopy(config)}


def from_network_config(config: PlainValues) -> Component:
    """The diffusers module (or scheduler) that ``network_config`` described, with fresh weights.

    Raises:
        ConfigurationError: diffusers has no such class.
    """
    import diffusers

    config = dict(config)
    class_name = str(config.pop("class_name", None))
    if "network" in config:
        return wrapped(from_network_config(config.pop("network")), {"class_name": class_name, **config})
    cls = class_named("diffusers", class_name)
    if cls is None or not issubclass(cls, (diffusers.ModelMixin, diffusers.SchedulerMixin)):
        raise ConfigurationError(
            f"The checkpoint needs a model or scheduler diffusers.{class_name}, which diffusers "
            f"{diffusers.__version__} lacks."
        )
    return cls.from_config(config)
