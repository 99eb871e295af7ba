"""``ldmprobe init``: a configuration to begin with, one of those in ``configs/``."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from ldmprobe.commands.options import Parser, option
from ldmprobe.errors import ConfigurationError, closest


def parser(command: str) -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        command, "[NAME] [--out FILE]", "Write a configuration to begin with; without a name, list them.", "digits"
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="such as digits, or families/edm")
    option(parser, "--out FILE", "YAML file to write (default: NAME.yaml here)", Path)
    return parser


def run(argv: list[str]) -> int:
    """Write the configuration that ``argv`` names, with those that it is to be given with, or list them all.

    Raises:
        ConfigurationError: there is none of that name, or the file exists.
    """
    args = parser(argv[0]).parse_args(argv[1:])
    texts = _configurations()
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
    beside = re.findall(r"--config configs/([\w/]+)\.yaml", texts[args.name])
    places = {name: Path(f"{name}.yaml") for name in beside} | {args.name: out}
    for name, place in places.items():
        if not place.exists():  # another configuration may have brought it, and it may have been changed since
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(_moved(texts[name], places), encoding="utf-8")
    print(_moved(texts[args.name], places).partition("\n")[0].removeprefix("# "))
    return 0


def _configurations() -> dict[str, str]:
    """Return the text of each, by name: those at the top first. Those that need a script of the checkout are none to
    begin with.
    """
    folder = Path(str(files("ldmprobe") / "presets"))
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    texts = {path.relative_to(folder).with_suffix("").as_posix(): path.read_text(encoding="utf-8") for path in paths}
    return {name: text for name, text in texts.items() if text.startswith("# ldmprobe ")}


def _moved(text: str, places: dict[str, Path]) -> str:
    """Return a configuration whose comments name the files that are written, where they name the checkout's."""
    for name, place in places.items():
        text = text.replace(f"configs/{name}.yaml", str(place))
    return text


def _purpose(text: str) -> str:
    """Return how a configuration's comment begins, below its command."""
    comment = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    return re.split(r"[.:;(] ?", " ".join(comment[1:]).strip())[0]
