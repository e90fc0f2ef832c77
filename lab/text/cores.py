"""All cores for what is done to a text in parts."""

from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
import itertools
import multiprocessing
import os
import signal
import threading

from lab.files import UserError

PART = 1_000_000  # bytes of text in a part, about
WORTH = 8  # parts from which on starting processes takes less time than it saves


class Cores:
    """cores.map(function, parts) is map(function, parts) by one process a core, for as long as the `with` block lasts.

    The processes are started anew (spawn) on every system, so `function` and its arguments must be picklable.
    """

    def __init__(self, count=None):
        self.count = count or min(os.cpu_count() or 1, 16)
        self.executor = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.executor:
            self.executor.shutdown(cancel_futures=True)

    def start(self):
        """Starts the processes. Ctrl-C is not for them: the one that starts them ends them."""
        context = multiprocessing.get_context("spawn")
        self.executor = ProcessPoolExecutor(self.count, context, end_with_parent)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which they inherit
        for _ in range(self.count):
            self.executor.submit(int)
        signal.signal(signal.SIGINT, before)

    def map(self, function, parts):
        """Yields function(part) for each part, in order."""
        parts = iter(parts)
        first = list(itertools.islice(parts, WORTH))
        parts = itertools.chain(first, parts)
        if len(first) < WORTH or self.count == 1:
            yield from map(function, parts)
            return
        if not self.executor:
            self.start()
        try:
            yield from self.executor.map(function, parts)
        except BrokenExecutor:
            raise UserError("a process was ended from outside, perhaps for want of memory; run again") from None


def end_with_parent():
    """In a new process: ends it when the one that started it is gone, however that ended."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
