"""Files that are written whole or not at all, and the one error that a user sees."""

import contextlib
import hashlib
import json
import os
import secrets
import sys
import tempfile


class UserError(Exception):
    """A mistake that the user can fix. Its text names the file or key, says what is wrong and what to do."""


def first_line(error):
    """The first line of what an error says, or its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def atomic_write(path, content):
    """Writes bytes, text or what content(file) writes to `path`: a reader sees the old file or the new, never a part.

    Raises UserError when it cannot be written (full disk, read-only folder); the old file is then untouched.
    """
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(temporary, "wb") as f:
            if callable(content):
                content(f)
            else:
                f.write(content.encode("utf-8") if isinstance(content, str) else content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:
        cause = e.__context__ if isinstance(e, RuntimeError) and e.__context__ else e  # torch.save wraps what happened
        if not isinstance(cause, Exception):  # Ctrl-C
            raise cause from None
        reason = getattr(cause, "strerror", None) or first_line(cause)
        raise UserError(
            f"{path}: cannot be written ({reason}); what was there before is untouched; free some space or choose "
            "another folder"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # it is there only if something went wrong
            os.unlink(temporary)


def require_writable(path, remedy="choose another place"):
    """UserError if `path` cannot be written, as far as one can tell before there is anything to write."""
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    try:
        if os.path.isdir(path):
            raise OSError(0, "it is a folder")
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror}); {remedy}") from None


def refuse_existing(path, replace):
    """UserError if `path` exists and must not be replaced."""
    if os.path.exists(path) and not replace:
        raise UserError(f"{path}: exists; choose another name, or add --replace")


def read_text(path, remedy):
    """What a text file holds, or standard input for `-`. UserError with the remedy if it cannot be read."""
    try:
        if path == "-":
            return sys.stdin.read()
        with open(path, encoding="utf-8-sig") as f:
            return f.read()
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot be read ({reason}); {remedy}") from None


def read_json(path, remedy):
    """The dictionary in a JSON file. UserError with the remedy if there is none."""
    text = read_text(path, remedy)
    with contextlib.suppress(ValueError, RecursionError):
        tree = json.loads(text)
        if isinstance(tree, dict):
            return tree
    raise UserError(f"{path}: damaged, or not a JSON dictionary; {remedy}")


def file_sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while part := f.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def sealed(tree):
    """The dictionary with a checksum of the rest of it as `meta_sha256`, for a JSON file."""
    rest = {key: value for key, value in tree.items() if key != "meta_sha256"}
    return {**rest, "meta_sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def load_tokenizer(path):
    """The Tokenizer in a file. UserError if it cannot be read or used."""
    import tokenizer  # here: SentencePiece and NumPy take a moment

    try:
        return tokenizer.load(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except ValueError as e:
        raise UserError(str(e)) from None
