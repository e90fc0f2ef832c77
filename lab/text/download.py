"""Files from the web, by pooch: retried, checked, and whole or not there.

A file whose checksum is not known beforehand is held to the one it had at its first download: checksums.json beside it.
"""

import json
import os
import re
import sys
import tempfile
import threading
import time
import zipfile

from lab.files import UserError, atomic_write, file_sha256, read_json

TIMEOUT = 9  # seconds of silence: a host that cannot be reached is noticed within ten
ATTEMPTS = 4  # tries per file
PAUSE = 2  # seconds before the second try, doubled before each further one


class DownloadError(UserError):
    """A file that cannot be had."""


def download(url, path, known=None):
    """Gets `url` into `path`, unless it is there with the checksum `known`, or else that of the first download.

    DownloadError: the host gives no answer within TIMEOUT seconds, it says no, the file has another checksum or is a
    web page, or ATTEMPTS tries have failed. `path` is then as it was.
    """
    import pooch  # here, because it takes a while and most runs download nothing
    import requests

    pooch.get_logger().setLevel("ERROR")

    folder, name = os.path.split(path)
    record = os.path.join(folder, "checksums.json")
    known = known or read_json(record).get(name)
    if os.path.exists(path) and known in (None, file_sha256(path)):
        remember(record, name, path)
        return

    print(f"downloading {url}")
    require_answer(url)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            pooch.retrieve(url, known and "sha256:" + known, name, folder, downloader=fetch)
            break
        except requests.HTTPError as e:
            problem = f"the server answers {e.response.status_code} {e.response.reason}"
            if e.response.status_code < 500 and e.response.status_code not in (408, 425, 429):
                raise DownloadError(f"{url}: {problem}") from None
        except requests.RequestException as e:
            problem = short_reason(e)
        except ValueError:  # pooch's, for a checksum
            raise DownloadError(f"{url}: the file has a wrong checksum, not sha256 {known}") from None
        if attempt < ATTEMPTS:
            time.sleep(PAUSE * 2 ** (attempt - 1))
    else:
        raise DownloadError(f"{url}: given up after {ATTEMPTS} tries ({problem}); run again later")
    remember(record, name, path)


def fetch(url, output_file, _):
    """What pooch calls to get `url` into its temporary file."""
    import pooch

    pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)(url, output_file, None)
    with open(output_file, "rb") as f:
        if re.match(rb"\s*<(!doctype )?html", f.read(512), re.IGNORECASE):
            raise DownloadError(f"{url}: a web page came instead of the file (of a proxy or a login?)")


def require_answer(url):
    """DownloadError unless the host answers within TIMEOUT seconds, whatever it says.

    In a thread, because no time-out of requests bounds the look-up of a name.
    """
    import requests

    outcome = [TimeoutError(f"no answer in {TIMEOUT} seconds")]

    def ask():
        try:
            requests.head(url, timeout=TIMEOUT)
            outcome[0] = None
        except Exception as e:  # an address can be wrong in many ways
            outcome[0] = e

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if outcome[0]:
        raise DownloadError(f"{url}: the host cannot be reached ({short_reason(outcome[0])})")


def short_reason(error):
    """The innermost of requests' nested messages, in a line."""
    cause = error.args[0] if error.args else error
    cause = getattr(cause, "reason", cause)
    return " ".join(str(cause).split(": ", 1)[-1].split()) or type(error).__name__


def remember(record, name, path):
    checksums = read_json(record)
    digest = file_sha256(path)
    if checksums.get(name) != digest:
        atomic_write(record, json.dumps(checksums | {name: digest}, indent=1) + "\n")


def unpack(archive, folder):
    """The data/*.jsonl of BLiMP's zip archive -> a new folder, all or none."""
    parent = os.path.dirname(os.path.abspath(folder))
    os.makedirs(parent, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=parent) as temporary, zipfile.ZipFile(archive) as z:
            new = os.path.join(temporary, "new")
            os.mkdir(new)
            for member in z.namelist():
                if plain := re.fullmatch(r"data/(\w+\.jsonl)", member):
                    with open(os.path.join(new, plain[1]), "wb") as f:
                        f.write(z.read(member))
            if os.path.isdir(folder):
                os.rmdir(folder)
            os.replace(new, folder)
    except OSError as e:
        raise UserError(
            f"{folder}: cannot be made ({e.strerror}); if something else is there, set eval.data to another folder"
        ) from None
    except Exception as e:  # zipfile and zlib raise nearly anything
        raise UserError(f"{archive}: a broken archive ({e}); remove it and run again") from None
