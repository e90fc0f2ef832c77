"""Files from the web with the standard library: retried, resumed, checked, and never half there.

`download(url, path)` returns when `path` holds the whole file. On the way the bytes are in `path`.part, and `path`.part.json says
what they are the beginning of (address, ETag, length); checksums.json beside the files has the sha256 of each that is complete.
"""
import http.client
import json
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.request

from tqdm import tqdm

from lab.files import UserError, atomic_write, file_sha256

TIMEOUT = 9         # seconds of silence: a host that cannot be reached is noticed within ten
ATTEMPTS = 6        # tries per file
BACKOFF = 1.0       # seconds before the second try, doubled before each further one, at most 30


class DownloadError(UserError):
    """A file that cannot be had."""


class Retry(Exception):
    """A failure that may pass; `wait`: seconds, if the server says so."""

    def __init__(self, reason, wait=None):
        super().__init__(reason)
        self.wait = wait


class NoAnswer(Retry):
    """A failure before any answer of the host."""


def read_json(path):
    """The dictionary in a JSON file, {} if there is none."""
    try:
        with open(path, encoding="utf-8") as f:
            tree = json.load(f)
        return tree if isinstance(tree, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def answer(request, seconds):
    """The open response, or the exception. In a thread, because a timeout bounds neither name look-up nor headers that come byte by byte."""
    box = queue.Queue()

    def ask():
        try:
            box.put(urllib.request.urlopen(request, timeout=TIMEOUT))
        except Exception as e:
            box.put(e)
    threading.Thread(target=ask, daemon=True).start()
    try:
        result = box.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:.0f} seconds") from None
    if isinstance(result, Exception):
        raise result
    return result


def fetch(url, part, seconds):
    """One try to get the file `part`, or to go on with it if the server shows the ETag and length that it began with -> whether it went on.

    Raises Retry, NoAnswer (none within `seconds`), DownloadError, and OSError where `part` cannot be written.
    """
    have, headers, began = 0, {"User-Agent": "sllama-lab"}, read_json(part + ".json")
    if os.path.exists(part) and began.get("url") == url and began.get("tag") and 0 < os.path.getsize(part) < began["bytes"]:
        have = os.path.getsize(part)
        headers["Range"] = f"bytes={have}-"
    try:
        response = answer(urllib.request.Request(url, headers=headers), seconds)
    except urllib.error.HTTPError as e:
        if e.code == 416 and have:                                      # the server has no such rest: begin again
            os.unlink(part)
        elif e.code < 500 and e.code not in (408, 425, 429):
            raise DownloadError(f"{url}: the server answers {e.code} {' '.join(str(e.reason).split())[:100]}") from None
        wait = e.headers.get("Retry-After") or ""
        raise Retry(f"the server answers {e.code}", int(wait) if wait.isdigit() else None) from None
    except (OSError, http.client.HTTPException) as e:
        raise NoAnswer(str(getattr(e, "reason", None) or e) or type(e).__name__) from None
    except ValueError as e:
        raise DownloadError(f"{url}: not an address ({e})") from None
    with response:
        tag, length = response.headers.get("ETag") or response.headers.get("Last-Modified"), response.headers.get("Content-Length") or ""
        total = int(length) if length.isdigit() else None
        resumed = have > 0 and response.status == 206
        if resumed:
            total = began["bytes"]
            if tag != began["tag"] or response.headers.get("Content-Range") != f"bytes {have}-{total - 1}/{total}":
                os.unlink(part)
                raise Retry("the file changed on the server", 0)
        else:
            have = 0
            atomic_write(part + ".json", json.dumps({"url": url, "tag": total and tag, "bytes": total}))
        with open(part, "ab" if resumed else "wb") as f, tqdm(desc=os.path.basename(part)[:-5], total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar:
            while True:
                try:
                    data = response.read(1 << 16)
                except (OSError, http.client.HTTPException) as e:
                    raise Retry(f"the connection broke after {have} bytes ({str(e) or type(e).__name__})") from None
                if not data:
                    break
                f.write(data)
                have += len(data)
                bar.update(len(data))
    if total is not None and have != total:
        raise Retry(f"the connection ended after {have} of {total} bytes")
    return resumed


def download(url, path, known=None):
    """Gets `url` into `path`, unless the file there has the sha256 `known`, or else the one that checksums.json recorded.

    DownloadError: no first answer within TIMEOUT seconds, a final "no", a wrong checksum, or ATTEMPTS failures. What has come by
    then is kept, for a later download to go on with.
    """
    record, name, part = os.path.join(os.path.dirname(path), "checksums.json"), os.path.basename(path), path + ".part"
    if os.path.exists(path):
        if file_sha256(path) == (known or read_json(record).get(name)):
            return
        print(f"{path}: not what was downloaded; downloading it again")
    print(f"downloading {url}")
    start, reached = time.monotonic(), False
    for attempt in range(1, ATTEMPTS + 1):
        try:
            resumed = fetch(url, part, TIMEOUT if reached else max(TIMEOUT - (time.monotonic() - start), 0.1))
            reached, digest = True, file_sha256(part)
            with open(part, "rb") as f:
                page = re.match(rb"\s*<(!doctype )?html", f.read(512), re.IGNORECASE)
            if not page and digest == (known or digest):
                break
            os.unlink(part)
            if resumed:
                raise Retry("the parts do not fit together", 0)
            raise DownloadError(f"{url}: " + ("a web page came instead of the file (of a proxy or a login?)" if page else f"the file has a wrong checksum, sha256 {digest}"))
        except Retry as e:
            problem, reached = e, reached or not isinstance(e, NoAnswer)
        wait = min(30, BACKOFF * 2 ** (attempt - 1) if problem.wait is None else problem.wait)
        if not reached and (attempt == 2 or time.monotonic() - start + wait > TIMEOUT - 1):
            raise DownloadError(f"{url}: the host cannot be reached ({problem})")
        if attempt == ATTEMPTS:
            raise DownloadError(f"{url}: given up after {ATTEMPTS} tries ({problem}); run again later, what has come so far is kept")
        time.sleep(wait)
    atomic_write(record, json.dumps(read_json(record) | {name: digest}, indent=1) + "\n")
    os.replace(part, path)
    os.unlink(part + ".json")
