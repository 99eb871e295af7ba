"""The Denoiser protocol: (z_t, t, condition) → prediction. Everything that is trained or probed sits behind it."""

from __future__ import annotations

import copy
import inspect
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError

Condition = dict[str, Tensor]
"""Keyword arguments for the network, each of shape (N, …): ``{}``, ``{"class_labels": …}``, ``{"encoder_hidden_states": …}``."""


class Denoiser(Protocol):
    """What a network must do to be trained and probed: answer z_t (N, C, H, W) at timesteps t (N,) with a prediction of
    the same shape. A ``torch.nn.Module`` whose ``forward`` has this signature will do."""

    def __call__(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor: ...


def as_denoiser(network: nn.Module) -> Denoiser:
    """``network`` as a Denoiser: diffusers' U-Nets and DiT are adapted, anything else must follow the protocol itself."""
    if not hasattr(network, "config"):
        return network

    predicts_variance = type(network).__name__ == "DiTTransformer2DModel"  # appended to its prediction

    def denoise(z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        prediction = network(z_t, t, **condition).sample
        return prediction[:, : z_t.shape[1]] if predicts_variance else prediction

    return denoise


def check_denoiser(
    network: nn.Module, latent_shape: tuple[int, ...], condition: Condition, device: torch.device
) -> None:
    """Try ``network`` on one zero latent, before any training.

    Raises:
        ConfigurationError: the network does not take latents of this shape, or does not answer with the same shape.
    """
    was_training = {module: module.training for module in network.modules()}
    network.eval()
    z = torch.zeros(1, *latent_shape, device=device)
    try:
        with torch.no_grad():
            shape = as_denoiser(network)(z, torch.zeros(1, dtype=torch.long, device=device), condition).shape
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ConfigurationError(
            f"{type(network).__name__} cannot take latents of shape {tuple(latent_shape)}: {error}. Make its in_channels and "
            f"out_channels {latent_shape[0]} and its number of levels fit {latent_shape[-1]} pixels."
        ) from error
    finally:
        for module, training in was_training.items():
            module.training = training
    if tuple(shape) != tuple(z.shape):
        raise ConfigurationError(
            f"{type(network).__name__} answers latents of shape {tuple(latent_shape)} with {tuple(shape[1:])}; expected the "
            f"same shape. Make its in_channels and out_channels {latent_shape[0]}."
        )


def network_config(network: Any) -> dict[str, Any] | None:
    """Class and constructor arguments of a diffusers module as plain values, or None for any other module."""
    if not hasattr(network, "config"):
        return None
    config = {key: value for key, value in dict(network.config).items() if not key.startswith("_")}
    return {"class_name": type(network).__name__, **copy.deepcopy(config)}


def from_network_config(config: dict[str, Any]) -> Any:
    """The diffusers module (or scheduler) that :func:`network_config` described, with fresh weights.

    Raises:
        ConfigurationError: diffusers has no such class.
    """
    import diffusers

    config = dict(config)
    class_name = str(config.pop("class_name", None))
    cls: Any = getattr(diffusers, class_name, None)
    known = inspect.isclass(cls) and issubclass(cls, (diffusers.ModelMixin, diffusers.SchedulerMixin))
    if not known:
        raise ConfigurationError(
            f"The checkpoint needs a model or scheduler diffusers.{class_name}, which diffusers {diffusers.__version__} lacks."
        )
    return cls.from_config(config)
