"""A signal ends what runs in good order, or at once, and leaves nothing behind."""

import os
import signal
import threading

import pytest

from flowopd.errors import Interrupted
from flowopd.signals import ending_at_once, listening

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers_stay():
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_without_a_loop_a_signal_ends_at_once(number, code):
    with pytest.raises(Interrupted, match=r"run the same command again") as end, ending_at_once():
        send(number)
    assert end.value.code == code and number.name in str(end.value) and "\n" not in str(end.value)


@pytest.mark.parametrize("number", NUMBERS)
def test_in_a_loop_a_signal_is_only_heard(number, capfd):
    with listening() as heard:
        assert heard() == 0
        send(number)
        assert heard() == number
    assert "stopping after this update" in capfd.readouterr().err


def test_on_a_terminal_it_is_said_below_the_bar(capfd, monkeypatch):
    monkeypatch.setattr("os.isatty", lambda _: True)
    with listening():
        send(signal.SIGINT)
    assert capfd.readouterr().err.startswith("\nstopping")


@pytest.mark.parametrize("first", NUMBERS)
def test_a_second_sigint_ends_at_once(first):
    with pytest.raises(Interrupted) as end, listening():
        send(first)
        send(signal.SIGINT)
    assert end.value.code == 130


def test_a_second_sigterm_changes_nothing():
    with listening() as heard:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert heard() == signal.SIGINT


def test_after_a_loop_a_signal_ends_at_once_again():
    with pytest.raises(Interrupted), ending_at_once():
        with listening() as heard:
            send(signal.SIGTERM)
        assert heard()
        send(signal.SIGTERM)


def test_a_signal_is_no_error_that_someone_could_handle():
    assert not issubclass(Interrupted, Exception)


def test_in_another_thread_nothing_is_heard_and_nothing_fails():
    heard = []

    def work():
        with ending_at_once(), listening() as ask:
            heard.append(ask())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [0]


def test_only_the_first_process_speaks(monkeypatch, capfd):
    monkeypatch.setenv("RANK", "1")
    with listening():
        send(signal.SIGTERM)
    assert capfd.readouterr().err == ""
