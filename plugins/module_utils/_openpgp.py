# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fingerprints of the primary keys in a public key file, so that a fetched key can be compared with the published one.

Only that: signatures are checked by the package manager. gpg is not on every host, and this needs none.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator

PUBLIC_KEY_PACKET = 6
ARMOR = re.compile(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL)


class OpenPGPError(Exception):
    """A file that is no public key."""


def dearmored(content: bytes) -> bytes:
    """The binary packets, whatever the form of the file."""
    blocks = ARMOR.findall(content)
    if not blocks:
        return content
    packets = b""
    for block in blocks:
        # Headers end with an empty line; the line that begins with = is a checksum (RFC 9580, section 6.2).
        lines = block.replace(b"\r", b"").partition(b"\n\n")[2].split(b"\n")
        text = b"".join(line.strip() for line in lines if not line.startswith(b"="))
        try:
            packets += base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise OpenPGPError(f"its base64 is damaged: {error}") from error
    return packets


def armored(packets_: bytes) -> bytes:
    """The packets as text, and nothing besides them."""
    text = base64.encodebytes(packets_).replace(b"\n", b"")
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN PGP PUBLIC KEY BLOCK-----", b"", *lines, b"-----END PGP PUBLIC KEY BLOCK-----", b""])


def packets(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, body) of each packet (RFC 9580, section 4.2)."""
    position = 0
    while position < len(content):
        first = content[position]
        if not first & 0x80:
            raise OpenPGPError("it holds no OpenPGP packets")
        try:
            if first & 0x40:
                tag, position, length = first & 0x3F, position + 1, content[position + 1]
                if length < 192:
                    size, used = length, 1
                elif length < 224:
                    size, used = ((length - 192) << 8) + content[position + 1] + 192, 2
                elif length == 255:
                    size, used = int.from_bytes(content[position + 1 : position + 5], "big"), 5
                else:
                    raise OpenPGPError("a packet of partial length, which no key has")
            else:
                tag, used = (first >> 2) & 0xF, 1 << (first & 3)
                position += 1
                if used == 8:
                    raise OpenPGPError("a packet of undeclared length, which no key has")
                size = int.from_bytes(content[position : position + used], "big")
                if position + used > len(content):
                    raise OpenPGPError("it ends in the middle of a packet")
        except IndexError as error:
            raise OpenPGPError("it ends in the middle of a packet") from error
        body = content[position + used : position + used + size]
        if len(body) != size:
            raise OpenPGPError("it ends in the middle of a packet")
        yield tag, body
        position += used + size


def fingerprints(content: bytes) -> list[str]:
    """Fingerprints of all primary keys, in capitals without blanks."""
    found = []
    for tag, body in packets(dearmored(content)):
        if tag == PUBLIC_KEY_PACKET and body[:1] == b"\x04":
            # SHA-1 is what a version 4 fingerprint is made of (RFC 9580, section 5.5.4.2).
            digest = hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False)
            found.append(digest.hexdigest().upper())
        elif tag == PUBLIC_KEY_PACKET:
            raise OpenPGPError(f"it holds a key of version {body[:1].hex()}, and only version 4 is known here")
    if not found:
        raise OpenPGPError("it holds no public key")
    return found
