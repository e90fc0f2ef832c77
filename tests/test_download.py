"""A server on this machine that misbehaves in every way but one per test, and nothing else of a network."""
import contextlib
import hashlib
import http.server
import io
import json
import os
import re
import socket
import threading
import time
import zipfile

import pytest

import prepare
from lab import download
from lab.download import DownloadError
from lab.files import UserError

CONTENT = bytes(range(256)) * 3000                   # 768 kB
TEXT = b"".join(b"The cats number %d chase the mice.\n" % i for i in range(3000))


@pytest.fixture(autouse=True)
def impatient(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "TIMEOUT", 1.5)
    monkeypatch.setattr(download, "BACKOFF", 0.01)
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.lower().endswith("_proxy") or name.startswith("SLLAMA_LAB_"):
            monkeypatch.delenv(name)


class Server(http.server.ThreadingHTTPServer):
    """Calls the next function of `script` with the handler for each request (the last one for ever); keeps paths and headers."""
    daemon_threads = True

    def handle_error(self, *_):
        pass


@contextlib.contextmanager
def serve(*script):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            n = len(self.server.requests)
            self.server.requests.append((self.path, dict(self.headers)))
            self.close_connection = True
            script[min(n, len(script) - 1)](self)

        def log_message(self, *_):
            pass
    server = Server(("127.0.0.1", 0), Handler)
    server.requests, server.url = [], f"http://127.0.0.1:{server.server_port}/file"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def good(content=CONTENT, tag='"one"', ranges=True, send=None, length=True, status=None, **headers):
    """Answers like a good server: with ranges, an ETag and the length. `send`: only so many bytes of the body, then hang up."""
    def reply(handler):
        start = int(match[1]) if ranges and (match := re.match(r"bytes=(\d+)-", handler.headers.get("Range", ""))) else 0
        handler.send_response(status or (206 if start else 200))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if tag:
            handler.send_header("ETag", tag)
        if length:
            handler.send_header("Content-Length", str(len(content) - start))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content[start:][:send])
    return reply


def status(code, **headers):
    return good(b"sorry", status=code, tag=None, **headers)


def redirect(to):
    return status(302, Location=to)


def sleep(handler):
    time.sleep(4)


def stall(handler):
    good(send=1000)(handler)
    handler.wfile.flush()
    time.sleep(4)


def hang_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def garbage(handler):
    handler.wfile.write(b"\0\1\2 this is not HTTP\r\n\r\n")


def slow_headers(handler):
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for i in range(40):
            handler.wfile.write(b"X-%d: y\r\n" % i)
            time.sleep(0.1)


def whole(path, content=CONTENT):
    """The file is there, recorded, and nothing is left beside it."""
    assert open(path, "rb").read() == content
    assert json.load(open("d/checksums.json"))[os.path.basename(path)] == hashlib.sha256(content).hexdigest()
    assert sorted(os.listdir("d")) == ["checksums.json", os.path.basename(path)]


def get(server, **kwargs):
    download.download(server.url, "d/f", **kwargs)


def test_plain():
    with serve(good()) as server:
        get(server)
        whole("d/f")
        get(server)                                                     # verified by the recorded checksum, not asked for again
        assert len(server.requests) == 1


def test_a_changed_file_is_downloaded_again(capsys):
    with serve(good()) as server:
        get(server)
        with open("d/f", "ab") as f:
            f.write(b"!")
        get(server)
        whole("d/f")
        assert len(server.requests) == 2 and "downloading it again" in capsys.readouterr().out


def test_a_file_nobody_recorded_is_not_trusted():
    os.mkdir("d")
    open("d/f", "wb").write(b"something else")
    with serve(good()) as server:
        get(server)
        whole("d/f")


@pytest.mark.parametrize("first", [good(send=300_000), stall, hang_up, garbage, status(500), status(503), status(429), status(429, Retry_After="0"), status(408)],
                         ids=["truncated", "stalled", "hung up", "garbage", "500", "503", "429", "429 with a time", "408"])
