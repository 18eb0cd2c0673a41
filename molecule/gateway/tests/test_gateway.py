#!/usr/bin/python3
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The gateway in use. Runs on the gateway's host, with nothing but Python's own library."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import threading
import time
import unittest
import urllib.request
from collections.abc import Iterator

ADDRESS = os.environ["GATEWAY_ADDRESS"]
LIMIT = int(os.environ["GATEWAY_LIMIT"])
CA = "/etc/onprem/tls/ca.pem"
KEY = "test-key-of-alice"
REVOKED = "test-key-of-mallory"
CHAT = "/v1/chat/completions"
STARTED = time.strftime("%Y-%m-%d %H:%M:%S")


def context() -> ssl.SSLContext:
    """Trust the internal CA and nothing else."""
    return ssl.create_default_context(cafile=CA)


class Client:
    """One connection to the gateway."""

    def __init__(self, timeout: float = 20) -> None:
        self.connection = http.client.HTTPSConnection(ADDRESS, 443, context=context(), timeout=timeout)

    def ask(
        self,
        path: str,
        body: object = None,
        key: str | None = KEY,
        method: str | None = None,
        chunked: bool = False,
        headers: dict[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        sent = {} if key is None else {"Authorization": f"Bearer {key}"}
        sent.update(headers or {})
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        method = method or ("GET" if body is None else "POST")
        if chunked:
            assert data is not None
            pieces = [data[start : start + 4096] for start in range(0, len(data), 4096)]
            self.connection.request(method, path, iter(pieces), sent, encode_chunked=True)
        else:
            self.connection.request(method, path, data, sent)
        return self.connection.getresponse()

    def stream(self, **wishes: object) -> Iterator[tuple[float, dict[str, object]]]:
        """Each event and when it arrived."""
        response = self.ask(CHAT, {"stream": True, **wishes})
        if response.status != 200:
            raise AssertionError(response.status)
        while line := response.readline():
            text = line.decode().strip()
            if text == "data: [DONE]":
                return
            if text:
                yield time.time(), json.loads(text.removeprefix("data: "))
        raise AssertionError("the stream ended without its last event")


def raw(data: bytes, seconds: float = 5) -> bytes:
    """What the gateway answers to these bytes."""
    with context().wrap_socket(socket.create_connection((ADDRESS, 443)), server_hostname=ADDRESS) as connection:
        connection.settimeout(seconds)
        connection.sendall(data)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except OSError:
            pass
        return answer


def runtime(command: str) -> str:
    """The runtime socket's answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("/run/haproxy/admin.sock")
        connection.sendall(f"{command}\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer.decode()


def open_requests() -> int:
    """How many requests the gateway has with its model servers."""
    rows = [line.split(",") for line in runtime("show stat").splitlines() if line.startswith(("models,one", "models,two"))]
    return sum(int(row[4]) for row in rows)


def seen(port: int) -> dict[str, int]:
    """What one model server counts, asked behind the gateway's back."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/seen") as answer:
        counts: dict[str, int] = json.load(answer)
        return counts


def systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemctl", *words, "haproxy.service"], text=True, capture_output=True, check=False)


def journal() -> list[str]:
    """What the gateway logged since the tests began."""
    time.sleep(0.5)
    command = ["journalctl", "--unit=haproxy.service", f"--since={STARTED}", "--output=cat", "--no-pager"]
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout.splitlines()


class Keys(unittest.TestCase):
    """Who is let in."""

    def test_good(self) -> None:
        answer = Client().ask("/v1/models")
        self.assertEqual(answer.status, 200)
        self.assertEqual(json.load(answer)["data"][0]["id"], "test")

    def test_bad(self) -> None:
        digest = "a2d5d6e9f3f1b8b0c4c19c1e7a3c5f0d7e6b8a9c0d1e2f3a4b5c6d7e8f9a0b1c"
        for key in (None, "", "wrong", REVOKED, KEY + "x", KEY[:-1], KEY.upper(), digest, "alice", "#"):
            with self.subTest(key=key):
                answer = Client().ask(CHAT, {}, key=key)
                self.assertEqual(answer.status, 401)
                self.assertEqual(answer.headers["WWW-Authenticate"], "Bearer")
                body = answer.read().decode()
                # The same words whatever was wrong.
                self.assertEqual(json.loads(body)["error"]["message"], "Authentication failed.")
                self.assertNotRegex(body, "alice|mallory|revoked|sha256|haproxy")

    def test_other_schemes(self) -> None:
        for value in (f"Basic {KEY}", KEY, f"Bearer  {KEY} x", f"Bearer\t{KEY}"):
            with self.subTest(value=value):
                self.assertEqual(Client().ask(CHAT, {}, key=None, headers={"Authorization": value}).status, 401)

    def test_digest_is_no_key(self) -> None:
        with open("/etc/haproxy/keys.map", encoding="utf-8") as file:
            digests = re.findall(r"^[0-9a-f]{64}", file.read(), re.MULTILINE)
        self.assertEqual(len(digests), 1, "the revoked key's digest has no place in the map")
        self.assertEqual(Client().ask(CHAT, {}, key=digests[0]).status, 401)

    def test_key_goes_no_further(self) -> None:
        answer = Client().ask(f"{CHAT}?tell=me", {}, headers={"X-Forwarded-For": "6.6.6.6", "Cookie": "a=b"})
        told = json.load(answer)
        self.assertEqual(told["path"], CHAT)
        self.assertNotIn("authorization", told["headers"])
        self.assertNotIn("cookie", told["headers"])
        self.assertNotIn("x-forwarded-for", told["headers"])
        self.assertEqual(told["headers"]["x-request-id"], answer.headers["X-Request-Id"])
        self.assertNotIn("Server", answer.headers)


class Paths(unittest.TestCase):
    """What may be asked."""

    def test_unlisted(self) -> None:
        other_services = ["/", "/pause", "/tokenize", "/metrics", "/docs", "/seen"]
        almost = ["/v1/models/", "/v1/models/../pause", "//v1/models", "/v1/%6dodels", "/V1/models", "/v1/models;x"]
        for path in [*other_services, *almost, "/health/"]:
            for key in (KEY, None):
                with self.subTest(path=path, key=key):
                    self.assertEqual(Client().ask(path, key=key).status, 404)

    def test_methods(self) -> None:
        answer = Client().ask(CHAT)
        self.assertEqual((answer.status, answer.headers["Allow"]), (405, "POST"))
        self.assertEqual(Client().ask("/v1/models", {}, method="DELETE").status, 405)

    def test_absolute_form_and_odd_requests(self) -> None:
        end = b"Host: x\r\nAuthorization: Bearer " + KEY.encode() + b"\r\nConnection: close\r\n\r\n"
        self.assertTrue(raw(b"GET https://x/v1/models HTTP/1.1\r\n" + end).startswith(b"HTTP/1.1 200 "))
        self.assertTrue(raw(b"GET https://x/pause HTTP/1.1\r\n" + end).startswith(b"HTTP/1.1 404 "))
        self.assertTrue(raw(b"OPTIONS * HTTP/1.1\r\n" + end).startswith(b"HTTP/1.1 404 "))
        self.assertTrue(raw(b"CONNECT x:443 HTTP/1.1\r\n" + end).startswith(b"HTTP/1.1 404 "))
        self.assertTrue(raw(b"SECRETMETHOD /v1/models HTTP/1.1\r\n" + end).startswith(b"HTTP/1.1 405 "))
        self.assertTrue(raw(b"GET /\x01SECRETPATH HTTP/1.1\r\n" + end).startswith(b"HTTP/1.1 400 "))
        self.assertTrue(raw(b'GET /"SECRETPATH\\ HTTP/1.1\r\n' + end).startswith(b"HTTP/1.1 404 "))
        self.assertTrue(raw(b"GET /v1/models HTTP/1.1\r\nX: " + b"a" * 17000 + b"\r\n" + end).startswith(b"HTTP/1.1 431 "))

    def test_health_needs_no_key_and_follows_the_model_servers(self) -> None:
        answer = Client().ask("/health", key=None)
        self.assertEqual((answer.status, answer.read()), (200, b'{"status":"ok"}'))
        try:
            runtime("set server models/one state maint")
            self.assertEqual(Client().ask("/health", key=None).status, 200)
            runtime("set server models/two state maint")
            answer = Client().ask("/health", key=None)
            self.assertEqual((answer.status, answer.read()), (503, b'{"status":"unavailable"}'))
            answer = Client().ask(CHAT, {})
            self.assertEqual((answer.status, json.load(answer)["error"]["type"]), (503, "server_error"))
        finally:
            for name in ("one", "two"):
                runtime(f"set server models/{name} state ready")


class Bodies(unittest.TestCase):
    """How much may be sent."""

    def test_limit(self) -> None:
        for chunked in (False, True):
            for size, status in ((LIMIT, 200), (LIMIT + 1, 413), (20 * LIMIT, 413)):
                with self.subTest(chunked=chunked, size=size):
                    before = sum(seen(port)["requests"] for port in (8001, 8002))
                    client = Client()
                    try:
                        answer = client.ask("/v1/completions", b"a" * size, chunked=chunked)
                    except OSError:
                        # HAProxy 2.6 hangs up on a client that goes on sending; what it said is there to be read.
                        answer = client.connection.getresponse()
                    self.assertEqual(answer.status, status)
                    if status == 200:
                        self.assertEqual(json.load(answer)["bytes"], size)
                    passed = sum(seen(port)["requests"] for port in (8001, 8002)) - before
                    self.assertEqual(passed, 1 if status == 200 else 0)

    def test_lying_lengths(self) -> None:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode()
        for length in (2 * LIMIT, 2**31, 2**32 + 1, 2**63 - 1):
            with self.subTest(length=length):
                answer = raw(head + f"Content-Length: {length}\r\n\r\na".encode(), seconds=1)
                self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), answer[:80])
        answer = raw(head + f"Content-Length: {LIMIT + 1}\r\nExpect: 100-continue\r\n\r\n".encode(), seconds=1)
        self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), answer[:80])

    def test_body_that_never_ends(self) -> None:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode()
        answer = raw(head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", seconds=4)
        self.assertTrue(answer.startswith(b"HTTP/1.1 408 "), answer[:80])


class Tls(unittest.TestCase):
    """How it is reached."""

    def test_versions(self) -> None:
        with context().wrap_socket(socket.create_connection((ADDRESS, 443)), server_hostname=ADDRESS) as connection:
            self.assertEqual(connection.version(), "TLSv1.3")
        old = context()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with self.assertRaises(ssl.SSLError), socket.create_connection((ADDRESS, 443)) as plain:
            old.wrap_socket(plain, server_hostname=ADDRESS)

    def test_plain_http(self) -> None:
        with socket.create_connection((ADDRESS, 443), timeout=5) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                self.assertNotIn(b"HTTP", connection.recv(4096))

    def test_http2(self) -> None:
        offered = context()
        offered.set_alpn_protocols(["h2", "http/1.1"])
        with offered.wrap_socket(socket.create_connection((ADDRESS, 443)), server_hostname=ADDRESS) as connection:
            self.assertEqual(connection.selected_alpn_protocol(), "h2")


class Streams(unittest.TestCase):
    """Server-sent events."""

    def test_each_event_arrives_when_it_is_sent(self) -> None:
        events = list(Client().stream(pieces=5, piece_seconds=0.2))
        self.assertEqual([event["number"] for _, event in events], [0, 1, 2, 3, 4])
        for arrived, event in events:
            sent = event["sent"]
            assert isinstance(sent, float)
            self.assertLess(arrived - sent, 0.15)
        self.assertGreater(events[-1][0] - events[0][0], 0.7)

    def test_silence_longer_than_the_clients_timeout(self) -> None:
        self.assertEqual(Client().ask(CHAT, {"silence_seconds": 3.5}).status, 200)
        self.assertEqual(len(list(Client().stream(pieces=2, piece_seconds=3.5))), 2)

    def test_reloads_drop_nothing(self) -> None:
        results: dict[int, int | str] = {}

        def read(number: int) -> None:
            try:
                results[number] = len(list(Client().stream(pieces=40, piece_seconds=0.1)))
            except Exception as error:
                results[number] = repr(error)

        readers = [threading.Thread(target=read, args=(number,)) for number in range(20)]
        for reader in readers:
            reader.start()
        time.sleep(0.5)
        workers = set()
        for _ in range(2):
            done = systemctl("reload")
            self.assertEqual(done.returncode, 0, done.stderr)
            workers.add(re.findall(r"^Pid: (\d+)", runtime("show info"), re.MULTILINE)[0])
            # New connections are served all the while.
            self.assertEqual(Client().ask("/v1/models").status, 200)
        self.assertEqual(len(workers), 2, "each reload makes a new process")
        for reader in readers:
            reader.join()
        self.assertEqual(results, {number: 40 for number in range(20)})

    def test_requests_during_reloads(self) -> None:
        stop = threading.Event()
        statuses: collections.Counter[int | str] = collections.Counter()

        def ask() -> None:
            while not stop.is_set():
                try:
                    statuses[Client().ask("/v1/models").status] += 1
                except Exception as error:
                    statuses[repr(error)] += 1

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        for _ in range(3):
            self.assertEqual(systemctl("reload").returncode, 0)
        stop.set()
        for asker in askers:
            asker.join()
        self.assertEqual(set(statuses), {200}, statuses)

    def test_client_that_leaves_ends_its_generation(self) -> None:
        before = sum(seen(port)["aborted"] for port in (8001, 8002))
        client = Client()
        next(client.stream(pieces=50, piece_seconds=0.1))
        assert client.connection.sock is not None
        client.connection.sock.close()
        client.connection.close()
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline and sum(seen(port)["aborted"] for port in (8001, 8002)) == before:
            time.sleep(0.1)
        self.assertEqual(sum(seen(port)["aborted"] for port in (8001, 8002)), before + 1)

    def test_fewest_open_requests(self) -> None:
        deadline = time.monotonic() + 10
        while open_requests() and time.monotonic() < deadline:
            time.sleep(0.1)
        servers: collections.Counter[str | None] = collections.Counter()
        clients = [Client() for _ in range(10)]
        answers = [client.ask(CHAT, {"stream": True, "pieces": 10}) for client in clients]
        servers.update(answer.headers["X-Server"] for answer in answers)
        self.assertEqual(servers, {"8001": 5, "8002": 5})
        for answer in answers:
            answer.read()


class Operation(unittest.TestCase):
    """What operators rely on."""

    def test_a_drain_outlives_a_reload_and_a_restart(self) -> None:
        try:
            runtime("set server models/one state drain")
            for action in ("reload", "restart"):
                self.assertEqual(systemctl(action).returncode, 0)
                answers = [json.load(Client().ask(CHAT, {}))["server"] for _ in range(4)]
                self.assertEqual(answers, [8002] * 4, action)
        finally:
            runtime("set server models/one state ready")

    def test_a_broken_configuration_is_not_loaded(self) -> None:
        path = "/etc/haproxy/haproxy.cfg"
        with open(path, encoding="utf-8") as file:
            good = file.read()
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write("nonsense\n")
            self.assertNotEqual(systemctl("reload").returncode, 0)
            self.assertEqual(Client().ask("/v1/models").status, 200)
        finally:
            with open(path, "w", encoding="utf-8") as file:
                file.write(good)
        self.assertEqual(systemctl("reload").returncode, 0)

    def test_a_new_port_of_a_server_wins_over_the_kept_state(self) -> None:
        path = "/etc/haproxy/haproxy.cfg"
        with open(path, encoding="utf-8") as file:
            good = file.read()
        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(good.replace("server two 127.0.0.1:8002", "server two 127.0.0.1:8001"))
            self.assertEqual(systemctl("reload").returncode, 0)
            answers = {json.load(Client().ask(CHAT, {}))["server"] for _ in range(4)}
            self.assertEqual(answers, {8001})
        finally:
            with open(path, "w", encoding="utf-8") as file:
                file.write(good)
            self.assertEqual(systemctl("reload").returncode, 0)

    def test_a_dead_server_is_passed_over(self) -> None:
        """A refused connection is tried on the other server, before any health check has noticed."""
        try:
            runtime("set server models/two addr 127.0.0.1 port 9")
            runtime("disable health models/two")
            for _ in range(6):
                self.assertEqual(json.load(Client().ask(CHAT, {}))["server"], 8001)
        finally:
            runtime("set server models/two addr 127.0.0.1 port 8002")
            runtime("enable health models/two")

    def test_metrics(self) -> None:
        with urllib.request.urlopen("http://127.0.0.1:8405/metrics") as answer:
            text = answer.read().decode()
        self.assertIn('haproxy_server_status{proxy="models",server="one",state="UP"} 1', text)
        with self.assertRaises(OSError):
            socket.create_connection((ADDRESS, 8405), timeout=2)

    def test_secrets_on_disk(self) -> None:
        for path, mode in (("/etc/haproxy/keys.map", 0o640), ("/etc/haproxy/haproxy.cfg", 0o640)):
            with self.subTest(path=path):
                self.assertEqual(os.stat(path).st_mode & 0o777, mode)
        for path in ("/run/haproxy/admin.sock", "/run/haproxy/master.sock"):
            self.assertEqual(os.stat(path).st_mode & 0o007, 0)

    def test_no_root(self) -> None:
        pids = subprocess.run(["pgrep", "-x", "haproxy"], text=True, capture_output=True, check=True).stdout.split()
        for pid in pids:
            self.assertNotEqual(os.stat(f"/proc/{pid}").st_uid, 0)


class Logs(unittest.TestCase):
    """What is written down."""

    def test_access_log(self) -> None:
        answer = Client().ask(f"{CHAT}?q=SECRETQUERY", {"stream": True, "echo": "SECRETPROMPT", "pieces": 2})
        self.assertIn(b"SECRETPROMPT", answer.read())
        Client().ask("/SECRETPATH", headers={"User-Agent": 'SECRETAGENT"\\'})
        Client().ask(CHAT, {}, key="SECRETWRONGKEY")
        Client().ask(CHAT, {}, key=REVOKED)
        lines = journal()
        text = "\n".join(lines)
        for secret in ("SECRET", KEY, REVOKED):
            self.assertNotIn(secret, text)
        entries = [json.loads(line) for line in lines if line.startswith("{")]
        mine = [entry for entry in entries if entry.get("request_id") == answer.headers["X-Request-Id"]]
        self.assertEqual(len(mine), 1)
        self.assertEqual(
            {name: mine[0][name] for name in ("client", "method", "path", "status", "backend", "termination", "tls")},
            {
                "client": "alice",
                "method": "POST",
                "path": CHAT,
                "status": 200,
                "backend": "models",
                "termination": "--",
                "tls": "TLSv1.3",
            },
        )
        self.assertIn(mine[0]["server"], ("one", "two"))
        self.assertIn(401, [entry.get("status") for entry in entries])


if __name__ == "__main__":
    unittest.main(warnings="ignore")
