"""Where the files of a pipeline are, and whether all are there: asked before anything is downloaded or read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ldmprobe.errors import ConfigurationError
from ldmprobe.models.model_folder import WEIGHTS, variant_of
from ldmprobe.types import PlainValues

_WITHOUT_WEIGHTS = re.compile("Scheduler|Tokenizer|Processor|FeatureExtractor")  # in the names of classes
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_LORA = "pytorch_lora_weights.safetensors"  # as diffusers calls it
_AGAIN = "Copy or download the pipeline again, whole."


def find_pipeline(name: str, revision: str | None = None, local_files_only: bool = False) -> tuple[str, list[str]]:
    """(folder, or hub id where the hub can be asked; the paths of the files there). Where it cannot, its cache will do.

    Raises:
        ConfigurationError: there is nothing of this name; the message says what it would take.
    """
    from huggingface_hub import HfApi, hf_hub_download

    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigurationError(f"`revision` is of the hub, but {name} is a folder here; leave it out.")
        return str(folder), _files(folder)
    if folder.is_file():
        raise ConfigurationError(refusal(name, revision))
    owner = Path(name).parent
    if name.count("/") == 1 and owner.name and owner.is_dir() and revision is None:
        raise ConfigurationError(
            f"{name!r} is no diffusers pipeline that can be read: there is a folder {owner.name!r} here, but no "
            f"{folder.name!r} in it. If you mean the hub's repository of this name, give its `revision`, such as main."
        )
    unreached: Exception | None = None
    try:
        if not local_files_only:
            return name, HfApi().list_repo_files(name, revision=revision)
    except Exception as error:  # of the hub's many kinds some are final; the others mean that it is out of reach
        if _kinds(error) & {"HFValidationError", "RepositoryNotFoundError", "RevisionNotFoundError"}:
            raise ConfigurationError(refusal(name, revision, error)) from error
        unreached = error
    try:
        index = hf_hub_download(name, "model_index.json", revision=revision, local_files_only=True)
    except Exception as error:
        raise ConfigurationError(refusal(name, revision, unreached or error)) from error
    return str(Path(index).parent), _files(Path(index).parent)


def refusal(name: str, revision: str | None, error: Exception | None = None) -> str:
    """Return what to tell the user of a pipeline that could not be found."""
    start = f"{name!r} is no diffusers pipeline that can be read: "
    if Path(name).expanduser().exists():
        return start + _what_it_is(Path(name).expanduser())
    kinds = _kinds(error)
    if "HFValidationError" in kinds or name.count("/") > 1 or name.startswith((".", "~", "/")):
        return start + "there is no such folder here, and it is no hub id (`owner/name`)."
    if "GatedRepoError" in kinds:
        return start + (
            f"access to it is gated. Accept its terms on https://huggingface.co/{name}, then log in by `hf auth login` "
            "or set HF_TOKEN."
        )
    if "RevisionNotFoundError" in kinds:
        return (
            start
            + f"the hub's {name} has no revision {revision!r}; leave `revision` out, or name a branch, tag or commit."
        )
    if "RepositoryNotFoundError" in kinds:
        return start + (
            "the hub has no repository of this name, or a private one: check the name; for a private one log in by `hf "
            "auth login` or set HF_TOKEN."
        )
    if "EntryNotFoundError" in kinds and "LocalEntryNotFoundError" not in kinds:
        return start + "the hub repository has no model_index.json; only whole pipelines can be loaded."
    at = f" --revision {revision}" if revision else ""
    if "OfflineModeIsEnabled" in kinds:
        why = "was not to be asked (HF_HUB_OFFLINE is set)"
    elif "LocalEntryNotFoundError" in kinds and "TransportError" not in kinds:
        why = "was not to be asked (`local_files_only`)"
    else:
        why = f"could not be reached ({type(error).__name__}: {' '.join(str(error).split())})"
    return start + (
        f"there is no such folder here, it is not in the hub's cache (HF_HOME), and the hub {why}. Where there is a "
        f"connection, run `hf download {name}{at}`, or with `--local-dir DIR`, and give DIR here."
    )


def _what_it_is(place: Path) -> str:
    """Instead of a pipeline's folder, and what to give."""
    if place.suffix == ".ckpt":
        return f"it is a checkpoint. Write a pipeline of it, `ldmprobe export {place} DIR --merge`, and give DIR."
    if (place / "checkpoints").is_dir():
        return f"it is the folder of a run. Give one of its checkpoints, such as {place / 'checkpoints' / 'last.ckpt'}."
    if place.name == _LORA or (place / _LORA).is_file():
        return (
            "it has a LoRA alone, without the model that it is for. Give the checkpoint that it was exported from, or "
            "what `ldmprobe export CHECKPOINT DIR --merge` writes."
        )
    if place.is_file():
        return (
            "it is a single file. Give the folder of the whole pipeline, which DiffusionPipeline.save_pretrained wrote."
        )
    return (
        "the folder has no readable model_index.json. Give the folder that DiffusionPipeline.save_pretrained wrote, "
        "not one of its components, and no single file of weights."
    )


