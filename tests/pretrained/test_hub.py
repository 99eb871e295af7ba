"""Pipelines that are not on this machine: what is said of the hub, and its cache."""

import re
import shutil
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from huggingface_hub import close_session

from ldmprobe.pretrained.load import load_pipeline
from ldmprobe.pretrained.source import Source
from tests.helpers import refused
from tests.pipelines import saved


@pytest.mark.parametrize("name", ["/no/such/folder/at/all", "runs/digits/nothing", "./nothing", "not a name"])
def test_a_folder_that_is_nowhere_is_refused(name):
    with refused(r"there is no such folder here, and it is no hub id \(`owner/name`\)"):
        load_pipeline(name)


def test_a_mistyped_folder_is_told_without_asking_the_hub(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with refused(r"there is a folder 'models' here, but no 'mine' in it\. If you mean the"):
        load_pipeline("models/mine")
    with refused("not in the hub's cache"):  # as the message says
        load_pipeline(Source("models/mine", revision="main"))


def test_a_hub_that_does_not_answer_is_told_by_the_connections_error(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free again when it is asked
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its attempts
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    close_session()
    try:
        with refused(r"and the hub could not be reached \(.*refused\)"):
            load_pipeline("no/such-pipeline")
    finally:
        close_session()


@pytest.mark.parametrize("source", [{}, {"revision": "refs/pr/1"}, {"local_files_only": True}])
def test_a_hub_id_out_of_reach_is_refused_with_how_to_get_it(source):
    at = f" --revision {source['revision']}" if "revision" in source else ""
    why = "`local_files_only`" if "local_files_only" in source else "HF_HUB_OFFLINE is set"
    expected = rf"not in the hub's cache .* was not to be asked \({why}\).*run `hf download no/such-pipeline{at}`, or with `--local-dir DIR`"
    with refused(expected):
        load_pipeline(Source("no/such-pipeline", **source))


class Hub(BaseHTTPRequestHandler):
    """A hub that refuses, as the real one does."""

    def do_GET(self) -> None:
        code, status = "RepoNotFound", 404
        if "/old/" in self.path:
            code = "RevisionNotFound"
        if "/gated/" in self.path:  # whose list of files is public
            code, status = ("GatedRepo", 403) if "/resolve/" in self.path else ("", 200)
        answer = b'[{"type": "file", "path": "model_index.json", "size": 1, "oid": "0"}]' if status == 200 else b"{}"
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer if self.command == "GET" else b"")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gated/pipeline", "access to it is gated. Accept its terms on https://huggingface.co/gated/pipeline, then log in by `hf auth"),
        ("missing/pipeline", "no repository of this name, or a private one: check the name"),
        ("old/pipeline", "the hub's old/pipeline has no revision 'v9'; leave `revision` out, or name a branch, tag or commit"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_told_with_what_to_do(name, text, tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    for constant, value in {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path),
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{constant}", value)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    close_session()
    try:
        with refused(re.escape(text)):
            load_pipeline(Source(name, revision="v9"))
    finally:
        server.shutdown()
        close_session()


def test_a_cached_hub_pipeline_is_read_without_the_hub(tmp_path, monkeypatch):
    """In the layout of the hub's cache: a snapshot folder for each commit, and what each branch points to."""
    commit = "0" * 40
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(saved("DDIMPipeline"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_pipeline("someone/tiny").latent_shape == (3, 8, 8)
    assert load_pipeline(Source("someone/tiny", local_files_only=True, revision="main")).latent_shape == (3, 8, 8)
    shutil.rmtree(repository / "snapshots" / commit / "unet")
    with refused("someone/tiny lacks its unet"):
        load_pipeline("someone/tiny")
