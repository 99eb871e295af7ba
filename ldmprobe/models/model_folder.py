"""ModelFolder: the folder that a network was saved to, looked at before it is loaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.latent_scale import SCALING
from ldmprobe.models.library import unlogged
from ldmprobe.types import Component

WEIGHTS = re.compile(
    r"(?P<name>model|diffusion_pytorch_model)(\.(?P<variant>[\w-]+?))?(-\d+-of-(?P<parts>\d+)(\.(?P<old_variant>\w+))?)?\.safetensors"
)
"""Names of files of weights, whole or in parts; of transformers and of diffusers."""
_AGAIN = "Copy or download it again, whole."


def variant_of(file: str) -> str | None:
    """Return the variant in a weight file's name, such as "fp16"; None if it has none, and for other files."""
    match = WEIGHTS.fullmatch(file)
    return match and (match["variant"] or match["old_variant"])


def belonging_to(file: str) -> set[str]:
    """Return all files that a part of the weights is useless without: the other parts and the index."""
    match = WEIGHTS.fullmatch(file)
    if match is None or match["parts"] is None:
        return set()
    index = filter(None, (match["name"], "safetensors.index", variant_of(file), "json"))
    parts = (re.sub(r"-\d+-of-", f"-{i:05d}-of-", file) for i in range(1, int(match["parts"]) + 1))
    return {".".join(index), *parts}


def _scale_is_read() -> AbstractContextManager[None]:
    """Keep diffusers from saying that settings of the scale of latents will be ignored, where its class does not know
    them: LatentCodec reads them.
    """
    return unlogged(
        lambda message: "will be ignored" in message and {*re.findall(r"'(\w+)': ", message)} <= {*SCALING},
        "diffusers.configuration_utils",
    )


@dataclass(frozen=True)
class ModelFolder:
    """A folder with the ``config.json`` and ``*.safetensors`` of one network.

    Args:
        folder: the folder.
        network_class: the network's class in diffusers or transformers.
        variant: variant of the weights; where there are none of it, those without a variant are read.
    """

    folder: Path
    network_class: Component
    variant: str | None = None

    def meta_module(self) -> Component:
        """Return the network on the meta device, after checking that the files hold weights of its shapes.

        Raises:
            ConfigurationError: files are missing, damaged or of other shapes, or do not describe a network of this
                class.
        """
        if not (self.folder / "config.json").is_file():
            raise self._not_loadable(f"its config.json is missing. {_AGAIN}")
        try:
            with torch.device("meta"), _scale_is_read():
                if self._of_diffusers:
                    network = self.network_class.from_config(self.network_class.load_config(self.folder))
                else:
                    network = self.network_class(self.network_class.config_class.from_pretrained(self.folder))
        except Exception as error:  # of many kinds, all meaning "not loadable"
            raise self._not_loadable(error) from error
        self._check_shapes({name: _plain(parameter.shape) for name, parameter in network.named_parameters()})
        return network.requires_grad_(False).eval()

    def load(self, dtype: torch.dtype = torch.float32) -> Component:
        """Load the network, in eval mode, on the CPU.

        Raises:
            ConfigurationError: the files are not those of such a network, or hold weights that are not finite.
        """
        self.meta_module()  # what is wrong with the files it says more plainly than the libraries
        options = {"torch_dtype": dtype, "low_cpu_mem_usage": False} if self._of_diffusers else {"dtype": dtype}
        variant = self.variant if any(variant_of(path.name) for path in self._weight_files()) else None
        try:
            with torch.random.fork_rng(devices=[]), _scale_is_read():  # its weights are drawn before they are read
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
                    f"its {name} has values that are not finite (in {str(dtype).removeprefix('torch.')}); take weights "
                    "from before they were spoilt."
                )
        return network

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights one by one, by their names in the files."""
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
        """Refuse files that lack a tensor of one of these shapes, whatever its name: the libraries read old names."""
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
                f"by its config.json {first} is of shape {expected[first]}, in its files of {found}; they do not "
                f"belong together. {_AGAIN}"
            )
        raise self._lacks([first] * lacking.total(), len(expected))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors in the files, by their names there."""
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
            f"{len(missing):,} of its {of:,} tensors {'is' if len(missing) == 1 else 'are'} missing from its files, "
            f"the first is {missing[0]}. {_AGAIN}"
        )

    def _not_loadable(self, reason: object) -> ConfigurationError:
        return ConfigurationError(f"No {self.network_class.__name__} can be loaded from {self.folder}: {reason}")


def _plain(shape: Sequence[int]) -> tuple[int, ...]:
    """Drop sizes of 1, by which a pointwise convolution differs from a linear layer."""
    return tuple(size for size in shape if size != 1)
