"""Files written whole or not at all, and the one error a user sees."""
import contextlib
import hashlib
import json
import os
import tempfile


class UserError(Exception):
    """A mistake the user can mend. Its text names the file or key, says what is wrong and what to do."""


UMASK = os.umask(0)
os.umask(UMASK)


def atomic_write(path, content):
    """Writes bytes, text or what content(file) writes to `path`: a reader sees the old file or the new one, never a part.

    Raises UserError naming the file when it cannot be written (full disk, read-only folder); the old file is then untouched.
    """
    folder, temporary = os.path.dirname(os.path.abspath(path)), None
    try:
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=os.path.basename(path) + ".", suffix=".tmp")
        with os.fdopen(handle, "wb") as f:
            if callable(content):
                content(f)
            else:
                f.write(content.encode() if isinstance(content, str) else content)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o666 & ~UMASK)                             # mkstemp's files are private; these are like any other
        os.replace(temporary, path)
        temporary = None
        sync_folder(folder)
    except (OSError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and e.__context__:               # in which torch.save wraps what happens to its file
            e = e.__context__
        if not isinstance(e, Exception):                                # Ctrl-C
            raise e from None
        reason = getattr(e, "strerror", None) or str(e).split("\n")[0]
        raise UserError(f"{path}: cannot be written ({reason}); free some space or choose another folder, what was there before is untouched") from None
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def sync_folder(folder):
    """A renamed file has its new name after a power cut only once its folder is on the disk too. Not every system can open one."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while part := f.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def sealed(tree):
    """A dictionary for a JSON file with a checksum of the rest of it as `meta_sha256`: where one digit has changed since, sealed(tree) != tree."""
    rest = {key: value for key, value in tree.items() if key != "meta_sha256"}
    return {**rest, "meta_sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}