def test_one_failure_is_forgiven(first):
    with serve(first, good()) as server:
        get(server)
        whole("d/f")
        assert len(server.requests) == 2


def test_resumes_where_it_broke():
    with serve(good(send=300_000), good(send=200_000), good()) as server:
        get(server)
        whole("d/f")
        starts = [headers.get("Range") for _, headers in server.requests]
        assert starts == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_run_resumes(monkeypatch):
    with serve(good(send=300_000)) as server, monkeypatch.context() as m:
        m.setattr(download, "ATTEMPTS", 1)
        with pytest.raises(DownloadError, match="ended after 300000 of 768000 bytes|broke after 300000"):
            get(server)
        assert sorted(os.listdir("d")) == ["f.part", "f.part.json"]
        url = server.url
    with serve(good()) as server:
        state = json.load(open("d/f.part.json"))
        json.dump(state | {"url": server.url}, open("d/f.part.json", "w"))     # the port differs, no more
        assert state["url"] == url
        get(server)
        whole("d/f")
        assert server.requests[0][1]["Range"] == "bytes=300000-"


@pytest.mark.parametrize("state", ["", "{", "[]", '{"url": "http://other", "tag": "x", "bytes": 768000}', None], ids=["empty", "broken", "list", "of another address", "none"])
def test_a_part_of_unknown_origin_is_not_continued(state):
    os.mkdir("d")
    open("d/f.part", "wb").write(b"x" * 1000)
    if state is not None:
        open("d/f.part.json", "w").write(state)
    with serve(good()) as server:
        get(server)
        whole("d/f")
        assert "Range" not in server.requests[0][1]


@pytest.mark.parametrize("second", [good(tag='"two"'), good(tag=None), good(CONTENT[:-1]), good(ranges=False),
                                    good(Content_Range="bytes 5-767999/768000", tag='"one"', status=206)],
                         ids=["another tag", "no tag", "another length", "ranges ignored", "another range"])
def test_a_file_that_changed_is_begun_again(second):
    with serve(good(send=300_000), second, good()) as server:
        get(server)
        whole("d/f")


@pytest.mark.parametrize("lost", [dict(tag=None), dict(length=False)])
def test_without_tag_or_length_nothing_is_resumed(lost):
    """Where the end of the connection is the end of the file, only the checksum tells a truncated one."""
    known = hashlib.sha256(CONTENT).hexdigest()
    with serve(good(send=300_000, **lost), good(**lost)) as server:
        with contextlib.suppress(DownloadError):
            get(server, known=known)
        get(server, known=known)
        whole("d/f")
        assert all("Range" not in headers for _, headers in server.requests)


def test_range_beyond_the_end():
    with serve(good(send=300_000), status(416), good()) as server:
        get(server)
        whole("d/f")
        assert "Range" not in server.requests[2][1]


def test_more_than_announced():
    with serve(lambda handler: good(CONTENT + b"!", length=False, Content_Length=str(len(CONTENT)))(handler)) as server:
        get(server)                                                     # HTTP ends the body at Content-Length
        whole("d/f")


def nothing_is_trusted(known=None):
    """A later download does not take what a failed one left behind."""
    assert not os.path.exists("d/f")
    with serve(good(b"the right one")) as server:
        get(server, known=known)
        whole("d/f", b"the right one")


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_a_final_no_is_not_repeated(code):
    with serve(status(code)) as server:
        with pytest.raises(DownloadError, match=f"{server.url}.*{code}"):
            get(server)
        assert len(server.requests) == 1
    nothing_is_trusted()


def test_circular_redirects():
    with serve(redirect("/file")) as server:
        with pytest.raises(DownloadError, match="302"):
            get(server)
    nothing_is_trusted()


