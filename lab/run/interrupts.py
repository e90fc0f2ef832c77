"""One run a folder, and how to end it."""

import contextlib
import glob
import os
import signal

from lab.files import UserError


@contextlib.contextmanager
def own_folder(folder):
    """Keeps a second run out of the folder; takes it away again if it was made here and nothing is in it."""
    made = []  # innermost first
    above = os.path.abspath(folder)
    while not os.path.exists(above):
        made.append(above)
        above = os.path.dirname(above)
    try:
        os.makedirs(folder, exist_ok=True)
        handle = open(os.path.join(folder, ".lock"), "wb")
    except OSError as e:
        remove_empty(made)
        raise UserError(f"{folder}: cannot be written ({e.strerror}); choose another with train.out=FOLDER") from None
    with handle:
        lock(handle, folder)
        for leftover in glob.glob(os.path.join(glob.escape(folder), "*.*.????????.tmp")):  # of a write that was killed
            os.unlink(leftover)
        try:
            yield
        finally:
            if made and os.listdir(folder) == [".lock"]:
                handle.close()  # Windows removes no open file
                os.unlink(handle.name)
                remove_empty(made)


def remove_empty(folders):
    for folder in folders:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def lock(handle, folder):
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        pass
    except BlockingIOError:
        raise UserError(
            f"{folder}: another run is writing here; wait for it, or choose another folder with train.out=FOLDER"
        ) from None
    except OSError as e:  # some network file systems
        print(
            f"notice: {folder}: this file system has no locks ({e.strerror}); see to it that no second run writes here"
        )


class Signals:
    """The first SIGINT or SIGTERM asks for an end after this step; a second SIGINT ends at once."""

    def __init__(self):
        self.caught = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number, frame):
        if self.caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = number
        with contextlib.suppress(OSError):  # not print: the signal may have come in the middle of one
            os.write(2, b"\nending after this step; Ctrl-C again ends at once\n")
