"""ImageFiles: the files that the rows of a dataset may name, so that no table makes training read other files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ldmprobe.types import PlainValues, Rows

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:(//|:)|::")


@dataclass(frozen=True)
class ImageFiles:
    """The files in some folders.

    Attributes:
        folders: absolute; a relative name is looked for in each of them.
        follow_links: whether a link in a folder may lead out of it, as in a folder of one's own images.
    """

    folders: tuple[str, ...] = ()
    follow_links: bool = False

    def find(self, name: str) -> str:
        """Return the path of the file called `name`.

        Raises:
            ValueError: a URL, a file outside the folders, or none.
        """
        if _URL.search(name):
            raise ValueError(
                f"it names the URL {name[:200]!r}, and rows are not downloaded in training; download the images and "
                "give their folder"
            )
        candidates = [os.path.abspath(os.path.join(folder, name)) for folder in self.folders]
        inside = [path for path in candidates if self._has(path)]
        if not inside:
            where = " or ".join(self.folders) or "any folder: the dataset has none of its own here"
            raise ValueError(
                f"it names the file {name[:200]!r}, which is not in {where}; a table can only name files there, unless "
                "the data's `image_folder` names another folder"
            )
        found = next((path for path in inside if os.path.isfile(path)), None)
        if found is None:
            raise ValueError(f"there is no file {inside[0]}")
        return found

    def _has(self, path: str) -> bool:
        if self.follow_links:
            return any(_is_in(path, folder) for folder in self.folders)
        return any(_is_in(os.path.realpath(path), os.path.realpath(folder)) for folder in self.folders)


def _is_in(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def files_of(dataset: str, kwargs: PlainValues, rows: Rows, image_folder: str | None) -> ImageFiles:
    """Return the files that the rows of a dataset may name: those in `image_folder` or in the dataset's own folder.

    Names in an image folder are those of its files, wherever links in it lead; `datasets` keeps a hub's in its caches.
    Names in a table are a stranger's.
    """
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    if image_folder is not None:
        return ImageFiles((_absolute(image_folder),), follow_links=True)
    path = Path(dataset).expanduser()
    folders = [str(path if path.is_dir() else path.parent)] if path.exists() else []
    folders += [kwargs["data_dir"]] if "data_dir" in kwargs and not path.is_dir() else []
    data_files = kwargs.get("data_files")
    listed = list(data_files.values()) if isinstance(data_files, dict) else [data_files]
    for names in listed:
        for name in [names] if isinstance(names, str) else names or []:
            folders.append(os.path.dirname(os.path.join(path if path.is_dir() else "", str(name).split("*")[0])) or ".")
    kept_by_datasets = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    of_folder = rows.info.builder_name == "imagefolder" and not kept_by_datasets
    if of_folder:
        folders += [HF_HUB_CACHE, str(config.EXTRACTED_DATASETS_PATH), str(config.DOWNLOADED_DATASETS_PATH)]
    return ImageFiles(tuple(_absolute(folder) for folder in folders if "://" not in folder), follow_links=of_folder)


def _absolute(folder: str) -> str:
    return os.path.abspath(os.path.expanduser(folder))
