"""The page of a stranger's records: their text stays text, and nothing of theirs is loaded or run."""

import dataclasses
import io
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import chain

import pytest
from PIL import Image

from ldmprobe import Metric, RecordStore, write_report
from ldmprobe.tracking.report import report_html

ATTACK = "</script></title></pre><script>document.title = 'broken in'</script><img src=x onerror=\"document.title = 'broken in'\">"


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, its scripts, its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag = self.elements[-1][0]
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif tag != "style":
            self.text += data


def hostile(records):
    """The records of a run, with an attack in every text that a stranger may choose, and no PNG among the images."""
    for record in chain.from_iterable(records.values()):
        texts = {ATTACK: ATTACK, "summary": ATTACK, "pca_basis": ATTACK, "num_samples": ATTACK, "caption": [ATTACK]}
        curves = {f"{name}{ATTACK}": curve for name, curve in record.curves.items()}
        metrics = [Metric(name, ATTACK, ATTACK, ATTACK, shown="headline", pool="mean") for name in (ATTACK, *curves)]
        yield dataclasses.replace(
            record,
            created=ATTACK,
            scalars={**record.scalars, ATTACK: 1.0},
            curves={**record.curves, **curves},
            metrics=(*record.metrics, *metrics),
            images={name: [ATTACK.encode(), *images[1:]] for name, images in record.images.items()},
            provenance={**record.provenance, **texts},
            fingerprints={**record.fingerprints, ATTACK: ATTACK},
        )


@pytest.fixture(scope="module")
def hostile_page(records, tmp_path_factory):
    store = RecordStore(tmp_path_factory.mktemp("theirs") / ATTACK.replace("/", "\u2215"))
    for record in hostile(records):
        store.append(record)
    (store.folder.parent / "config.yaml").write_text(f"caption: {ATTACK}")
    return write_report(store.folder.parent, store.folder.parent.parent / "report.html")


def test_a_strangers_text_stays_text(hostile_page, run_dir, tmp_path):
    theirs, ours = Page(hostile_page.read_text()), Page(write_report(run_dir, tmp_path / "r.html").read_text())
    assert [tag for tag, _ in theirs.elements if tag in ("img", "title")] == [
        tag for tag, _ in ours.elements if tag in ("img", "title")
    ]
    assert not any(name.startswith("on") for _, attributes in theirs.elements for name in attributes)
    assert theirs.scripts == ours.scripts
    assert theirs.text.count(ATTACK) >= 10


def test_the_page_has_nowhere_to_load_from(hostile_page):
    page = Page(hostile_page.read_text())
    links = ("src", "href", "srcset", "action", "formaction", "data", "poster", "xlink:href", "background", "ping")
    targets = [attributes[name] for _, attributes in page.elements for name in links if name in attributes]
    assert targets
    assert all(re.match("data:image/(png|webp);base64,|#(term-[a-z-]+|configuration)$", target) for target in targets)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    assert not re.search(
        r"url\((?!data:|#)|@import", "".join(re.findall(r"<style>(.*?)</style>", hostile_page.read_text(), re.DOTALL))
    )
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'nonce-")
    nonces = {attributes.get("nonce") for tag, attributes in page.elements if tag == "script"}
    assert len(nonces) == 1
    assert f"'nonce-{nonces.pop()}'" in policy


def test_only_pngs_of_a_sane_size_are_shown(records):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    last = records["ddim"][-1]
    good = last.images["samples"][0]
    record = dataclasses.replace(last, images={"samples": [svg, bomb.getvalue(), good[:40], good]})
    sources = [
        a["src"] for tag, a in Page(report_html([record], None, "run")).elements if tag == "img" and "class" not in a
    ]
    assert [len(source) > len("data:image/png;base64,") for source in sources] == [False, False, False, True]


@pytest.mark.skipif(not shutil.which("chromium") and "CI" not in os.environ, reason="needs chromium")
@pytest.mark.parametrize("whose", ["theirs", "ours"])
def test_a_browser_draws_the_charts_and_runs_no_strangers_script(whose, hostile_page, run_dir, tmp_path):
    page = hostile_page if whose == "theirs" else write_report(run_dir, tmp_path / "report.html")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    done = subprocess.run(
        ["chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout).group(1)
    assert title.endswith("· ldmprobe")
    assert done.stdout.count('class="plot"') >= 11
    assert done.stdout.count('class="tip"') == 1  # the script has run to its end
    assert "Content Security Policy" not in done.stderr
    assert "Uncaught" not in done.stderr
