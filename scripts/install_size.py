"""What an installation takes: megabytes of the core and of each extra besides, and CPU seconds to import.

    python scripts/install_size.py

Sizes are those of the packages that are installed here, as their own lists of files have them, with all that they need;
an extra that is not installed whole is left out. An import is timed in a process of its own, without the packages of
extras and with them.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = ("dev", "docs")
IMPORT = "import ldmprobe, time; [getattr(ldmprobe, name) for name in ldmprobe.__all__]; print(time.process_time())"
HIDDEN = (
    f"from pytest import MonkeyPatch; from tests.optional import hide_optional; hide_optional(MonkeyPatch()); {IMPORT}"
)


def closure(requirements: Iterable[Requirement]) -> dict[str, Distribution]:
    """Return the packages that these need, and all that those need, by name.

    Raises:
        PackageNotFoundError: one is not installed.
    """
    found: dict[str, Distribution] = {}
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name not in found:
            found[name] = distribution(name)
            needs = [Requirement(text) for text in found[name].requires or []]
            waiting += [each for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def megabytes(packages: Iterable[Distribution]) -> float:
    paths = [Path(str(file.locate())) for package in packages for file in package.files or []]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = closure(map(Requirement, project["dependencies"]))
    print(f"{'core':12} {megabytes(core.values()):7,.0f} MB, {len(core)} packages")
    largest = sorted(((megabytes([package]), name) for name, package in core.items()), reverse=True)[:6]
    print(f"{'':12} of these {', '.join(f'{name} {size:.0f}' for size, name in largest)}")
    wandb = (
        closure([Requirement("wandb")]).keys()
        - closure(Requirement(text) for text in project["dependencies"] if not text.startswith("wandb")).keys()
    )
    print(f"{'':12} wandb, and what only it needs: {megabytes(core[name] for name in wandb):.0f}")
    for extra, requirements in project["optional-dependencies"].items():
        if extra in SKIPPED:
            continue
        try:
            more = {
                name: package for name, package in closure(map(Requirement, requirements)).items() if name not in core
            }
        except PackageNotFoundError as error:
            print(f"{extra:12} not installed here ({error.name})")
            continue
        print(f"{extra:12} {megabytes(more.values()):7,.0f} MB more, {len(more)} packages")
    for told, code in (("without extras and wandb", HIDDEN), ("with all that is here", IMPORT)):
        seconds = [
            float(
                subprocess.run(
                    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
                ).stdout
            )
            for _ in range(3)
        ]
        print(f"import {told}: {min(seconds):.1f} CPU s")


if __name__ == "__main__":
    main()
