"""Handling of SIGTERM and Ctrl-C: signals set an event, so that a run can save before it ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MESSAGE = b"\nsaving, then stopping; press Ctrl-C again to stop at once\n"


@contextmanager
def catch_stop() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and the first SIGINT set. A second SIGINT calls the previous handler.

    Outside the main thread nothing sets the event, because only the main thread can handle signals. Signals that the process
    ignores are still ignored, such as SIGINT in a command that a script starts with `&`.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    previous = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}

    def stop(number, _):
        stopped.set()
        if number == signal.SIGINT:
            signal.signal(number, previous[number])
            with suppress(OSError):  # Ctrl-C may have ended the reader of a pipe, such as tee
                os.write(2, MESSAGE)  # print is not reentrant, and the signal may arrive within one

    for number in previous:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
