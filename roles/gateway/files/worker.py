# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Around a start and a reload of HAProxy.

save FILE   keep the servers' state, drains and weights that were set over the runtime socket among it
prune FILE  forget kept servers that the configuration has elsewhere now
wait FILE   wait until the process after a reload answers
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time

SOCKET = "/run/haproxy/admin.sock"
CONFIGURATION = "/etc/haproxy/haproxy.cfg"
PATIENCE_SECONDS = 30.0


def ask(command: str) -> str:
    """The answer of HAProxy's runtime socket to one command."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect(SOCKET)
        connection.sendall(f"{command}\n".encode())
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()


def worker() -> str:
    """The process id of the worker that answers on the socket."""
    for line in ask("show info").splitlines():
        name, _colon, value = line.partition(": ")
        if name == "Pid":
            return value
    raise OSError(f"{SOCKET} did not say its process id")


def write(path: str, text: str) -> None:
    """Replace a file whole: a half-written one would be read as the truth at the next start."""
    new = f"{path}.new"
    with open(new, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(new, path)


def save(path: str) -> None:
    """Keep the state, and note which worker told it."""
    state = ask("show servers state")
    write(f"{path}.worker", worker())
    write(path, state)
    prune(path)


def prune(path: str) -> None:
    """HAProxy takes a server's port from the kept state and ignores a new one in its configuration (2.6 and 3.0)."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return
    with open(CONFIGURATION, encoding="utf-8") as file:
        configured = set(re.findall(r"^\s+server\s+(\S+)\s+(\S+):(\d+)\s", file.read(), re.MULTILINE))
    columns: list[str] = []
    kept = []
    for line in lines:
        if line.startswith("# "):
            columns = line[2:].split()
        elif columns and line:
            server = dict(zip(columns, line.split()))
            places = {(server["srv_name"], server[key], server["srv_port"]) for key in ("srv_addr", "srv_fqdn")}
            if not places & configured:
                continue
        kept.append(line)
    write(path, "\n".join(kept) + "\n")


def wait(path: str) -> None:
    """A reload that the new process cannot complete leaves the old one answering: that is a failed reload."""
    with open(f"{path}.worker", encoding="utf-8") as file:
        before = file.read()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if worker() != before:
                return
        time.sleep(0.1)
    sys.exit(f"after {PATIENCE_SECONDS:.0f} s the worker {before} still answers: the new configuration was not loaded")


if __name__ == "__main__":
    commands = {"save": save, "prune": prune, "wait": wait}
    if len(sys.argv) != 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    try:
        commands[sys.argv[1]](sys.argv[2])
    except OSError as error:
        sys.exit(f"{sys.argv[1]} {sys.argv[2]}: {error}")
