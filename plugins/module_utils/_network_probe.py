# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure the way to other hosts: who measures whom and when, what both ends say, and the client.

Both ends prove that they know the run's token before anything else is said. What is measured is not encrypted, because it
is zeros.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import hmac
import json
import math
import secrets
import select
import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils._network_host import (
    PERFTEST,
    NetworkError,
    NetworkHost,
    active,
    bandwidth_figures,
    last_line,
    latency_figures,
    perftest_command,
)

HELLO = b"onprem-llm network probe 1\n"
NONCE_BYTES = 32
MESSAGE_BYTES = 64
BLOCK_BYTES = 256 * 1024
COMMAND_BYTES = 1024
LENGTH = struct.Struct(">I")
WARM_UP = 50
# Fewer than this tell no 99th percentile.
MINIMUM_SAMPLES = 300
# How long a peer may take for a connection, and for the proof that it knows the token.
CONNECT_SECONDS = 2.0
# Beside the measurement itself: connecting, asking, and starting perftest on both ends.
SETUP_SECONDS = 1.5
PAUSE_SECONDS = 0.5
RDMA_LATENCY_SECONDS = 3
RDMA_STREAM_SECONDS = 2
RDMA_BANDWIDTH_SECONDS = RDMA_STREAM_SECONDS + 3

# Numbers of linux/in.h and linux/in6.h, which Python does not name.
MTU_OPTIONS = {
    socket.AF_INET: (socket.IPPROTO_IP, 10, 14, 28),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 23, 24, 48),
}
PMTUDISC_DO = 2
LARGEST_DATAGRAM = 65507
MTU_ATTEMPTS = 3
MTU_WAIT_SECONDS = 0.2


# --- who measures whom, and when -------------------------------------------------------------------------------------