def check_files(name: str, index: PlainValues, files: Sequence[str], variant: str | None) -> None:
    """Refuse a pipeline of which a component is missing, or has no safetensors, or has them neither in this variant nor
    without one.

    Args:
        index: the components to be read, as model_index.json has them.
        files: paths in the folder or repository.
    """
    folders: dict[str, list[str]] = {}
    for path in map(PurePosixPath, files):
        folders.setdefault(path.parts[0], []).append(path.name)
    variants: dict[str, set[str | None]] = {}
    for component, entry in index.items():
        if component.startswith("_") or not isinstance(entry, (list, tuple)) or list(entry) == [None, None]:
            continue
        if component not in folders:
            raise ConfigurationError(
                f"{name} lacks its {component}: model_index.json names a {entry[1]}, but there is no folder "
                f"{component!r}. {_AGAIN}"
            )
        if not _WITHOUT_WEIGHTS.search(str(entry[1])):
            variants[component] = _variants(f"The {component} in {name}", folders[component])
    there = sorted(set[str | None]().union(*variants.values()), key=str)
    lacking = [component for component, found in variants.items() if not found & {variant, None}]
    if lacking or variant not in (*there, None):
        whole = [each for each in there if all(found & {each, None} for found in variants.values())]
        remedies = [f"set `variant: {each}`" if each else "leave `variant` out" for each in whole]
        whose = f"The {lacking[0]} in {name}" if lacking else name
        lacks = "without a variant" if variant is None else f"of a variant {variant!r}"
        remedy = " or ".join(remedies) or "there is none that all of its parts have"
        raise ConfigurationError(f"{whose} has no weights {lacks}; {remedy}.")


def _variants(what: str, files: Sequence[str]) -> set[str | None]:
    """Those that a component's safetensors are of; None for those of none."""
    found = {variant_of(file) for file in files if WEIGHTS.fullmatch(file)}
    pickles = [path for path in files if path.endswith(_PICKLES)]
    if not found and pickles:
        raise ConfigurationError(
            f"{what} has its weights only as {pickles[0]}, a pickle, which can run code and is not read. If you trust "
            "it, write safetensors once, `DiffusionPipeline.from_pretrained(NAME, "
            "use_safetensors=False).save_pretrained(DIR)`, and give DIR; on the hub a revision such as 'refs/pr/1' may "
            "have them."
        )
    if not found:
        raise ConfigurationError(f"{what} has no weights (*.safetensors). {_AGAIN}")
    return found


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _kinds(error: BaseException | None) -> set[str]:
    """Names of the classes of an error and of those that it came from."""
    kinds: set[str] = set()
    while error is not None:
        kinds |= {cls.__name__ for cls in type(error).__mro__}
        error = error.__cause__ or error.__context__
    return kinds
