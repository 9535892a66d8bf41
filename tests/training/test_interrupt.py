"""Being told to stop: once to save and end well, twice to end at once."""

import os
import signal

import pytest

from memtx.training.interrupt import catch_stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_event_and_its_handler_is_as_before_afterwards(number):
    before = signal.getsignal(number)
    with catch_stop() as stopped:
        assert not stopped.is_set()
        os.kill(os.getpid(), number)
        assert stopped.is_set()
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_and_a_second_sigterm_does_not():
    with catch_stop() as stopped:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stopped.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_was_ignored_stays_ignored():
    """A run in the background of a script ignores a Ctrl-C for the foreground process."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with catch_stop() as stopped:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stopped.is_set()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_saves_although_nobody_reads_its_standard_error():
    """Ctrl-C also ends `tee`, and the message then has no reader."""
    reader, writer = os.pipe()
    os.close(reader)
    before = os.dup(2)
    try:
        os.dup2(writer, 2)
        with catch_stop() as stopped:
            os.kill(os.getpid(), signal.SIGINT)
            assert stopped.is_set()
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(writer)
