"""Models by name, fetched by the real huggingface_hub from a server of the test that speaks as the hub does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from memsim.errors import InputError
from memsim.weights import cache
from memsim.weights.cache import find_model
from memsim.weights.readers.hub import fetch, is_hub_id
from toy_checkpoints import TOY, silent, write_checkpoint

SHA = "1234567890abcdef1234567890abcdef12345678"


@contextmanager
def served(directory) -> Iterator[str]:
    """Serve the files of ``directory`` as the repository ``toy/model``; yield the server's address."""

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_HEAD(self):
            self.do_GET(send_body=False)

        def do_GET(self, send_body=True):
            path = self.path.partition("?")[0]
            names = sorted(file.name for file in directory.iterdir())
            if path.startswith("/api/models/toy/model/revision/"):
                info = {"id": "toy/model", "sha": SHA, "siblings": [{"rfilename": name} for name in names]}
                self.reply(json.dumps(info).encode(), send_body)
            elif path.startswith("/api/models/toy/model/tree/"):
                sizes = {name: (directory / name).stat().st_size for name in names}
                tree = [{"type": "file", "path": n, "size": sizes[n], "oid": self.tag(n)} for n in names]
                self.reply(json.dumps(tree).encode(), send_body)
            elif path.startswith("/toy/model/resolve/") and path.rpartition("/")[2] in names:
                name = path.rpartition("/")[2]
                self.reply((directory / name).read_bytes(), send_body, ETag=f'"{self.tag(name)}"')
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def tag(self, name):
            return hashlib.sha1((directory / name).read_bytes()).hexdigest()

        def reply(self, body, send_body, **headers):
            self.send_response(200)
            for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": SHA, **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if send_body:
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def pack(name, out, home, **environment):
    """Run ``memsim pack``, in a process of its own: huggingface_hub reads its settings when it is imported."""
    settings = os.environ | {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | environment
    command = [sys.executable, "-m", "memsim", "pack", name, str(out), "--json", "-"]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60)


def test_a_model_is_fetched_once_and_found_again_without_a_connection(tmp_path):
    source = write_checkpoint(tmp_path / "source", TOY, shards=2)
    (source / "tokenizer.json").write_text("{}")
    (source / "consolidated.safetensors").write_bytes(b"a second copy, in another format")
    with served(source) as address:
        done = pack("toy/model", tmp_path / "out", tmp_path / "home", HF_ENDPOINT=address)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["tokenizer"]
    assert len(record["tensors"]) == 15
    assert "fetching toy/model from the Hugging Face hub" in done.stderr
    assert not list((tmp_path / "home").rglob("consolidated*"))
    again = pack("toy/model", tmp_path / "again", tmp_path / "home", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["model_hash"] == record["model_hash"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "outgoing traffic has been disabled"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "ConnectError"),  # the discard port: nobody listens
    ],
    ids=["offline", "refused"],
)
def test_offline_is_one_line(tmp_path, environment, message):
    done = pack("toy/model", tmp_path / "out", tmp_path / "home", **environment)
    assert (done.returncode, done.stdout) == (1, "")
    fetching, error = done.stderr.splitlines()
    assert error.startswith("memsim: cannot fetch 'toy/model' from the Hugging Face hub, and neither its cache nor")
    assert message in error
    assert error.endswith("check the name and the connection, or give a local path")
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_is_one_line(tmp_path):
    with served(tmp_path) as address:
        done = pack("toy/other", tmp_path / "out", tmp_path / "home", HF_ENDPOINT=address)
    assert done.returncode == 1
    assert "memsim: cannot fetch 'toy/other' from the Hugging Face hub" in done.stderr.splitlines()[-1]


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"'toy/model' is no preset or path here; .* `pip install 'memsim\[hub\]'`"):
        fetch("toy/model", silent)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B", "a/b/c-Q4_0.gguf", "a/b/sub/c.gguf"])
def test_names_of_the_hub(name):
    assert is_hub_id(name)


OTHERS = ["qwen", "./a/b", "../b", "a/..", "/a/b", "a/b/c", "a/b/../c.gguf", "a/b\n", "a//b", "a/b/"]


@pytest.mark.parametrize("name", OTHERS)
def test_other_names(name):
    assert not is_hub_id(name)


def test_a_local_path_is_preferred_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "toy" / "model", TOY)
    monkeypatch.setattr(cache, "fetch", None)
    assert find_model("toy/model", silent)[1] == "model"
