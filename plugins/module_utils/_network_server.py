# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server that other hosts measure: without privileges, for whoever knows the run's token, and for a while only."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import os
import pwd
import resource
import secrets
import select
import signal
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils._network_host import (
    PERFTEST,
    NetworkError,
    NetworkHost,
    last_line,
    perftest_command,
)
from ansible_collections.onprem.llm.plugins.module_utils._network_probe import (
    BLOCK_BYTES,
    COMMAND_BYTES,
    CONNECT_SECONDS,
    HELLO,
    MESSAGE_BYTES,
    NONCE_BYTES,
    RDMA_STREAM_SECONDS,
    abort,
    forbid_fragments,
    proof,
    receive_exactly,
    receive_object,
    receive_stream,
    resolve,
    send_object,
)

RUNTIME = Path("/run/onprem-network-validate")
LONGEST_STREAM_SECONDS = 60.0
LONGEST_ECHO_SECONDS = 60.0
MAXIMUM_CLIENTS = 64


class Server:
    """Answers pings, takes and sends streams and echoes datagrams, for whoever knows the token."""

    def __init__(self, name: str, address: str, port: int, token: str) -> None:
        if len(token) < 16:
            raise NetworkError("the token is shorter than 16 characters.")
        self.name = name
        self.token = token
        self.places = threading.BoundedSemaphore(MAXIMUM_CLIENTS)
        self.host = NetworkHost()
        family, target = resolve(address, port)
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.datagrams = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind(target)
            self.listener.listen(MAXIMUM_CLIENTS)
            # A client may be gone between select() and accept().
            self.listener.setblocking(False)
            self.port: int = self.listener.getsockname()[1]
            self.datagrams.bind((target[0], self.port, *target[2:]))
            self.datagrams.setblocking(False)
            forbid_fragments(self.datagrams)
        except OSError as error:
            self.close()
            raise NetworkError(f"cannot listen on {address} port {port}: {error.strerror}.") from None

    def close(self) -> None:
        self.listener.close()
        self.datagrams.close()

    def serve(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ready, _writable, _errors = select.select([self.listener, self.datagrams], [], [], max(0.0, end - time.monotonic()))
            if self.datagrams in ready:
                self.echo_datagram()
            if self.listener in ready:
                with contextlib.suppress(OSError):
                    connection, _peer = self.listener.accept()
                    if self.places.acquire(blocking=False):
                        threading.Thread(target=self.attend, args=(connection,), daemon=True).start()
                    else:
                        connection.close()

    def attend(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.knows_token(connection):
                    # Streams connect first and begin all at once, a little later.
                    connection.settimeout(30)
                    self.answer(connection, receive_object(connection, COMMAND_BYTES))
        except (OSError, ValueError, KeyError, TypeError, NetworkError):
            pass  # a client that leaves or talks nonsense has only its own connection to lose
        finally:
            self.places.release()

    def knows_token(self, connection: socket.socket) -> bool:
        connection.settimeout(CONNECT_SECONDS)
        nonce = secrets.token_bytes(NONCE_BYTES)
        connection.sendall(HELLO + nonce)
        answer = receive_exactly(connection, NONCE_BYTES + hashlib.sha256().digest_size)
        theirs, given = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
        if not hmac.compare_digest(given, proof(self.token, b"client", nonce, theirs)):
            return False
        connection.sendall(proof(self.token, b"server", nonce, theirs))
        return True

    def answer(self, connection: socket.socket, command: dict[str, Any]) -> None:
        wanted = command["do"]
        if wanted == "tell":
            try:
                told = {"name": self.name, "time": time.time(), **self.host.toward(connection.getpeername()[0])}
            except (OSError, NetworkError) as error:
                told = {"error": str(error)}
            send_object(connection, told)
        elif wanted == "echo":
            self.echo(connection)
        elif wanted == "take":
            counted = receive_stream(connection, self.bounded(command))
            connection.settimeout(5)
            send_object(connection, counted)
            # Until the client closes; otherwise the kernel answers what still comes with a reset, and the result is lost.
            end = time.monotonic() + 5
            while time.monotonic() < end and connection.recv(BLOCK_BYTES):
                pass
        elif wanted == "give":
            end = time.monotonic() + self.bounded(command) + 1
            block = bytes(BLOCK_BYTES)
            connection.settimeout(1)
            while time.monotonic() < end:
                connection.send(block)
            abort(connection)
        elif wanted == "perftest":
            self.perftest(connection, command)

    @staticmethod
    def bounded(command: dict[str, Any]) -> float:
        return max(0.0, min(float(command["seconds"]), LONGEST_STREAM_SECONDS))

    @staticmethod
    def echo(connection: socket.socket) -> None:
        end = time.monotonic() + LONGEST_ECHO_SECONDS
        while time.monotonic() < end:
            connection.sendall(receive_exactly(connection, MESSAGE_BYTES))

    def echo_datagram(self) -> None:
        """Send a datagram of the same size back, so that both directions are proven; never more than came in."""
        try:
            content, sender = self.datagrams.recvfrom(65536)
        except OSError:
            return
        nonce, given = content[:NONCE_BYTES], content[NONCE_BYTES : NONCE_BYTES + 32]
        size = str(len(content)).encode()
        if not hmac.compare_digest(given, proof(self.token, b"datagram", nonce, size)):
            return
        answer = nonce + proof(self.token, b"echo", nonce, size)
        try:
            self.datagrams.sendto(answer.ljust(len(content), b"\0"), sender)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                with contextlib.suppress(OSError):
                    self.datagrams.sendto(nonce + proof(self.token, b"too large", nonce, size), sender)

    def perftest(self, connection: socket.socket, command: dict[str, Any]) -> None:
        """Be perftest's other end for one measurement."""
        ports = {(port["device"], port["port"]) for port in self.host.rdma_ports()}
        device, port = str(command["device"]), int(command["port"])
        if (device, port) not in ports or command["test"] not in PERFTEST:
            return
        words = perftest_command(command["test"], device, port, self.port + 1, RDMA_STREAM_SECONDS)
        # timeout(1) also ends it when this process is no more; --foreground keeps it in this process group.
        with subprocess.Popen(
            ["timeout", "--foreground", "--kill-after=1", "15", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            end = time.monotonic() + 2
            while process.poll() is None and not listens(self.port + 1) and time.monotonic() < end:
                time.sleep(0.05)
            if process.poll() is None and listens(self.port + 1):
                send_object(connection, {"tcp_port": self.port + 1})
            else:
                process.terminate()
                send_object(connection, {"error": last_line(process.communicate()[0])})


def listens(port: int) -> bool:
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(name, encoding="utf-8") as table:
            for line in table.readlines()[1:]:
                words = line.split()
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                    return True
    return False


# --- the server as a process of its own ------------------------------------------------------------------------------


def start(name: str, address: str, port: int, token: str, seconds: int, runtime: Path = RUNTIME) -> dict[str, Any]:
    """Leave a server behind that ends after some seconds; the one before it is stopped.

    It is a fork, so the token reaches it in memory alone, and it needs no file that goes when the module ends. What it uses
    is loaded before: as nobody it may be unable to read Python's own files.
    """
    stop(runtime)
    private_directory(runtime)
    try:
        server = Server(name, address, port, token)
    except NetworkError:
        runtime.rmdir()
        raise
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        detach(server, seconds, writing)
    os.close(writing)
    server.close()
    os.waitpid(child, 0)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        said = pipe.read()
    if not said.isdigit():
        raise NetworkError(f"the server did not start: {said or 'it died without a word'}.")
    state = {"pid": int(said), "started": started(int(said)), "address": address, "port": server.port}
    path = runtime / "server.json"
    new = runtime / "server.json.new"
    new.write_text(json.dumps(state), encoding="utf-8")
    os.replace(new, path)
    return state


def detach(server: Server, seconds: int, status: int) -> None:
    """In the forked process: become a daemon without privileges, serve, and never return."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        # A group of its own, so that all of it can be stopped at once.
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # The kernel ends it, whatever its threads are doing then.
        signal.alarm(seconds)
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        keep = {0, 1, 2, status, server.listener.fileno(), server.datagrams.fileno()}
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in keep:
                with contextlib.suppress(OSError):
                    os.close(int(name))
        drop_privileges()
        os.write(status, str(os.getpid()).encode())
        os.close(status)
        server.serve(seconds)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(status, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(0)


def drop_privileges() -> None:
    if os.geteuid() != 0:
        return
    # RDMA pins memory.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    nobody = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)


def private_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise NetworkError(f"{path} cannot be made ({error.strerror}): run it as root (become: true).") from error
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise NetworkError(f"{path} is not a directory of this user alone; remove it.")


def started(pid: int) -> int:
    """When a process was started, in ticks since boot; 0 where there is none. A number that was given again starts later."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    words = text.rpartition(")")[2].split()
    return 0 if words[0] in "ZX" else int(words[19])


def running(runtime: Path = RUNTIME) -> dict[str, Any] | None:
    """The server that was left here, if it still runs and is the same process."""
    if not runtime.is_dir():
        return None
    private_directory(runtime)
    try:
        state: dict[str, Any] = json.loads((runtime / "server.json").read_text(encoding="utf-8"))
        return state if state["started"] and started(state["pid"]) == state["started"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stop(runtime: Path = RUNTIME) -> bool:
    """End the server and remove what it had; whether there was one."""
    state = running(runtime)
    if state:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(state["pid"], number)
            end = time.monotonic() + 3
            while started(state["pid"]) == state["started"] and time.monotonic() < end:
                time.sleep(0.02)
        if started(state["pid"]) == state["started"]:
            raise NetworkError(f"process {state['pid']} does not end.")
    if runtime.is_dir():
        for name in ("server.json", "server.json.new"):
            with contextlib.suppress(FileNotFoundError):
                (runtime / name).unlink()
        with contextlib.suppress(OSError):
            runtime.rmdir()
    return bool(state)