def test_redirects_are_followed_with_the_range():
    with serve(redirect("/moved"), good(send=300_000), redirect("/moved"), good()) as server:
        get(server)
        whole("d/f")
        assert server.requests[3][1]["Range"] == "bytes=300000-"


@pytest.mark.parametrize("to", ["file:///etc/hostname", "nonsense://x", "http://"])
def test_redirects_elsewhere(to):
    with serve(redirect(to)) as server:
        with pytest.raises(DownloadError):
            get(server)
    nothing_is_trusted()


def test_wrong_checksum():
    known = hashlib.sha256(b"the right one").hexdigest()
    with serve(good()) as server:
        with pytest.raises(DownloadError, match="wrong checksum"):
            get(server, known=known)
        assert len(server.requests) == 1
    nothing_is_trusted(known)


def test_parts_that_do_not_fit_are_begun_again():
    """Same tag and length, other content: the checksum finds it, and the file is fetched whole."""
    with serve(good(b"x" * len(CONTENT), send=300_000), good(), good()) as server:
        get(server, known=hashlib.sha256(CONTENT).hexdigest())
        whole("d/f")
        assert "Range" not in server.requests[2][1]


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>Please log in</html>", b"\n <html>"])
def test_a_login_page_is_no_corpus(page):
    with serve(good(page)) as server:
        with pytest.raises(DownloadError, match="web page"):
            get(server)
    nothing_is_trusted()


@pytest.mark.parametrize("always", [good(send=1000, tag=None), status(500), stall], ids=["truncated", "500", "stalled"])
def test_gives_up(always, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 3)
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    with serve(always) as server:
        with pytest.raises(DownloadError, match="given up after 3 tries"):
            get(server)
        assert len(server.requests) == 3
    nothing_is_trusted()


def test_waits_as_told_but_not_for_ever(monkeypatch):
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    monkeypatch.setattr(download, "BACKOFF", 1)
    answers = [status(429, Retry_After="7"), status(503, Retry_After="99999"), status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), status(500), good()]
    with serve(*answers) as server:
        get(server)
    assert waits == [7, 30, 4, 8]


@pytest.mark.parametrize("silent", [sleep, slow_headers], ids=["accepts and stalls", "headers for ever"])
def test_silence_is_noticed_in_time(silent):
    with serve(silent) as server:
        start = time.monotonic()
        with pytest.raises(DownloadError, match="cannot be reached"):
            get(server)
        assert time.monotonic() - start < download.TIMEOUT + 1
    nothing_is_trusted()


def test_the_limit_is_ten_seconds():
    import importlib
    fresh = importlib.util.module_from_spec(spec := importlib.util.find_spec("lab.download"))
    spec.loader.exec_module(fresh)
    assert fresh.TIMEOUT < 10


def test_nobody_listens():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadError, match="cannot be reached"):
            download.download(f"http://127.0.0.1:{s.getsockname()[1]}/x", "d/f")


def test_a_backlog_that_never_accepts():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(0)
        with pytest.raises(DownloadError, match="cannot be reached"):
            download.download(f"http://127.0.0.1:{s.getsockname()[1]}/x", "d/f")


def test_a_name_look_up_that_hangs(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(4))
    start = time.monotonic()
    with pytest.raises(DownloadError, match="cannot be reached"):
        download.download("http://host.invalid/x", "d/f")
    assert time.monotonic() - start < download.TIMEOUT + 1


@pytest.mark.parametrize("url", ["no address", "ftp//x", "", "http://[", "http://x:port/"])
def test_no_address(url):
    with pytest.raises(DownloadError):
        download.download(url, "d/f")


def test_a_disk_that_cannot_be_written(tmp_path):
    (tmp_path / "d").write_text("a file where the folder should be")
    with serve(good()) as server, pytest.raises(UserError, match="cannot be written"):
        get(server)


# ---------------------------------------------------------------------------------------------------- BabyLM and BLiMP

