"""Downloads end whole or in one line, and leave no half file: a small server on this machine, nothing of a network."""

import contextlib
import hashlib
import http.server
import io
import json
import os
import socket
import threading
import time
import zipfile

from conftest import ROOT, command, refused
from lab.files import UserError
from lab.text import download
from lab.text.download import DownloadError
import prepare

import pytest
import yaml

CONTENT = bytes(range(256)) * 3000  # 768 kB
TEXT = b"".join(b"The cats number %d chase the mice.\n" % i for i in range(3000))


@pytest.fixture(autouse=True)
def impatient(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.lower().endswith("_proxy") or name.startswith("SLLAMA_LAB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "*")


@contextlib.contextmanager
def serve(*script):
    """Calls the next function of `script` with the handler for each GET (the last one for ever); counts them."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked += 1
            script[min(server.asked, len(script)) - 1](self)

        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked = 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def good(content=CONTENT, status=200, most=None):
    """The content and its true length. `most`: hang up after so many bytes of it."""

    def reply(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:most])

    return reply


def get(server, **kwargs):
    download.download(server.url + "/file", "d/f", **kwargs)


def whole(content=CONTENT):
    """The file is there, remembered, and nothing is left beside it."""
    with open("d/f", "rb") as f:
        assert f.read() == content
    assert json.load(open("d/checksums.json")) == {"f": hashlib.sha256(content).hexdigest()}
    assert sorted(os.listdir("d")) == ["checksums.json", "f"]


def nothing_is_left():
    assert not os.path.exists("d") or not os.listdir("d")


def test_plain():
    with serve(good()) as server:
        get(server)
        whole()
        get(server)  # the file at hand is as it was: not asked again
        assert server.asked == 1


def test_a_changed_file_is_downloaded_again():
    with serve(good()) as server:
        get(server)
        with open("d/f", "ab") as f:
            f.write(b"!")
        get(server)
        whole()


def test_a_file_put_there_by_hand_is_used():
    os.mkdir("d")
    with open("d/f", "wb") as f:
        f.write(b"mine")
    with serve(good()) as server:
        get(server)
        assert server.asked == 0
    whole(b"mine")


@pytest.mark.parametrize(
    "first", [good(most=300_000), good(status=503), good(status=429)], ids=["cut off", "503", "429"]
)
def test_one_failure_is_forgiven(first):
    with serve(first, good()) as server:
        get(server)
        whole()
        assert server.asked == 2


@pytest.mark.parametrize(
    "always, words",
    [
        (good(most=300_000), "given up after 4 tries"),
        (good(status=500), "given up after 4 tries .the server answers 500"),
        (good(status=404), "the server answers 404"),
        (good(b"<!DOCTYPE html><html>Please log in</html>"), "a web page came instead"),
    ],
)
def test_what_fails_for_good_leaves_nothing(always, words):
    with serve(always) as server:
        with pytest.raises(DownloadError, match=f"{server.url}/file: {words}"):
            get(server)
    nothing_is_left()


def test_wrong_checksum():
    with serve(good()) as server:
        with pytest.raises(DownloadError, match="wrong checksum"):
            get(server, known=hashlib.sha256(b"the right one").hexdigest())
        assert server.asked == 1
    nothing_is_left()


def test_a_file_that_changed_on_the_server_is_refused():
    """Its checksum is that of the first download, until the user forgets it."""
    with serve(good(), good(b"another text")) as server:
        get(server)
        os.unlink("d/f")
        with pytest.raises(DownloadError, match="wrong checksum"):
            get(server)
        assert os.listdir("d") == ["checksums.json"]
        os.unlink("d/checksums.json")
        get(server)
        whole(b"another text")


def test_nobody_listens():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadError, match="cannot be reached .*refused"):
            download.download(f"http://127.0.0.1:{s.getsockname()[1]}/x", "d/f")
    nothing_is_left()


@pytest.mark.parametrize("url", ["no address", "ftp//x", "", "http://[", "http://x:port/"])
def test_no_address(url):
    with pytest.raises(DownloadError, match="cannot be reached"):
        download.download(url, "d/f")


def test_a_name_look_up_that_hangs_is_noticed_in_time(monkeypatch):
    assert download.TIMEOUT < 10
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(20))
    start = time.monotonic()
    with pytest.raises(DownloadError, match="cannot be reached .no answer"):
        download.download("http://host.invalid/x", "d/f")
    assert time.monotonic() - start < 10
    over.set()


# ---------------------------------------------------------------------------------------------------- BabyLM and BLiMP


def archive(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in files.items():
            z.writestr(name, content)
    return out.getvalue()


PAIR = b'{"sentence_good": "a"}\n'
PAIRS = archive({"data/": b"", "data/one.jsonl": PAIR, "data/two.jsonl": b"{}\n", "README": b"x"})
FILES = {"/b/simple_wiki.train.txt": TEXT, "/b/childes.train.txt": TEXT.replace(b"cats", b"dogs"), "/BLiMP.zip": PAIRS}


@pytest.fixture
def mirror(monkeypatch):
    """A dictionary {path: content} that a server offers; prepare.py's addresses are its own."""
    files = {}

    def reply(handler):
        (good(files[handler.path]) if handler.path in files else good(b"sorry", 404))(handler)

    monkeypatch.setattr(prepare, "BLIMP_SHA256", hashlib.sha256(PAIRS).hexdigest())
    with serve(reply) as server:
        monkeypatch.setenv("SLLAMA_LAB_BABYLM_URL", server.url + "/b")
        monkeypatch.setenv("SLLAMA_LAB_BLIMP_URL", server.url + "/BLiMP.zip")
        yield files


SMALL = ["data.name=t", "tokenizer.vocab_size=330", "data.validation_kb=2", "data.pocket_words=5000"]


@pytest.fixture(autouse=True)
def two_sources():
    """config.yaml with two of BabyLM's sources, in the current folder."""
    tree = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    tree["data"]["sources"] = ["simple_wiki", "childes"]
    with open("config.yaml", "w", encoding="utf-8") as f:
        yaml.safe_dump(tree, f)


def make(*overrides):
    prepare.main([*SMALL, *overrides])
    return json.load(open("data/t/meta.json"))


def test_babylm_and_blimp(mirror, capsys):
    mirror.update(FILES)
    meta = make()
    assert (meta["source"], meta["corpus"]) == ("babylm", "BabyLM 2026 strict-small")
    assert [source["name"] for source in meta["sources"]] == ["simple_wiki", "childes"]
    assert sorted(os.listdir("data/blimp")) == ["one.jsonl", "two.jsonl"]
    assert open("data/blimp/one.jsonl", "rb").read() == PAIR
    mirror.clear()  # from here on without a network
    make()
    assert "up to date" in capsys.readouterr().out
    make("data.seed=1", "--replace")
    assert sorted(os.listdir("data/downloads")) == ["BLiMP.zip", "babylm", "checksums.json"]


def test_the_strict_track_is_a_corpus_of_its_own(mirror, monkeypatch):
    monkeypatch.setenv("SLLAMA_LAB_BABYLM_100M_URL", os.environ["SLLAMA_LAB_BABYLM_URL"])
    monkeypatch.delenv("SLLAMA_LAB_BABYLM_URL")
    mirror.update(FILES)
    meta = make("data.source=babylm-100m")
    assert (meta["source"], meta["corpus"]) == ("babylm-100m", "BabyLM 2026 strict")
    with open("data/downloads/babylm-100m/childes.train.txt", "rb") as f:
        assert f.read() == FILES["/b/childes.train.txt"]


def test_auto_falls_back_and_says_so(mirror, capsys):
    meta = make("tokenizer.vocab_size=32000")
    out = capsys.readouterr().out
    assert "BABYLM CANNOT BE DOWNLOADED" in out and "404" in out
    assert meta["source"] == "pocket"
    assert meta["corpus"].startswith("Pocket English (synthetic") and meta["corpus"] in out
    assert 330 < meta["vocab_size"] < 32000  # no text of this size supports 32000
    assert meta["pairs"] == "pairs" and os.listdir("data/t/pairs")

    mirror.update(FILES)  # the host is back
    assert make("tokenizer.vocab_size=32000") == meta and "--replace" in capsys.readouterr().out
    meta = make("--replace")
    assert meta["source"] == "babylm" and meta["pairs"] is None and not os.listdir("data/t/pairs")

    mirror.clear()  # and gone again, and so are the downloads
    for name in os.listdir("data/downloads/babylm"):
        os.unlink("data/downloads/babylm/" + name)
    assert make() == meta
    with pytest.raises(UserError, match="made from BabyLM"):
        make("data.seed=5", "--replace")
    assert json.load(open("data/t/meta.json")) == meta


def test_without_a_network_few_lines_say_so(tmp_path):
    """As a user without one sees it: nobody listens at the address."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{s.getsockname()[1]}"
        env = {"SLLAMA_LAB_BABYLM_URL": url, "SLLAMA_LAB_BLIMP_URL": url, "NO_PROXY": "*"}
        result = command("prepare.py", *SMALL, cwd=tmp_path, env=env)
        assert result.returncode == 0 and "POCKET ENGLISH" in result.stdout and result.stderr == ""
        assert len(result.stdout.splitlines()) < 25
        babylm = command("prepare.py", *SMALL, "data.source=babylm", "--replace", cwd=tmp_path, env=env)
        refused(babylm, url, "data.source=pocket")


def test_an_explicit_source_never_falls_back(mirror):
    with pytest.raises(UserError, match="data.source=pocket"):
        make("data.source=babylm")
    assert not os.path.exists("data/t")


@pytest.mark.parametrize("blimp, words", [(None, "404"), (archive({"data/one.jsonl": b"x"}), "wrong checksum")])
def test_babylm_without_blimp_is_a_notice(mirror, capsys, blimp, words):
    mirror.update(FILES)
    del mirror["/BLiMP.zip"]
    if blimp:
        mirror["/BLiMP.zip"] = blimp
    make("data.source=babylm")
    out = capsys.readouterr().out
    assert "THERE IS NO BLIMP" in out and words in out
    assert not os.path.exists("data/blimp") and not os.path.exists("data/downloads/BLiMP.zip")


def test_pocket_never_asks_the_network(monkeypatch):
    def no_network(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    make("data.source=pocket")
    assert os.listdir("data") == ["t"]


def test_unknown_babylm_source_is_suggested():
    with pytest.raises(UserError, match="did you mean `childes`"):
        make("data.sources=[childs]")


@pytest.mark.parametrize(
    "content", [PAIRS[:200], b"", PAIRS.replace(b"one", b"eno", 1)], ids=["cut off", "nothing", "changed"]
)
def test_a_broken_archive_leaves_nothing(content):
    with open("x.zip", "wb") as f:
        f.write(content)
    with pytest.raises(UserError, match="x.zip: a broken archive"):
        download.unpack("x.zip", "data/blimp")
    assert os.listdir("data") == []


def test_unpacking_writes_plain_names_and_only_into_its_folder():
    with open("x.zip", "wb") as f:
        f.write(archive({"../evil.jsonl": b"x", "data/../../evil.jsonl": b"x", "data/one.jsonl": b"x"}))
    os.makedirs("data/blimp")
    download.unpack("x.zip", "data/blimp")
    assert os.listdir("data") == ["blimp"] and os.listdir("data/blimp") == ["one.jsonl"]
    with pytest.raises(UserError, match="data/blimp: cannot be made"):
        download.unpack("x.zip", "data/blimp")  # what is there stays
