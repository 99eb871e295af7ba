"""The packages that ldmprobe does without, and how to hide them."""

import re
import sys
from importlib.machinery import PathFinder

from ldmprobe.errors import EXTRAS

OPTIONAL = {*EXTRAS, "wandb"}


class Without(PathFinder):
    """Finds what is installed, except for optional packages."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in OPTIONAL else PathFinder.find_spec(fullname, path, target)

    @classmethod
    def find_distributions(cls, *args, **kwargs):
        found = PathFinder.find_distributions(*args, **kwargs)
        return (each for each in found if re.sub("[-.]", "_", each.name.lower()) not in OPTIONAL)


def hide_optional(monkeypatch):
    """Have optional packages not be there, whether or not they have been imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OPTIONAL]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without if each is PathFinder else each for each in sys.meta_path])
