"""What comes from outside does not steer the terminal, nor fill it."""

import subprocess
import sys
import unicodedata

import pytest

from ldmprobe.io.plain_text import plain

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\r\u202e\u200f\x00\x7f"


def test_only_what_prints_as_itself_is_left():
    everything = "".join(map(chr, range(0x3000))) + "日本 é α_t ≥ …"
    shown = plain(everything.replace("\n", ""))
    assert not {unicodedata.category(character) for character in shown.replace("\t", "")} & {
        "Cc",
        "Cf",
        "Co",
        "Cn",
        "Zl",
        "Zp",
    }
    assert plain("日本 é α_t ≥ …\nsecond\tline") == "日本 é α_t ≥ …\nsecond\tline"
    assert plain("a\rb\x1b[31m") == "a?b?[31m"


@pytest.mark.parametrize("text", ["x" * 10**6, "x\n" * 10**6], ids=["a line", "many"])
def test_a_long_message_is_cut_in_the_middle(text):
    shown = plain(f"begins {text} ends")
    assert len(shown) < 21_000
    assert shown.startswith("begins x")
    assert shown.endswith("ends")
    assert "characters left out" in shown


SCRIPT = """
import logging, sys, warnings
from ldmprobe.cli import main
escapes = sys.argv[1]
assert main(["report", "no" + escapes + "run"]) == 2
log = logging.getLogger("lightning")
log.warning("logged %s", escapes)
warnings.warn("warned " + escapes)
try:
    raise ValueError("traced " + escapes)
except ValueError:
    log.error("with a traceback", exc_info=True)
raise RuntimeError("died of " + escapes * 100_000)
"""


def test_errors_logs_warnings_and_tracebacks_of_the_command_line():
    escapes = ESCAPES.replace("\x00", "")
    done = subprocess.run([sys.executable, "-c", SCRIPT, escapes], capture_output=True, text=True, check=False)
    for text in ("ldmprobe: error: ", "logged ", "warned ", "ValueError: traced ", "RuntimeError: died of "):
        assert text in done.stderr
    assert all(character.isprintable() or character in "\n\t" for character in done.stderr)
    assert len(done.stderr) < 30_000
