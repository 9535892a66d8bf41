"""Being told to stop, by SIGTERM or by Ctrl-C: an event to look at, so that what runs can save and end well."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SAYS = b"\nstopping, and saving first; once more stops at once\n"


@contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM and the first SIGINT set; a second SIGINT acts as it would have without this.

    Only in the main thread, where signals arrive: elsewhere nothing sets it. A signal that was ignored still is, as SIGINT is
    in what a script started with `&`.
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
            if os.isatty(2):
                os.write(2, SAYS)  # not print: a handler may come within one, which lets no other in

    for number in previous:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
