"""Downloads end whole or in one line, and leave no half file: a small server on this machine, nothing of a network."""

import contextlib
import hashlib
import http.server
import io
import os
import shutil
import socket
import threading
import time
import zipfile

from conftest import ROOT
from lab.corpus import BABYLM_FILES
from lab.files import UserError
from lab.run.data import load_data
from lab.settings import load_config
from lab.text import sources
from lab.text.sources import DownloadError
import prepare
from stand_ins import load_json

import pytest

CONTENT = bytes(range(256)) * 3000  # 768 kB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TINY = """data.name=t data.sources=[simple_wiki,childes] tokenizer.vocab_size=330 data.validation_kb=2
data.pocket_words=5000""".split()


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """A working folder with config.yaml; no pauses between tries, no proxies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setenv("NO_PROXY", "*")
    shutil.copy(ROOT / "config.yaml", tmp_path)


@contextlib.contextmanager
def serve(*script):
    """Calls the next function of `script` with the handler for each GET (the last one for ever); counts them."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked += 1
            script[min(server.asked, len(script)) - 1](self)

        def do_HEAD(self):
            good(b"")(self)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.asked = 0
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def good(content=CONTENT, status=200, most=None):
    """The content and its true length. `most`: hang up after so many bytes of it."""

    def reply(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:most])

    return reply


CUT_OFF = good(most=300_000)


@pytest.fixture
def nobody():
    """An address where nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{s.getsockname()[1]}"


def get(server, sha256=None):
    sources.download(f"{server.url}/file", "d/f", sha256)


def written():
    """What is in the one file of the folder of downloads, or None."""
    files = os.listdir("d") if os.path.exists("d") else []
    assert files in ([], ["f"])
    return open("d/f", "rb").read() if files else None


@pytest.mark.parametrize(
    "fault, words",
    [
        (CUT_OFF, "no connection .ChunkedEncodingError"),
        (good(status=503), "the server answers 503"),
        (good(b"another file"), "SHA256 hash of downloaded file .f. does not match"),
    ],
)
def test_a_fault_is_named_if_it_lasts_and_forgiven_if_not(fault, words):
    with serve(fault) as server, pytest.raises(DownloadError, match=f"{server.url}/file: {words}"):
        get(server, SHA256)
    assert server.asked == sources.TRIES and written() is None
    with serve(fault, good()) as server:
        get(server, SHA256)
        get(server, SHA256)  # the file at hand is as it should be: not asked again
    assert server.asked == 2 and written() == CONTENT


def test_a_damaged_file_is_downloaded_again_and_one_of_your_own_is_used():
    os.mkdir("d")
    with open("d/f", "wb") as f:
        f.write(b"mine")
    with serve(good()) as server:
        get(server)  # no checksum is known
        assert server.asked == 0 and written() == b"mine"
        get(server, SHA256)
        assert server.asked == 1 and written() == CONTENT


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_ctrl_c_and_a_full_disk_leave_nothing(monkeypatch, error):
    def stop(_, url, path, pooch):
        with open(path, "wb") as f:
            f.write(CONTENT[:1000])
        raise error

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", stop)
    with serve(good()) as server, pytest.raises(type(error)):
        get(server)
    assert written() is None


@pytest.mark.parametrize("url", [None, "no address", "http://x:port/"])
def test_nobody_there_and_no_address(nobody, url):
    with pytest.raises(DownloadError, match="no connection"):
        sources.download(url or nobody, "d/f")
    assert written() is None


# ---------------------------------------------------------------------------------------------------- BabyLM and BLiMP


