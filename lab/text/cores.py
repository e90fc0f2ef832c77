"""All cores for what is done to a text in parts."""

import collections
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading

from lab.files import UserError

WORTH = 8  # parts from which on starting processes takes less time than it saves


class Cores:
    """cores.map(function, parts) is map(function, parts) by one process a core, for as long as the `with` block lasts.

    The processes are started anew (spawn) on every system, so `function` and its arguments must be picklable.
    """

    def __init__(self, count=None):
        self.count = min(count or os.cpu_count() or 1, 16)
        self.executor = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.executor:
            self.executor.shutdown(cancel_futures=True)

    def start(self):
        context = multiprocessing.get_context("spawn")
        self.executor = concurrent.futures.ProcessPoolExecutor(self.count, context, end_with_parent)
        with deaf_to_ctrl_c():
            for _ in range(self.count):
                self.executor.submit(int)

    def map(self, function, parts):
        """Yields function(part) for each part, in order. Never more than a few parts are under way."""
        parts = iter(parts)
        first = list(itertools.islice(parts, WORTH))
        parts = itertools.chain(first, parts)
        if len(first) < WORTH or self.count == 1:
            yield from map(function, parts)
            return
        if not self.executor:
            self.start()
        under_way = collections.deque()
        try:
            for part in parts:
                under_way.append(self.executor.submit(function, part))
                if len(under_way) > 2 * self.count:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except concurrent.futures.BrokenExecutor:
            raise UserError("a process was ended from outside, perhaps for want of memory; run again") from None


@contextlib.contextmanager
def deaf_to_ctrl_c():
    """Processes started in here do not hear Ctrl-C, not even while they start: the one that started them ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_with_parent():
    """In a new process: ends it when the one that started it is gone, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
