"""What is installed is what is here, and the command answers at once."""

import subprocess
import sys
import tomllib
from pathlib import Path

import ldmprobe

ROOT = Path(__file__).resolve().parent.parent


def test_every_package_is_listed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "ldmprobe").rglob("__init__.py")}
    found = {".".join(folder.parts) for folder in folders}
    assert listed == found | {"ldmprobe.callbacks"}


def test_callbacks_are_one_module_whether_or_not_the_link_is_there():
    import ldmprobe.callbacks

    assert (ROOT / "ldmprobe" / "callbacks").is_symlink()
    assert Path(ldmprobe.callbacks.__file__).resolve() == ROOT / "callbacks" / "__init__.py"


def test_every_public_name_can_be_imported():
    for name in ldmprobe.__all__:
        assert getattr(ldmprobe, name) is not None


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from ldmprobe.cli import main\n"
        "try: main([sys.argv[1]])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'lightning', 'diffusers', 'datasets', 'wandb', 'numpy', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for flag in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "ldmprobe" in done.stdout


def test_shipped_autoencoder_is_small():
    files = (ROOT / "ldmprobe" / "models" / "digits_autoencoder").iterdir()
    assert sum(path.stat().st_size for path in files if path.is_file()) < 300_000
