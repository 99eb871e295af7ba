"""``ldmprobe init``: a configuration to begin with, one of those in ``configs/``."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from ldmprobe.commands.options import Parser, closest, option
from ldmprobe.errors import ConfigurationError


def run(argv: list[str]) -> int:
    """Write the configuration that ``argv`` names, or list them all.

    Raises:
        ConfigurationError: there is none of that name, or the file exists.
    """
    parser = Parser(
        "init",
        "[NAME] [--out FILE]",
        "Write a configuration to begin with; without a name, list them.",
        "digits",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="such as digits")
    option(parser, "--out FILE", "YAML file to write (default: NAME.yaml here)", Path)
    args = parser.parse_args(argv[1:])
    folder = Path(str(files("ldmprobe") / "presets"))
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))}
    if args.name is None:
        wide = max(map(len, texts))
        print("\n".join(f"{name:{wide}}  {_purpose(text)}" for name, text in texts.items()))
        return 0
    if args.name not in texts:
        near = closest(args.name, texts)
        raise ConfigurationError(f"There is no configuration {args.name!r}.{near} `ldmprobe init` lists them.")
    out = args.out or Path(f"{args.name}.yaml")
    if out.exists():
        raise ConfigurationError(f"{out} exists; choose another name by `--out FILE`.")
    # What they say of themselves is of the checkout.
    out.write_text(texts[args.name].replace(f"configs/{args.name}.yaml", str(out)), encoding="utf-8")
    print(texts[args.name].partition("\n")[0].removeprefix("# ").replace(f"configs/{args.name}.yaml", str(out)))
    return 0


def _purpose(text: str) -> str:
    """Return how a configuration's comment begins, below its command."""
    comment = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    return re.split(r"[.:;(] ?", " ".join(comment[1:]).strip())[0]
