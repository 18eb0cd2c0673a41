#!/usr/bin/python3
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""A model server for the gateway's tests, on two ports: it streams, and it tells what it was sent."""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE_SECONDS = 0.2


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    # Each write is a packet, as a model server's are.
    wbufsize = 0

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the test looks for prompts in the journal."""

    def answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        whole = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return whole

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        if self.path == "/health":
            self.answer(200, {})
        elif self.path == "/seen":
            self.answer(200, {"requests": server.requests, "aborted": server.aborted})
        elif self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": [{"id": "test"}], "server": server.server_port})
        else:
            # Reached only when the gateway lets an unlisted path through.
            self.answer(200, {"leaked": self.path})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        body = self.body()
        with server.lock:
            server.requests += 1
        try:
            asked = json.loads(body or b"{}")
        except ValueError:
            asked = {}
        time.sleep(asked.get("silence_seconds", 0))
        if not asked.get("stream"):
            self.answer(
                200,
                {
                    "server": server.server_port,
                    "bytes": len(body),
                    "path": self.path,
                    "headers": {name.lower(): value for name, value in self.headers.items()},
                },
            )
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("X-Server", str(server.server_port))
        self.end_headers()
        try:
            for number in range(asked.get("pieces", 5)):
                piece = json.dumps({"number": number, "sent": time.time(), "text": asked.get("echo", "")})
                self.piece(f"data: {piece}\n\n".encode())
                time.sleep(asked.get("piece_seconds", PIECE_SECONDS))
            self.piece(b"data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            with server.lock:
                server.aborted += 1
            self.close_connection = True

    def piece(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


class Server(ThreadingHTTPServer):
    """One model server."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.lock = threading.Lock()
        self.requests = 0
        self.aborted = 0


if __name__ == "__main__":
    for port in map(int, sys.argv[1:]):
        threading.Thread(target=Server(port).serve_forever).start()
