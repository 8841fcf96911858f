"""Servers of this machine: who may reach one that is to start, and one that a program starts for itself."""

import ctypes
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from lib.files import ROOT, fail

# Verb → the variables that name the host and the port of its server, and the default port.
PAGE = ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", 7860)
SERVERS = {"api": ("API_HOST", "API_PORT", 8000), "webchat": PAGE, "webui": PAGE, "desk": PAGE}
# Seconds that a server of our own gets to end before it is killed.
PATIENCE = 10


def is_loopback(host: str) -> bool:
    """Whether an IP address, or `localhost`, can be reached from this machine only. Other names count as public."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def opened_by(verb: str) -> str:
    """The setting that opens the verb's server to other machines, such as `API_HOST=0.0.0.0`; empty if none does."""
    host_name = SERVERS[verb][0]
    host = os.environ.get(host_name, "127.0.0.1").strip("[]")
    if not is_loopback(host):
        return f"{host_name}={host}"
    shared = os.environ.get("GRADIO_SHARE", "").lower() in ("1", "y", "true")
    return "GRADIO_SHARE" if shared and verb != "api" else ""


def check_server(verb: str) -> tuple[str, int]:
    """Host and port of the server that `verb` starts.

    Ends the program if the port is taken, or if other machines could reach the server without a key or a login.
    """
    host_name, port_name, default = SERVERS[verb]
    host, port = os.environ.get(host_name, "127.0.0.1").strip("[]"), os.environ.get(port_name) or str(default)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        fail(f"{port_name}={port} is not a port; a port is a number from 1 to 65535")
    if opened := opened_by(verb):
        if verb in ("webchat", "webui"):
            fail(f"{opened} opens a page without login to other machines: leave it out; use `make desk` or `ssh -L`")
        if not os.environ.get("API_KEY"):
            fail(f"{opened} opens the server to other machines: set API_KEY=<a secret> too, or leave it out")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
    except OSError as error:
        fail(f"port {port} of {host} cannot be used ({error.strerror}): end what runs there, or set {port_name}")
    return host, int(port)


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def own_server(overrides: list[str]) -> Iterator[str]:
    """Starts the server of `make api` on a free port of 127.0.0.1, yields its URL and ends it with the block.

    MODEL, METHOD, DATA and EXPORTED in the environment choose the model; `overrides` are `key=value` words for its
    recipe. Ends the program with the launcher's error if the server does not start.
    """
    url = f"http://127.0.0.1:{(port := free_port())}"
    print("Starting a server for this run", file=sys.stderr)
    with tempfile.TemporaryFile() as log:
        libc = ctypes.CDLL(None)
        server = subprocess.Popen(
            [sys.executable, ROOT / "scripts/launch.py", "api", *overrides],
            cwd=ROOT,
            env=os.environ | {"API_HOST": "127.0.0.1", "API_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C in the terminal reaches this program only, which then ends the server.
            start_new_session=True,
            # Linux's PR_SET_PDEATHSIG: the server ends with this program, even if that is killed.
            preexec_fn=(lambda: libc.prctl(1, signal.SIGKILL)) if sys.platform == "linux" else None,
        )
        try:
            wait_until_up(server, url, log)
            yield url
        finally:
            server.terminate()
            try:
                server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_until_up(server: subprocess.Popen, url: str, log: IO[bytes]) -> None:
    """Waits until the server answers, and repeats its warnings; ends the program if the server ends before that."""
    import httpx

    while server.poll() is None:
        with suppress(httpx.RequestError):
            httpx.get(url, trust_env=False)
            break
        time.sleep(0.3)
    # The server shares the position in this file, so reading must not move it.
    written = os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0)
    lines = written.decode("utf-8", "replace").strip().split("\n")
    if server.poll() is None:
        for line in lines:
            if line.startswith("warning: "):
                print(line, file=sys.stderr)
        return
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    fail(errors[-1] if errors else f"the server did not start: {lines[-1]}")
