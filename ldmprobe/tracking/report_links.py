"""The links in a report's head: to the data, to the configuration further down, and to the run in Weights & Biases."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

import yaml

from ldmprobe.tracking.loggers import WANDB_ADDRESS

_HUB = "https://huggingface.co/datasets/"
_MOST_CHARACTERS = 1_000_000  # of a configuration


def links_html(config_text: str | None, address: str | None) -> str:
    """Return the links as HTML; "" where there are none.

    Args:
        config_text: the run's configuration, whose section has the id "configuration"; None if there is none.
        address: where the run is in Weights & Biases; anything but a web address is left out.
    """
    links = [] if config_text is None else [_data(config_text), '<a href="#configuration">configuration</a>']
    if address is not None and re.fullmatch(r"https?://\S{1,500}", address):
        links.append(f'<a href="{escape(address)}">W&amp;B run</a>')
    told = " · ".join(link for link in links if link)
    return f'<nav aria-label="about this run">{told}</nav>' if told else ""


def config_text_of(run_dir: Path) -> str | None:
    """Return a run's configuration; None where there is none that can be read."""
    return _text(run_dir / "config.yaml", _MOST_CHARACTERS)


def address_of(run_dir: Path) -> str | None:
    """Return where a run is in Weights & Biases, as it was written down; None if it was not."""
    return _text(run_dir / WANDB_ADDRESS, 600)


def _data(config_text: str) -> str:
    """Return the data's name, linked where it is the hub's."""
    block = re.search(r"^data:.*\n(?:[ #\n].*\n?)*", config_text, re.MULTILINE)  # the whole takes long to read
    try:
        dataset = str(yaml.safe_load(block[0] if block else "")["data"]["init_args"]["dataset"])[:200]
    except (yaml.YAMLError, KeyError, TypeError, RecursionError):
        return ""
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", dataset) and not Path(dataset).exists():
        return f'data <a href="{_HUB}{escape(dataset)}">{escape(dataset)}</a>'
    return f"data {escape(dataset)}"


def _text(path: Path, at_most: int) -> str | None:
    try:
        if not path.is_file():
            return None
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(at_most)
    except OSError:
        return None
