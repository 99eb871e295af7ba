"""Frozen: a network that is used and never trained, read from its files when it is first needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError

WEIGHTS = re.compile(
    r"(model|diffusion_pytorch_model)(\.(?P<variant>[\w-]+?))?(-\d+-of-\d+(\.(?P<old_variant>\w+))?)?\.safetensors"
)
"""Names of files of weights, whole or in parts; of transformers and of diffusers."""


def variant_of(file: str) -> str | None:
    """Of a file of weights, such as "fp16"; None for one of none, and for other files."""
    match = WEIGHTS.fullmatch(file)
    return match and (match["variant"] or match["old_variant"])


@dataclass(frozen=True)
class NetworkFiles:
    """The folder that a network was saved to: ``config.json`` and ``*.safetensors``.

    Args:
        folder: of this network alone.
        network_class: of diffusers or transformers.
        variant: of the weights; where there are none of it, those of none.
    """

    folder: Path
    network_class: Any
    variant: str | None = None

    def outline(self) -> Any:
        """The network without weights, on the meta device: its class, configuration and shapes. That the files of weights are whole is made
        certain of at once.

        Raises:
            ConfigurationError: they are not, or there is no network of this class.
        """
        from safetensors import safe_open

        try:
            with torch.device("meta"):
                if self._of_diffusers:
                    outline = self.network_class.from_config(self.network_class.load_config(self.folder))
                else:
                    outline = self.network_class(self.network_class.config_class.from_pretrained(self.folder))
            for path in self._weight_files():
                with safe_open(path, "pt"):
                    pass
        except Exception as error:  # of many kinds, all meaning "not loadable"
            raise self._not_loadable(error) from error
        return outline.requires_grad_(False).eval()

    def load(self, dtype: torch.dtype = torch.float32) -> Any:
        """The network, on the CPU.

        Raises:
            ConfigurationError: the files are not those of such a network.
        """
        options = {"torch_dtype": dtype, "low_cpu_mem_usage": False} if self._of_diffusers else {"dtype": dtype}
        variant = self.variant if any(variant_of(path.name) for path in self._weight_files()) else None
        try:
            # Its weights are drawn before they are read; and a probe may need it while no tensor can ask for gradients.
            with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
                network = self.network_class.from_pretrained(
                    self.folder, variant=variant, use_safetensors=True, local_files_only=True, **options
                )
        except Exception as error:
            raise self._not_loadable(error) from error
        return network.requires_grad_(False).eval()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """By their names in the files, one by one."""
        from safetensors import safe_open

        for path in self._weight_files():
            with safe_open(path, "pt") as file:
                yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 (not a dict)

    @property
    def _of_diffusers(self) -> bool:
        from diffusers import ModelMixin

        return issubclass(self.network_class, ModelMixin)

    def _weight_files(self) -> list[Path]:
        files = sorted(path for path in self.folder.glob("*.safetensors") if WEIGHTS.fullmatch(path.name))
        for variant in dict.fromkeys((self.variant, None)):
            if of_variant := [path for path in files if variant_of(path.name) == variant]:
                return of_variant
        raise self._not_loadable(
            "it has no safetensors (if you trust its pickles, diffusers' `save_pretrained` writes them)"
        )

    def _not_loadable(self, reason: object) -> ConfigurationError:
        if isinstance(reason, ConfigurationError):
            return reason
        return ConfigurationError(f"No {self.network_class.__name__} can be loaded from {self.folder}: {reason}")


class Frozen(nn.Module):
    """A network in eval mode that keeps its weights and its dtype, whatever is trained around it. It moves between devices with the module
    that it is part of, but its parameters are not among that module's.

    Args:
        network: itself; or its files, from which it is read when it is first needed.
        dtype: to read it in.

    Attributes:
        outline: the network, without weights where it is read from files: for its class, configuration and shapes.
        saved: whether state dicts have its weights, for which it is then loaded.

    Raises:
        ConfigurationError: the files are not those of such a network.
    """

    outline: Any

    def __init__(self, network: nn.Module | NetworkFiles, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype, self.device, self.saved = dtype, torch.device("cpu"), True
        self._files = network if isinstance(network, NetworkFiles) else None
        own = None if isinstance(network, NetworkFiles) else network.requires_grad_(False).eval()
        for parameter in () if own is None else own.parameters():
            self.dtype, self.device = parameter.dtype, parameter.device
        # Not as submodules, which would be cast, trained and saved with the rest.
        self.__dict__["outline"] = network.outline() if isinstance(network, NetworkFiles) else own
        self.__dict__["_network"] = own
        super().train(False)

    @property
    def network(self) -> Any:
        """The network, loaded now if it is not yet."""
        if self._network is None:
            assert self._files is not None
            self.__dict__["_network"] = self._files.load(self.dtype).to(self.device)
        return self._network

    @property
    def loaded(self) -> bool:
        return self._network is not None

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """By name; of files without loading the network."""
        yield from self.outline.state_dict().items() if self._files is None else self._files.weights()

    def __getattr__(self, name: str) -> Any:
        """Of the network, once it is loaded: torch finds what it saves by walking along its name."""
        network = self.__dict__.get("_network")
        return super().__getattr__(name) if network is None else getattr(network, name)

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Frozen:
        self.device = fn(torch.empty(0, device=self.device)).device
        if self._network is not None:
            self._network.to(self.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self.saved:
            self.network.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        if self.saved or own:
            found = self.network.load_state_dict(own, strict=False)
            missing_keys += [prefix + name for name in found.missing_keys]
            unexpected_keys += [prefix + name for name in found.unexpected_keys]
