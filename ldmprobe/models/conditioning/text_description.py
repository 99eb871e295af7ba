"""Text encoders and tokenizers as plain values that hang on no place, and built again from them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from ldmprobe.errors import ConfigurationError, needing
from ldmprobe.models.library import class_named
from ldmprobe.types import Component, PlainValues

_ABOUT_THE_FILE = (
    "_name_or_path",
    "name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "is_local",
    "local_files_only",
)
"""Settings in a configuration that say where and by whom it was read."""


def encoder_description(encoder: Component) -> PlainValues:
    config = {name: value for name, value in encoder.config.to_dict().items() if name not in _ABOUT_THE_FILE}
    return {"class_name": type(encoder).__name__, "config": config}


def encoder_from(description: PlainValues) -> Component:
    cls = _transformers_class(description["class_name"])
    return cls(cls.config_class.from_dict(description["config"]))


def tokenizer_description(tokenizer: Component) -> PlainValues:
    """Return the tokenizer's class and its files as text, without what its last call left in them."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}
    settings = json.loads(files["tokenizer_config.json"])
    kept = {name: value for name, value in settings.items() if name not in _ABOUT_THE_FILE}
    files["tokenizer_config.json"] = json.dumps(kept, sort_keys=True)
    if "tokenizer.json" in files:
        own = json.loads(files["tokenizer.json"])
        files["tokenizer.json"] = json.dumps(own | {"truncation": None, "padding": None})
    return {"class_name": type(tokenizer).__name__, "files": files}


def tokenizer_from(description: PlainValues) -> Component:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in description["files"].items():
            (Path(folder) / Path(name).name).write_text(text, encoding="utf-8")
        return _transformers_class(description["class_name"]).from_pretrained(folder, local_files_only=True)


def _transformers_class(name: str) -> Component:
    with needing("transformers", "The checkpoint, whose model is told text,"):
        import transformers

    cls = class_named("transformers", name)
    if cls is None or not issubclass(cls, (transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase)):
        raise ConfigurationError(
            f"The checkpoint needs transformers.{name}, which transformers {transformers.__version__} lacks."
        )
    return cls
