"""LazyModule: a network that is used and never trained, loaded when it is first needed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ldmprobe.diffusion.full_precision import Move
from ldmprobe.models.model_folder import ModelFolder
from ldmprobe.types import Component, StateDict


class LazyModule(nn.Module):
    """A frozen network in eval mode that keeps its weights and dtype, whatever is trained around it.

    It moves between devices with the module that it is part of, but its parameters are not among that module's.

    Args:
        network: the network, or its folder, from which it is loaded when it is first needed.
        dtype: the dtype to load it in.

    Attributes:
        meta_module: the network, on the meta device if it is read from files; it has the class, configuration and
            shapes.
        saved: whether state dicts hold its weights, for which it is then loaded.

    Raises:
        ConfigurationError: the files are not those of such a network.
    """

    meta_module: Component

    def __init__(self, network: nn.Module | ModelFolder, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self._files = network if isinstance(network, ModelFolder) else None
        own = network.requires_grad_(False).eval() if isinstance(network, nn.Module) else None
        first = None if own is None else next(own.parameters(), None)
        self.dtype = dtype if first is None else first.dtype
        self.device, self.saved = torch.device("cpu") if first is None else first.device, True
        # Not as submodules, which would be cast, trained and saved with the rest.
        self.__dict__["meta_module"] = own if self._files is None else self._files.meta_module()
        self.__dict__["_network"] = own
        super().train(False)

    @property
    def network(self) -> Component:
        """The network, loaded now if it was not before."""
        if self._network is None:
            assert self._files is not None
            with torch.inference_mode(False):  # it may be needed first where no tensor can ask for gradients
                self.__dict__["_network"] = self._files.load(self.dtype).requires_grad_(False).to(self.device)
        return self._network

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights by name, without loading the network."""
        yield from self.meta_module.state_dict().items() if self._files is None else self._files.weights()

    def __getattr__(self, name: str) -> Component:
        """Look an attribute up in the loaded network: torch finds what it saves by walking along names."""
        network = self.__dict__.get("_network")
        return super().__getattr__(name) if network is None else getattr(network, name)

    def train(self, mode: bool = True) -> LazyModule:
        return super().train(False)

    def _apply(self, fn: Move, recurse: bool = True) -> LazyModule:
        self.device = fn(torch.empty(0, device=self.device)).device
        if self._network is not None:
            self._network.to(self.device)
        return self

    def _save_to_state_dict(self, destination: StateDict, prefix: str, keep_vars: bool) -> None:
        if self.saved:
            self.network.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: StateDict,
        prefix: str,
        local_metadata: StateDict,
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
