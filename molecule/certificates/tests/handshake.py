#!/usr/bin/python3
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""A TLS server with the host's certificate, and a client that trusts only the CA: once by name, once by address."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
import threading

DIRECTORY = "/etc/onprem/tls"
name = sys.argv[1]
key = f"{DIRECTORY}/{name}.pem.key"
if os.stat(key).st_mode & 0o777 != 0o640:
    sys.exit(f"{key} can be read by others")
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain(f"{DIRECTORY}/{name}.pem", key)
client = ssl.create_default_context(cafile=f"{DIRECTORY}/ca.pem")


def serve(end: socket.socket) -> None:
    """The server's side of one connection; what the client thinks of it is said by the client."""
    with contextlib.suppress(OSError), server.wrap_socket(end, server_side=True) as connection:
        connection.recv(1)


def connect(expected: str) -> str | None:
    """The version of TLS when a client finds the expected name in the certificate."""
    near, far = socket.socketpair()
    thread = threading.Thread(target=serve, args=(far,))
    thread.start()
    try:
        with client.wrap_socket(near, server_hostname=expected) as connection:
            return connection.version()
    finally:
        near.close()
        thread.join()


for expected in sys.argv[1:]:
    print(expected, connect(expected))
try:
    connect("elsewhere.example")
except ssl.SSLCertVerificationError:
    sys.exit(0)
sys.exit("the certificate is good for a name that it must not cover")