def rounds(hosts: list[str], me: str) -> list[str | None]:
    """The peer that a host measures in each round, or None; in no round two hosts measure one, or one measures two.

    Each pair is measured by one of its two hosts. Of two hosts alone, each measures the other in its turn: otherwise one
    of them would have nothing to show.
    """
    number = len(hosts)
    place = hosts.index(me)
    if number == 2:
        other = hosts[1 - place]
        return [other, None] if place == 0 else [None, other]
    found: list[str | None] = []
    for distance in range(1, number // 2 + 1):
        halved = 2 * distance == number
        found.append(None if halved and place >= distance else hosts[(place + distance) % number])
    return found


class Timetable:
    """The phases of a round, in seconds from its start; the same on all hosts, so that no stream disturbs a ping."""

    def __init__(self, latency_seconds: float, bandwidth_seconds: float, rails: int) -> None:
        self.send = latency_seconds + SETUP_SECONDS
        self.receive = self.send + bandwidth_seconds + PAUSE_SECONDS
        self.rdma_latency = self.receive + bandwidth_seconds + PAUSE_SECONDS
        self.rdma_bandwidth = self.rdma_latency + rails * RDMA_LATENCY_SECONDS
        self.slot = math.ceil(self.rdma_bandwidth + rails * RDMA_BANDWIDTH_SECONDS + PAUSE_SECONDS)

    def next_slot(self, now: float) -> int:
        return math.floor(now / self.slot) + 1

    def seconds(self, number_of_rounds: int) -> int:
        """The longest that all rounds take, with the wait for the first."""
        return (number_of_rounds + 1) * self.slot


def slots(timetable: Timetable, number_of_rounds: int) -> Iterator[tuple[int, float]]:
    """Wait for each round's slot and give its number and its start.

    A slot's number since the epoch says which round it is for, so hosts that begin later, for instance because Ansible has
    fewer forks than hosts, still do the same round at the same time as the others.
    """
    left = set(range(number_of_rounds))
    last = timetable.next_slot(time.time()) + 2 * number_of_rounds
    while left:
        slot = timetable.next_slot(time.time())
        if slot > last:
            return
        if slot % number_of_rounds in left:
            wait_until(float(slot * timetable.slot))
            left.discard(slot % number_of_rounds)
            yield slot % number_of_rounds, float(slot * timetable.slot)
        else:
            wait_until(float(slot * timetable.slot))


def wait_until(moment: float | None) -> None:
    if moment is not None:
        time.sleep(max(0.0, moment - time.time()))


# --- what both ends do -----------------------------------------------------------------------------------------------


def proof(token: str, *parts: bytes) -> bytes:
    return hmac.new(token.encode(), b"\0".join(parts), hashlib.sha256).digest()


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        piece = connection.recv(size - len(found))
        if not piece:
            raise NetworkError("the other end closed the connection")
        found += piece
    return bytes(found)


def send_object(connection: socket.socket, content: dict[str, Any]) -> None:
    text = json.dumps(content).encode()
    connection.sendall(LENGTH.pack(len(text)) + text)


def receive_object(connection: socket.socket, limit: int) -> dict[str, Any]:
    size = LENGTH.unpack(receive_exactly(connection, LENGTH.size))[0]
    if size > limit:
        raise NetworkError(f"the other end announces {size} bytes where {limit} are allowed")
    content = json.loads(receive_exactly(connection, size))
    if not isinstance(content, dict):
        raise NetworkError("the other end sent something else than an object")
    return content


def receive_stream(connection: socket.socket, seconds: float) -> dict[str, float]:
    """Count what arrives within some seconds after the first byte."""
    block = bytearray(BLOCK_BYTES)
    total = connection.recv_into(block)
    begun = time.monotonic()
    end = begun + seconds
    while total:
        left = end - time.monotonic()
        if left <= 0:
            break
        connection.settimeout(left)
        try:
            size = connection.recv_into(block)
        except socket.timeout:  # not yet TimeoutError in Python 3.9
            break
        if not size:
            break
        total += size
    return {"bytes": float(total), "seconds": time.monotonic() - begun}


def abort(connection: socket.socket) -> None:
    """Close, and drop what was not sent yet: on a slow way it would be under way for long."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def resolve(address: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    try:
        family, _kind, _protocol, _name, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise NetworkError(f"{address}: {error.strerror}") from None
    return family, target


def forbid_fragments(datagrams: socket.socket) -> None:
    level, discover, _mtu, _headers = MTU_OPTIONS[datagrams.family]
    datagrams.setsockopt(level, discover, PMTUDISC_DO)


# --- the client ------------------------------------------------------------------------------------------------------


class Peer:
    """Another host's server, as seen from here."""

    def __init__(self, name: str, address: str, port: int, token: str) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.token = token

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        family, target = resolve(self.address, self.port)
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(CONNECT_SECONDS)
            self.introduce(connection, target)
            yield connection
        finally:
            abort(connection)

    def introduce(self, connection: socket.socket, target: tuple[Any, ...]) -> None:
        where = f"{self.address} port {self.port}"
        try:
            connection.connect(target)
        except OSError as error:
            raise NetworkError(f"{where} cannot be reached: {error.strerror or error}") from None
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            greeting = receive_exactly(connection, len(HELLO) + NONCE_BYTES)
        except (OSError, NetworkError):
            raise NetworkError(f"{where} does not answer as a network probe") from None
        if not greeting.startswith(HELLO):
            raise NetworkError(f"{where} is not a network probe of this version")
        theirs, mine = greeting[len(HELLO) :], secrets.token_bytes(NONCE_BYTES)
        try:
            connection.sendall(mine + proof(self.token, b"client", theirs, mine))
            answer = receive_exactly(connection, hashlib.sha256().digest_size)
        except (OSError, NetworkError):
            raise NetworkError(f"{where} refused the token") from None
        if not hmac.compare_digest(answer, proof(self.token, b"server", theirs, mine)):
            raise NetworkError(f"{where} does not know the token")

    def tell(self) -> dict[str, Any]:
        with self.connected() as connection:
            send_object(connection, {"do": "tell"})
            told = receive_object(connection, 64 * 1024)
            if "error" in told:
                raise NetworkError(f"{self.address} cannot tell of itself: {told['error']}")
            # Two names with one address, or an address that moved: the pair that was asked for is not the one measured.
            if told["name"] != self.name:
                raise NetworkError(f"{self.address} port {self.port} is {told['name']}, not {self.name}")
            return {**told, "clock_offset_seconds": round(float(told.pop("time")) - time.time(), 3)}

    def latency(self, samples: int, seconds: float) -> dict[str, Any]:
        """Round trips of a small message, in microseconds."""
        found: list[int] = []
        answer = bytearray(MESSAGE_BYTES)
        with self.connected() as connection:
            send_object(connection, {"do": "echo"})
            end = time.monotonic() + seconds
            for number in range(WARM_UP + samples):
                message = number.to_bytes(8, "big").ljust(MESSAGE_BYTES, b"\0")
                begun = time.perf_counter_ns()
                connection.sendall(message)
                size = connection.recv_into(answer)
                taken = time.perf_counter_ns() - begun
                if size != MESSAGE_BYTES or answer != message:
                    raise NetworkError(f"{self.address} did not send a message back as it was")
                if number >= WARM_UP:
                    found.append(taken)
                if time.monotonic() > end:
                    break
        if not found:
            raise NetworkError(f"{self.address} answered fewer than {WARM_UP} messages within {seconds:g} s")
        found.sort()
        return {
            "latency_median_us": round(statistics.median(found) / 1000, 2),
            "latency_p99_us": round(found[math.ceil(len(found) * 0.99) - 1] / 1000, 2),
            "latency_min_us": round(found[0] / 1000, 2),
            "samples": len(found),
        }

    def bandwidth(self, direction: str, seconds: float, streams: int, begin: float | None = None) -> float:
        """GB/s over several streams at a time; direction is what the peer does, take or give."""
        wait_until(None if begin is None else begin - PAUSE_SECONDS)
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(self.connected()) for _stream in range(streams)]
            wait_until(begin)
            transfer = self.send_stream if direction == "take" else self.fetch_stream
            with concurrent.futures.ThreadPoolExecutor(streams) as pool:
                results = list(pool.map(lambda connection: transfer(connection, seconds), connections))
        return round(sum(result["bytes"] / max(result["seconds"], seconds) for result in results) / 1e9, 6)

    def send_stream(self, connection: socket.socket, seconds: float) -> dict[str, Any]:
        send_object(connection, {"do": "take", "seconds": seconds})
        block = bytes(BLOCK_BYTES)
        end = time.monotonic() + seconds + CONNECT_SECONDS
        while time.monotonic() < end:
            readable, writable, _errors = select.select([connection], [connection], [], 0.2)
            if readable:
                return receive_object(connection, COMMAND_BYTES)
            if writable:
                connection.send(block, socket.MSG_DONTWAIT)
        raise NetworkError(f"{self.address} did not say how much of a stream arrived")

    @staticmethod
    def fetch_stream(connection: socket.socket, seconds: float) -> dict[str, Any]:
        send_object(connection, {"do": "give", "seconds": seconds})
        return receive_stream(connection, seconds)

    def largest_packet(self, mtu: int) -> dict[str, Any]:
        """Whether a packet of this size goes there and back unfragmented, and the path MTU that the kernel knows."""
        family, target = resolve(self.address, self.port)
        level, _discover, option, headers = MTU_OPTIONS[family]
        size = min(mtu - headers, LARGEST_DATAGRAM)
        with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
            forbid_fragments(datagrams)
            datagrams.settimeout(MTU_WAIT_SECONDS)
            datagrams.connect(target)
            passes, reason = False, "a packet of that size gets no answer"
            for _attempt in range(MTU_ATTEMPTS):
                nonce = secrets.token_bytes(NONCE_BYTES)
                text = str(size).encode()
                try:
                    datagrams.send((nonce + proof(self.token, b"datagram", nonce, text)).ljust(size, b"\0"))
                    answer = datagrams.recv(65536)
                except socket.timeout:
                    continue
                except OSError as error:
                    if error.errno != errno.EMSGSIZE:
                        raise
                    reason = "the way there takes only smaller packets"
                    break
                if answer.startswith(nonce + proof(self.token, b"echo", nonce, text)) and len(answer) == size:
                    passes, reason = True, ""
                    break
                if answer == nonce + proof(self.token, b"too large", nonce, text):
                    reason = "the way back takes only smaller packets"
                    break
            return {"mtu_passes": passes, "mtu_reason": reason, "path_mtu": datagrams.getsockopt(level, option)}

    def rdma(self, test: str, mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
        with self.connected() as connection:
            connection.settimeout(5)
            send_object(connection, {"do": "perftest", "test": test, "device": theirs["device"], "port": theirs["port"]})
            ready = receive_object(connection, COMMAND_BYTES)
            if "tcp_port" not in ready:
                raise NetworkError(f"{PERFTEST[test]} does not start on {self.address}: {ready.get('error')}")
            words = perftest_command(test, mine["device"], mine["port"], int(ready["tcp_port"]), RDMA_STREAM_SECONDS)
            seconds = RDMA_LATENCY_SECONDS if test == "latency" else RDMA_BANDWIDTH_SECONDS
            try:
                done = subprocess.run(
                    [*words, self.address],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    encoding="utf-8",
                    errors="replace",
                    timeout=seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise NetworkError(f"{PERFTEST[test]} to {self.address} did not end within {seconds} s") from None
        if done.returncode:
            raise NetworkError(f"{PERFTEST[test]} to {self.address} ended with code {done.returncode}: {last_line(done.stdout)}")
        return latency_figures(done.stdout) if test == "latency" else bandwidth_figures(done.stdout)


class Measurement:
    """Everything about the way from this host to one other, as figures; judging them is left to others."""

    def __init__(self, peer: Peer, options: dict[str, Any], timetable: Timetable, begin: float | None = None) -> None:
        self.peer = peer
        self.options = options
        self.timetable = timetable
        self.begin = begin
        self.host = NetworkHost()
        self.errors: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        found: dict[str, Any] = {"address": self.peer.address, "errors": self.errors}
        with self.noting("reach"):
            mine = self.host.toward(resolve(self.peer.address, self.peer.port)[1][0])
            found.update({name: mine[name] for name in ("interface", "mtu", "speed_mbps", "speed_reason")})
            theirs = self.peer.tell()
            found.update({f"peer_{name}": theirs[name] for name in ("interface", "mtu", "speed_mbps", "speed_reason")})
            found["clock_offset_seconds"] = theirs["clock_offset_seconds"]
        if self.errors:
            return found
        with self.noting("mtu"):
            found.update(self.peer.largest_packet(self.options["mtu"] or mine["mtu"]))
        with self.noting("latency"):
            found.update(self.peer.latency(self.options["samples"], self.options["latency_seconds"]))
        for direction, name in (("take", "send"), ("give", "receive")):
            with self.noting("bandwidth"):
                begin = self.phase(name)
                rate = self.peer.bandwidth(direction, self.options["bandwidth_seconds"], self.options["streams"], begin)
                found[f"{name}_gbytes_per_second"] = rate
        found["rdma"] = self.rdma(mine, theirs)
        return found

    @contextlib.contextmanager
    def noting(self, stage: str) -> Iterator[None]:
        try:
            yield
        except (NetworkError, OSError, ValueError, KeyError, TypeError) as error:
            self.errors.setdefault(stage, str(error) or type(error).__name__)

    def phase(self, name: str) -> float | None:
        return None if self.begin is None else self.begin + float(getattr(self.timetable, name))

    def rdma(self, mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
        ours, others = active(mine["rdma_ports"]), active(theirs["rdma_ports"])
        found: dict[str, Any] = {
            "active_ports": len(ours),
            "peer_active_ports": len(others),
            "perftest": mine["perftest"],
            "peer_perftest": theirs["perftest"],
            "rails": [],
        }
        rails = list(zip(ours, others))[: self.options["rdma_count"] or 0]
        if not (mine["perftest"] and theirs["perftest"]):
            return found
        for my_port, their_port in rails:
            rates = [port["rate_gbps"] for port in (my_port, their_port)]
            found["rails"].append(
                {
                    "port": f"{my_port['device']}/{my_port['port']}",
                    "peer_port": f"{their_port['device']}/{their_port['port']}",
                    "rate_gbps": min(rates) if all(rates) else None,
                    "errors": {},
                }
            )
        for test in PERFTEST:
            wait_until(self.phase(f"rdma_{test}"))
            for rail, (my_port, their_port) in zip(found["rails"], rails):
                try:
                    rail.update(self.peer.rdma(test, my_port, their_port))
                except (NetworkError, OSError, ValueError) as error:
                    rail["errors"][test] = str(error)
        return found
