"""Source: where a pretrained model is, and how it is to be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Source:
    """A diffusers pipeline (a folder or hub id) or a checkpoint of ldmprobe (a file, or the folder of a sharded one).

    Args:
        name: folder, hub repository or checkpoint.
        revision: branch, tag or commit on the hub.
        variant: variant of a pipeline's weights, such as "fp16".
        local_files_only: never ask the hub, only its cache.
        text_precision: precision of a pipeline's text encoders; half precision takes half the memory. All else is in
            float32.
        base: folder, hub id or checkpoint in the place of the pretrained model that a finetune's checkpoint names, with
            the same weights.
        ema_length: σ_rel of an average that is taken in the place of the checkpoint's own weights, of a run with
            PostHocEMA.
        lora_strength: s of a LoRA's checkpoint, W_0 + s (α/r) B A; 1 is as trained.
    """

    name: str
    revision: str | None = None
    variant: str | None = None
    local_files_only: bool = False
    text_precision: Precision = "float32"
    base: str | None = None
    ema_length: float | None = None
    lora_strength: float = 1.0

    @classmethod
    def of(cls, source: Source | str | Path) -> Source:
        """Return the source of this name, or the source itself."""
        return source if isinstance(source, Source) else cls(str(source))

    @property
    def is_checkpoint(self) -> bool:
        """Return whether this is a checkpoint of ldmprobe, and not a pipeline."""
        path = Path(self.name)
        if path.suffix == ".ckpt" or (path / ".metadata").is_file():
            return True
        return path.is_file() and path.suffix not in (".safetensors", ".json", ".bin")

    @property
    def pipeline_settings(self) -> list[str]:
        """The names of the settings that differ from their defaults and that only a pipeline has."""
        default, names = Source(self.name), ("revision", "variant", "local_files_only", "text_precision")
        return [name for name in names if vars(self)[name] != vars(default)[name]]
