"""Before a server starts: who can reach it, and whether its port is free. A server that a program starts for itself."""

import socket
import subprocess
import sys
import tempfile

import pytest
from common import KEY, one_error
from lib.servers import check_server, free_port, is_loopback, opened_by, wait_until_up

ADDRESSES = ("API_HOST", "API_PORT", "API_KEY", "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "GRADIO_SHARE")
SERVERS = ["api", "webchat", "webui", "desk"]


@pytest.fixture(autouse=True)
def no_addresses(monkeypatch):
    for name in ADDRESSES:
        monkeypatch.delenv(name, raising=False)


def refusal(verb, monkeypatch, **variables) -> str:
    """The error of a check with these variables set."""
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            check_server(verb)
    return end.value.code


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", ""])
def test_api_and_desk_open_to_others_only_with_a_key(monkeypatch, host):
    for verb, name in (("api", "API_HOST"), ("desk", "GRADIO_SERVER_NAME")):
        line = refusal(verb, monkeypatch, **{name: host, "API_KEY": ""})
        assert f"{name}={host} " in line and "API_KEY" in line
    assert "API_KEY" in refusal("desk", monkeypatch, GRADIO_SHARE="true")


def test_with_a_key_the_api_and_the_desk_open(monkeypatch):
    monkeypatch.setenv("API_KEY", KEY)
    for verb, name in (("api", "API"), ("desk", "GRADIO_SERVER")):
        port = free_port()
        monkeypatch.setenv("API_HOST" if verb == "api" else "GRADIO_SERVER_NAME", "0.0.0.0")
        monkeypatch.setenv(f"{name}_PORT", str(port))
        assert check_server(verb) == ("0.0.0.0", port) and opened_by(verb).endswith("=0.0.0.0")


@pytest.mark.parametrize("verb", ["webchat", "webui"])
@pytest.mark.parametrize("variable", ["GRADIO_SERVER_NAME=0.0.0.0", "GRADIO_SHARE=1"])
def test_pages_without_login_do_not_open_to_others(monkeypatch, verb, variable):
    name, value = variable.split("=")
    line = refusal(verb, monkeypatch, API_KEY=KEY, **{name: value})
    assert name in line and "login" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_needs_no_key(monkeypatch, host):
    monkeypatch.setenv("API_HOST", host)
    assert is_loopback(host) and not opened_by("api")


@pytest.mark.parametrize("verb", SERVERS)
def test_port_that_is_taken(monkeypatch, verb):
    name = "API_PORT" if verb == "api" else "GRADIO_SERVER_PORT"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        line = refusal(verb, monkeypatch, **{name: port})
        assert port in line and name in line and "in use" in line
    for port in ("80000", "0", "x"):
        assert "65535" in refusal(verb, monkeypatch, **{name: port})


@pytest.mark.parametrize("verb", SERVERS)
def test_make_checks_the_address_before_a_start(make, clone, verb):
    line = one_error(make(clone, verb, "MODEL=tiny", API_HOST="0.0.0.0", GRADIO_SERVER_NAME="0.0.0.0", API_KEY=""))
    assert "=0.0.0.0 " in line and ("API_KEY" in line or "login" in line)


def test_model_that_was_not_exported(make, clone):
    line = one_error(make(clone, "chat", "MODEL=tiny", "EXPORTED=1"))
    assert "exports/tiny" in line and "make export MODEL=tiny" in line


@pytest.mark.parametrize(
    ("printed", "line"),
    [
        (r"warning: slow\nTraceback\n  File\nValueError: of LLaMA-Factory", "the server did not start: ValueError: of"),
        (r"warning: slow\nerror: no adapter\nmake: ***", "error: no adapter"),
        (
            r"(pid=7) ValueError: No room\nRuntimeError: Failed. See root cause above",
            "did not start: ValueError: No room",
        ),
        (r"(pid=7) ERROR ValueError: No available memory for the cache blocks", "ARGS=quantization_bit=4"),
        (r"Traceback\ntorch.OutOfMemoryError: CUDA out of memory", "memory does not suffice: end what else"),
        (r"ValueError: Free memory (9 GiB) is less than desired GPU memory utilization", "nvidia-smi"),
    ],
)
def test_the_error_of_a_server_that_ends_at_once(printed, line):
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-c", f"print('''{printed}'''); raise SystemExit(1)"]
        server = subprocess.Popen(command, stdout=log)
        with pytest.raises(SystemExit) as end:
            wait_until_up(server, f"http://127.0.0.1:{free_port()}", log)
    assert line in end.value.code and "\n" not in end.value.code


def test_warnings_of_a_server_are_repeated_when_it_is_up(capfd):
    port = free_port()
    code = f"""
import http.server
print("warning: slow", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", {port}), http.server.BaseHTTPRequestHandler).serve_forever()
"""
    with tempfile.TemporaryFile() as log, subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log) as one:
        try:
            wait_until_up(one, f"http://127.0.0.1:{port}", log)
        finally:
            one.kill()
    assert capfd.readouterr().err == "warning: slow\n"