def archive(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, content in files.items():
            z.writestr(name, content)
    return out.getvalue()


def text(animal):
    return b"".join(b"The %s number %d chase the mice.\n" % (animal, i) for i in range(3000))


PAIR = b'{"sentence_good": "a"}\n'
PAIRS = archive({"data/": b"", "data/one.jsonl": PAIR, "data/two.jsonl": b"{}\n", "README": b"x"})
FILES = {"/b/simple_wiki.train.txt": text(b"cats"), "/b/childes.train.txt": text(b"dogs"), "/BLiMP.zip": PAIRS}


@pytest.fixture
def mirror(monkeypatch):
    """A dictionary {path: content} that a server offers; prepare.py's addresses are its own."""
    files = FILES.copy()

    def reply(handler):
        (good(files[handler.path]) if handler.path in files else good(b"sorry", 404))(handler)

    monkeypatch.setattr(sources, "BLIMP_SHA256", hashlib.sha256(PAIRS).hexdigest())
    with serve(reply) as server:
        monkeypatch.setenv("SLLAMA_LAB_BABYLM_URL", server.url + "/b")
        monkeypatch.setenv("SLLAMA_LAB_BABYLM_100M_URL", server.url + "/b")
        monkeypatch.setenv("SLLAMA_LAB_BLIMP_URL", server.url + "/BLiMP.zip")
        yield files


def make(*overrides):
    prepare.main([*TINY, *overrides])
    return load_json("data/t/meta.json")


def test_babylm_and_blimp(mirror, capsys):
    meta = make()
    assert meta["source"] == "babylm" and meta["corpus"] == "BabyLM 2026 strict-small"
    assert [source["name"] for source in meta["sources"]] == ["simple_wiki", "childes"]
    assert sorted(os.listdir("data/blimp")) == ["one.jsonl", "two.jsonl"]
    assert open("data/blimp/one.jsonl", "rb").read() == PAIR
    mirror.clear()  # from here on without a network
    make()
    assert "up to date" in capsys.readouterr().out
    make("data.seed=1", "--replace")
    mirror.update(FILES)
    assert make("data.source=babylm-100m", "--replace")["corpus"] == "BabyLM 2026 strict"
    assert sorted(os.listdir("data/downloads")) == ["BLiMP.zip", "babylm", "babylm-100m"]


@pytest.mark.slow
def test_auto_falls_back_and_says_so(mirror, capsys):
    mirror.clear()
    meta = make("tokenizer.vocab_size=32000")
    out = capsys.readouterr().out
    assert "BABYLM CANNOT BE DOWNLOADED" in out and "404" in out
    assert meta["source"] == "pocket" and meta["pairs"] == "pairs" and os.listdir("data/t/pairs")
    assert meta["corpus"].startswith("Pocket English (synthetic") and meta["corpus"] in out
    assert 330 < meta["vocab_size"] < 32000  # no text of this size supports 32000

    mirror.update(FILES)  # the host is back
    assert make("tokenizer.vocab_size=32000") == meta and "--replace" in capsys.readouterr().out
    meta = make("--replace")
    assert meta["source"] == "babylm" and meta["pairs"] is None and not os.listdir("data/t/pairs")

    mirror.clear()  # and gone again, and so are the downloads
    shutil.rmtree("data/downloads/babylm")
    assert make() == meta
    with pytest.raises(UserError, match="404.*data.source=pocket"):  # Pocket English does not replace BabyLM unasked
        make("data.seed=5", "--replace")
    with pytest.raises(UserError, match="404.*data.source=pocket"):
        make("data.source=babylm", "data.name=b")
    assert load_json("data/t/meta.json") == meta


@pytest.mark.parametrize("blimp, words", [(None, "404"), (archive({"data/one.jsonl": b"x"}), "does not match")])
def test_babylm_without_blimp_is_a_notice(mirror, capsys, blimp, words):
    mirror["/BLiMP.zip"] = blimp
    if not blimp:
        del mirror["/BLiMP.zip"]
    make("data.source=babylm")
    out = capsys.readouterr().out
    assert "THERE IS NO BLIMP" in out and words in out
    assert not os.path.exists("data/blimp") and not os.path.exists("data/downloads/BLiMP.zip")


def test_a_run_may_ask_for_all_sources_of_babylm(mirror):
    """null means all of them, when it is said to train.py too."""
    mirror |= {f"/b/{name}.train.txt": text(name.encode()) for name in BABYLM_FILES}
    make("data.source=babylm")
    config = load_config("sllama", ["data.name=t", "data.sources=null"])
    with pytest.raises(UserError, match="was prepared with data.sources=.*'simple_wiki', 'childes'"):
        load_data(config)
    make("data.source=babylm", "data.sources=null", "--replace")
    assert len(load_data(config)[2]["sources"]) == 6


def test_pairs_of_ones_own_need_no_blimp(mirror, capsys):
    os.makedirs("data/blimp")
    open("data/blimp/mine.csv", "w").close()
    make()
    assert "BLIMP" not in capsys.readouterr().out and not os.path.exists("data/downloads/BLiMP.zip")


def test_blimp_replaces_no_folder(mirror, capsys):
    os.makedirs("data/blimp")
    open("data/blimp/notes.txt", "w").close()
    make()
    assert "THERE IS NO BLIMP" in capsys.readouterr().out and os.listdir("data/blimp") == ["notes.txt"]
    assert sorted(os.listdir("data")) == ["blimp", "downloads", "t"]
