"""The site: every page is linked, every link leads somewhere, every module says what it is for, every public name is
documented."""

import re
import runpy
from collections import Counter
from pathlib import Path

import pytest
import yaml

import ldmprobe
import ldmprobe.callbacks

ROOT = Path(__file__).resolve().parent.parent
PAGES = runpy.run_path(str(ROOT / "docs" / "pages.py"))
WRITTEN = {"API.md", "TREE.md"}  # from the source, when the site is built
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def nav(entries: list) -> list[str]:
    """The pages of mkdocs.yml's navigation."""
    values = [value for entry in entries for value in entry.values()]
    return [page for value in values for page in (nav(value) if isinstance(value, list) else [value])]


def test_every_page_is_in_the_navigation():
    listed = Counter(nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert listed == Counter([*(path.name for path in (ROOT / "docs").glob("*.md")), *WRITTEN])


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)\s:#]+)(?:#([\w-]+))?\)", path.read_text())
    for target, anchor in links:
        linked = path.parent / target
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_module_says_in_one_sentence_what_it_is_for():
    rows = re.findall(r"^\| `(\w+\.py)` \| (.*) \|$", PAGES["tree"](), re.MULTILINE)
    assert len(rows) == sum(path.name != "__init__.py" for path in PAGES["modules"]())
    assert [name for name, purpose in rows if not purpose.endswith((".", "?")) or not 15 <= len(purpose) <= 200] == []
    assert [purpose for purpose, count in Counter(purpose for _, purpose in rows).items() if count > 1] == []


def test_every_public_name_is_in_the_reference_and_has_a_docstring():
    documented = set(re.findall(r"^::: (\S+)$", PAGES["api"](), re.MULTILINE))
    names = {f"ldmprobe.{name}": ldmprobe for name in ldmprobe.__all__ if name != "__version__"}
    names |= {f"ldmprobe.callbacks.{name}": ldmprobe.callbacks for name in ldmprobe.callbacks.__all__}
    assert documented == set(names)
    assert [name for name, module in names.items() if not getattr(module, name.rpartition(".")[2]).__doc__] == []


def test_docstrings_are_markdown():
    roles = re.compile(r":(class|func|meth|mod|data|attr):`")
    assert [path.name for path in PAGES["modules"]() if roles.search(path.read_text())] == []


@pytest.mark.parametrize("word", ["log-SNR", "Ideal", "Skill", "Nats", "Residual", "Gain"])
def test_the_glossary_has_the_words_of_the_plots(word):
    assert re.search(rf"^\*\*.*{word}.*\*\*$", (ROOT / "docs" / "GLOSSARY.md").read_text(), re.MULTILINE)
