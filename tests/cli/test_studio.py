"""`flowopd studio` refuses what would expose or fail before it serves, and serves until it is stopped."""

import signal
import socket
import subprocess
import sys
from urllib.request import urlopen

import pytest

SERVING = "import sys; from flowopd.cli import main; sys.argv = ['flowopd', 'studio', *sys.argv[1:]]; main()"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_place_that_others_reach_needs_a_token(flowopd, finished, host, monkeypatch):
    monkeypatch.delenv("FLOWOPD_STUDIO_TOKEN", raising=False)
    wrong = flowopd("studio", finished, "--host", host, "--no-open")
    assert wrong.code == 2 and not wrong.out
    assert wrong.err == f"error: others can reach {host}; give a token: --token, or FLOWOPD_STUDIO_TOKEN\n"


def test_a_folder_that_is_not_there_is_named(flowopd, tmp_path):
    wrong = flowopd("studio", tmp_path / "nowhere", "--no-open")
    assert wrong.code == 2 and "nowhere is no folder; give the folder of a run" in wrong.err


def test_a_port_that_is_taken_is_named(flowopd, finished):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wrong = flowopd("studio", finished, "--port", port, "--no-open")
    assert wrong.code == 2 and f"cannot listen at 127.0.0.1:{port}" in wrong.err and "choose another" in wrong.err


def test_without_its_libraries_the_extra_is_named(flowopd, finished, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("flowopd.studio")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    wrong = flowopd("studio", finished, "--no-open")
    assert wrong.code == 2 and wrong.err == "error: the studio needs uvicorn; pip install 'flowopd[studio]'\n"


def test_it_serves_until_it_is_interrupted_and_keeps_the_token_to_itself(finished):
    command = [sys.executable, "-c", SERVING, str(finished), "--port", "0", "--no-open"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        with urlopen(f"{address}api/runs") as answer:
            assert finished.name.encode() in answer.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and (out, err) == ("", "")
