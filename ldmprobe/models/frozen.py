"""Frozen: a network that is used and never trained, read from its files when it is first needed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldmprobe.errors import ConfigurationError

WEIGHTS = re.compile(
    r"(?P<name>model|diffusion_pytorch_model)(\.(?P<variant>[\w-]+?))?(-\d+-of-(?P<parts>\d+)(\.(?P<old_variant>\w+))?)?\.safetensors"
)
"""Names of files of weights, whole or in parts; of transformers and of diffusers."""
_AGAIN = "Copy or download it again, whole."


def variant_of(file: str) -> str | None:
    """Of a file of weights, such as "fp16"; None for one of none, and for other files."""
    match = WEIGHTS.fullmatch(file)
    return match and (match["variant"] or match["old_variant"])


def belonging_to(file: str) -> set[str]:
    """What a file of weights in parts is of no use without: all parts, and the index that says what is in which."""
    match = WEIGHTS.fullmatch(file)
    if match is None or match["parts"] is None:
        return set()
    index = filter(None, (match["name"], "safetensors.index", variant_of(file), "json"))
    parts = (re.sub(r"-\d+-of-", f"-{i:05d}-of-", file) for i in range(1, int(match["parts"]) + 1))
    return {".".join(index), *parts}


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
        """The network without weights, on the meta device: its class, configuration and shapes. That the files have weights of these shapes
        is made certain of at once.

        Raises:
            ConfigurationError: they have not, are torn or not all there, or there is no network of this class.
        """
        if not (self.folder / "config.json").is_file():
            raise self._not_loadable(f"its config.json is missing. {_AGAIN}")
        try:
            with torch.device("meta"):
                if self._of_diffusers:
                    outline = self.network_class.from_config(self.network_class.load_config(self.folder))
                else:
                    outline = self.network_class(self.network_class.config_class.from_pretrained(self.folder))
        except Exception as error:  # of many kinds, all meaning "not loadable"
            raise self._not_loadable(error) from error
        self._check_shapes({name: _plain(parameter.shape) for name, parameter in outline.named_parameters()})
        return outline.requires_grad_(False).eval()

    def load(self, dtype: torch.dtype = torch.float32) -> Any:
        """The network, on the CPU, in eval mode.

        Raises:
            ConfigurationError: the files are not those of such a network, or have weights that are not finite.
        """
        self.outline()  # what is wrong with the files it says more plainly than the libraries
        options = {"torch_dtype": dtype, "low_cpu_mem_usage": False} if self._of_diffusers else {"dtype": dtype}
        variant = self.variant if any(variant_of(path.name) for path in self._weight_files()) else None
        try:
            with torch.random.fork_rng(devices=[]):  # its weights are drawn before they are read
                network, found = self.network_class.from_pretrained(
                    self.folder,
                    variant=variant,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                    **options,
                )
        except Exception as error:
            raise self._not_loadable(error) from error
        own = dict(network.named_parameters())
        if missing := [name for name in own if name in found["missing_keys"]]:  # they would be random
            raise self._lacks(missing, len(own))
        for name, parameter in own.items():
            if not parameter.isfinite().all():
                raise self._not_loadable(
                    f"its {name} has values that are not finite (in {str(dtype).removeprefix('torch.')}); take weights from before "
                    "they were spoilt."
                )
        return network

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
                for name in sorted(set().union(*(belonging_to(path.name) for path in of_variant))):
                    if not (self.folder / name).is_file():
                        raise self._not_loadable(f"its {name} is missing. {_AGAIN}")
                return of_variant
        raise self._not_loadable(
            "it has no safetensors (if you trust its pickles, diffusers' `save_pretrained` writes them)"
        )

    def _check_shapes(self, expected: dict[str, tuple[int, ...]]) -> None:
        """Refuse files that lack a tensor of one of these shapes. By what name they have it does not matter: the libraries know old ones."""
        there = self._shapes()
        lacking = Counter(expected.values()) - Counter(there.values())
        candidates = [name for name, shape in expected.items() if shape in lacking]
        if not candidates:
            return
        named = {own: next((shape for name, shape in there.items() if name.endswith(own)), None) for own in candidates}
        first = min(candidates, key=lambda name: named[name] == expected[name])
        found = named[first]
        if found is not None and found != expected[first]:
            raise self._not_loadable(
                f"by its config.json {first} is of shape {expected[first]}, in its files of {found}; they do not belong together. {_AGAIN}"
            )
        raise self._lacks([first] * lacking.total(), len(expected))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors in the files, by their names there."""
        from safetensors import safe_open

        shapes: dict[str, tuple[int, ...]] = {}
        for path in self._weight_files():
            try:
                with safe_open(path, "pt") as file:
                    shapes |= {name: _plain(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            except Exception as error:
                raise self._not_loadable(f"{path.name} is torn ({error}). {_AGAIN}") from error
        return shapes

    def _lacks(self, missing: Sequence[str], of: int) -> ConfigurationError:
        return self._not_loadable(
            f"{len(missing):,} of its {of:,} tensors {'is' if len(missing) == 1 else 'are'} missing from its files, the first is "
            f"{missing[0]}. {_AGAIN}"
        )

    def _not_loadable(self, reason: object) -> ConfigurationError:
        return ConfigurationError(f"No {self.network_class.__name__} can be loaded from {self.folder}: {reason}")


def _plain(shape: Sequence[int]) -> tuple[int, ...]:
    """Without sizes of 1, by which a pointwise convolution differs from a linear layer."""
    return tuple(size for size in shape if size != 1)


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
        self._files = network if isinstance(network, NetworkFiles) else None
        own = network.requires_grad_(False).eval() if isinstance(network, nn.Module) else None
        first = None if own is None else next(own.parameters(), None)
        self.dtype = dtype if first is None else first.dtype
        self.device, self.saved = torch.device("cpu") if first is None else first.device, True
        # Not as submodules, which would be cast, trained and saved with the rest.
        self.__dict__["outline"] = own if self._files is None else self._files.outline()
        self.__dict__["_network"] = own
        super().train(False)

    @property
    def network(self) -> Any:
        """The network, loaded now if it is not yet."""
        if self._network is None:
            assert self._files is not None
            with torch.inference_mode(False):  # it may be needed first where no tensor can ask for gradients
                self.__dict__["_network"] = self._files.load(self.dtype).requires_grad_(False).to(self.device)
        return self._network

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
