"""Servers of this machine: who may reach one that is to start, and one that a program starts for itself."""

import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from typing import IO

from lib.files import ROOT, fail
from lib.supervision import GPU_FULL, end_with_parent

# Verb → the variables that name the host and the port of its server, and the default port.
PAGE = ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", 7860)
SERVERS = {"api": ("API_HOST", "API_PORT", 8000), "webchat": PAGE, "webui": PAGE, "desk": PAGE}
# Seconds that a server of our own gets to end before it is killed.
PATIENCE = 10
# What a server says of its end. vLLM writes the name of a process before each line.
ERROR = re.compile(r"[\w.]+(Error|Exception): \S.*")
# vLLM wants a share of the card, and says so if that is taken, or leaves no room beside the weights.
SHARE_TAKEN = re.compile(r"No available memory for the cache|less than desired GPU memory utilization")


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


def address(verb: str) -> tuple[str, int]:
    """Host and port of the server that `verb` starts; ends the program if the variables name no port."""
    host_name, port_name, default = SERVERS[verb]
    host, port = os.environ.get(host_name, "127.0.0.1").strip("[]"), os.environ.get(port_name) or str(default)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        fail(f"{port_name}={port} is not a port; a port is a number from 1 to 65535")
    return host, int(port)


def check_server(verb: str) -> tuple[str, int]:
    """Host and port of the server that `verb` starts.

    Ends the program if the port is taken, or if other machines could reach the server without a key or a login.
    """
    host, port = address(verb)
    if opened := opened_by(verb):
        if verb in ("webchat", "webui"):
            fail(f"{opened} opens a page without login to other machines: leave it out; use `make desk` or `ssh -L`")
        if not os.environ.get("API_KEY"):
            fail(f"{opened} opens the server to other machines: set API_KEY=<a secret> too, or leave it out")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        fail(f"port {port} of {host} cannot be used ({error.strerror}): end what runs there, or set {SERVERS[verb][1]}")
    return host, port


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class OwnServer:
    """A server of `make api` on a free port of 127.0.0.1, which a program starts for itself, and can stop for a while.

    MODEL, METHOD, DATA, EXPORTED and BACKEND in the environment choose the model and the engine, with `variables` laid
    over them; `overrides` are `key=value` words for its recipe. `log`: an open file for what it prints.
    """

    def __init__(self, overrides: list[str], log: IO[bytes], **variables: str):
        self.words, self.log, self.port = ["api", *overrides], log, free_port()
        self.variables = variables | {"API_HOST": "127.0.0.1", "API_PORT": str(self.port)}
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Starts the server; `wait_until_up` says when it answers. It ends with the thread that calls this."""
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "scripts/launch.py", *self.words],
            cwd=ROOT,
            env=os.environ | self.variables,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            # Ctrl-C in the terminal reaches this program only, which then ends the server.
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGKILL),
        )

    def stop(self) -> None:
        """Ends the server, and so frees its memory."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        # vLLM's processes have the card until they have ended, too.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


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
    if any(GPU_FULL.search(line) or SHARE_TAKEN.search(line) for line in lines):
        hint = "end what else is on the card (nvidia-smi), or load the model in 4 bits: ARGS=quantization_bit=4"
        fail(f"the server did not start, for the card's memory does not suffice: {hint}")
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    # vLLM ends with "Engine core initialization failed. See root cause above."
    named = [found[0] for line in lines if (found := ERROR.search(line)) and "See root cause" not in line]
    fail(errors[-1] if errors else f"the server did not start: {(named or lines)[-1]}")