def archive(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in files.items():
            z.writestr(name, content)
    return out.getvalue()


PAIRS = archive({"data/": b"", "data/one.jsonl": b'{"sentence_good": "a"}\n', "data/two.jsonl": b"{}\n", "README": b"x"})


def mirror(files):
    """A server for {path: content}, 404 for the rest."""
    def reply(handler):
        (good(files[handler.path]) if handler.path in files else status(404))(handler)
    return serve(reply)


@pytest.fixture
def settings_file(monkeypatch):
    """config.yaml with a small corpus, in the current folder; returns a function that runs prepare.py."""
    import yaml
    with open(os.path.join(os.path.dirname(prepare.__file__), "config.yaml"), encoding="utf-8") as f:
        tree = yaml.safe_load(f)
    tree["data"] |= {"sources": ["simple_wiki", "childes"]}
    with open("config.yaml", "w") as f:
        yaml.safe_dump(tree, f)
    monkeypatch.setattr(download, "TIMEOUT", 5)
    return lambda *overrides: prepare.main(["data.name=t", "tokenizer.vocab_size=330", "data.validation_kb=2", "data.pocket_words=5000", *overrides])


def babylm(server):
    os.environ["SLLAMA_LAB_BABYLM_URL"], os.environ["SLLAMA_LAB_BLIMP_URL"] = server.url.replace("/file", "/b"), server.url.replace("/file", "/BLiMP.zip")


@pytest.fixture
def addresses(monkeypatch):
    monkeypatch.setenv("SLLAMA_LAB_BABYLM_URL", "")                     # so that what a test sets is undone
    monkeypatch.setenv("SLLAMA_LAB_BLIMP_URL", "")
    monkeypatch.setattr(prepare, "BLIMP_SHA256", hashlib.sha256(PAIRS).hexdigest())


FILES = {"/b/simple_wiki.train.txt": TEXT, "/b/childes.train.txt": TEXT.replace(b"cats", b"dogs"), "/BLiMP.zip": PAIRS}


def test_babylm_and_blimp(settings_file, addresses, capsys):
    with mirror(FILES) as server:
        babylm(server)
        settings_file()
        asked = len(server.requests)
        meta = json.load(open("data/t/meta.json"))
        assert (meta["source"], meta["corpus"], [s["name"] for s in meta["sources"]]) == ("babylm", "BabyLM 2026 strict-small", ["simple_wiki", "childes"])
        assert sorted(os.listdir("data/blimp")) == ["one.jsonl", "two.jsonl"] and open("data/blimp/one.jsonl").read() == '{"sentence_good": "a"}\n'
        assert os.stat("data/blimp").st_mode & 0o777 == 0o755
        settings_file()
        assert "up to date" in capsys.readouterr().out
        settings_file("data.seed=1")                                    # from the files at hand
        assert len(server.requests) == asked == 3
    settings_file("data.seed=2")                                        # and without a network
    assert sorted(os.listdir("data/downloads")) == ["BLiMP.zip", "babylm", "checksums.json"]


def test_auto_falls_back_and_says_so(settings_file, addresses, capsys):
    there = {}
    with mirror(there) as server:
        babylm(server)
        settings_file("tokenizer.vocab_size=32000")
        out, meta = capsys.readouterr().out, json.load(open("data/t/meta.json"))
        assert "BABYLM CANNOT BE DOWNLOADED" in out and "404" in out
        assert meta["source"] == "pocket" and meta["corpus"].startswith("Pocket English (synthetic") and meta["corpus"] in out
        assert 330 < meta["vocab_size"] < 32000                         # no text of this size supports 32000
        assert meta["pairs"] == "pairs" and os.listdir("data/t/pairs")
        there.update(FILES)                                             # the hosts are back
        settings_file()
        meta = json.load(open("data/t/meta.json"))
        assert meta["source"] == "babylm" and meta["pairs"] is None and not os.listdir("data/t/pairs")
        there.clear()                                                   # and gone again, and so are the downloads: BabyLM stays
        for name in os.listdir("data/downloads/babylm"):
            os.unlink("data/downloads/babylm/" + name)
        settings_file()
        with pytest.raises(UserError, match="made from BabyLM"):
            settings_file("data.seed=5")
        assert json.load(open("data/t/meta.json")) == meta


def test_an_explicit_source_never_falls_back(settings_file, addresses):
    with mirror({}) as server:
        babylm(server)
        with pytest.raises(UserError, match="data.source=pocket"):
            settings_file("data.source=babylm")
    assert not os.path.exists("data/t")


def test_babylm_without_blimp_is_a_notice(settings_file, addresses, capsys):
    with mirror({path: content for path, content in FILES.items() if path != "/BLiMP.zip"}) as server:
        babylm(server)
        settings_file("data.source=babylm")
    assert "THERE IS NO BLIMP" in capsys.readouterr().out and os.path.exists("data/t/meta.json") and not os.path.exists("data/blimp")


def test_wrong_blimp_is_refused(settings_file, addresses, capsys):
    with mirror(FILES | {"/BLiMP.zip": archive({"data/one.jsonl": b"other"})}) as server:
        babylm(server)
        settings_file()
    assert "wrong checksum" in capsys.readouterr().out and not os.path.exists("data/blimp") and not os.path.exists("data/downloads/BLiMP.zip")


def test_pocket_never_asks_the_network(settings_file, addresses, monkeypatch):
    def no_network(*_, **__):
        raise AssertionError("the network was asked")
    monkeypatch.setattr(download, "fetch", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    settings_file("data.source=pocket")
    assert os.listdir("data") == ["t"]


def test_unknown_babylm_source_is_suggested(settings_file, addresses):
    with pytest.raises(UserError, match="did you mean `childes`"):
        settings_file("data.sources=[childs]")


def linked():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        link = zipfile.ZipInfo("data/link.jsonl")
        link.external_attr = 0o120777 << 16
        z.writestr(link, "/etc/passwd")
    return out.getvalue()


@pytest.mark.parametrize("content", [archive({"../evil.jsonl": b"x"}), archive({"/tmp/evil.jsonl": b"x"}), archive({"data/../../evil.jsonl": b"x"}),
                                     archive({}), linked(), PAIRS[:200], b"",
                                     PAIRS.replace(b"data/one.jsonl", b"data/\\..\\e.jso"), archive({"data/bomb.jsonl": b"\0" * 300_000_000})],
                         ids=["parent", "absolute", "hidden parent", "empty", "link", "truncated", "nothing", "backslash", "bomb"])
def test_unpack_refuses(content, tmp_path):
    (tmp_path / "x.zip").write_bytes(content)
    before = sorted(tmp_path.parent.iterdir())
    if b"..\\e" in content:                                             # still holds two.jsonl: that one and nothing else is written
        prepare.unpack("x.zip", "data/blimp")
        assert os.listdir("data/blimp") == ["two.jsonl"]
    else:
        with pytest.raises(UserError, match="x.zip"):
            prepare.unpack("x.zip", "data/blimp")
        assert os.listdir("data") == []
    assert sorted(tmp_path.parent.iterdir()) == before and sorted(os.listdir()) == ["data", "x.zip"]


def test_unpack_into_a_folder_that_is_there(tmp_path):
    (tmp_path / "x.zip").write_bytes(PAIRS)
    os.makedirs("data/blimp")
    prepare.unpack("x.zip", "data/blimp")
    assert len(os.listdir("data/blimp")) == 2
    os.makedirs("data/full")
    open("data/full/notes.txt", "w").close()
    with pytest.raises(UserError, match="data/full"):
        prepare.unpack("x.zip", "data/full")
    assert os.listdir("data/full") == ["notes.txt"] and sorted(os.listdir("data")) == ["blimp", "full"]
