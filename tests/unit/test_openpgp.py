# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
from pathlib import Path

import pytest
from ansible_collections.onprem.llm.plugins.module_utils._openpgp import OpenPGPError, armored, dearmored, fingerprints, packets

# Debian's archive keyring is on every machine that runs these tests; its fingerprints are published.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
BOOKWORM = "B8B80B5B623EAB6AD8775C45B7C5D7D6350947F8"


def block(content: bytes) -> bytes:
    text = base64.encodebytes(content)
    return b"-----BEGIN PGP PUBLIC KEY BLOCK-----\nComment: x\n\n" + text + b"=AAAA\n-----END PGP PUBLIC KEY BLOCK-----\n"


@pytest.fixture(name="keyring")
def read_keyring() -> bytes:
    for path in (KEYRING, KEYRING.with_suffix(".pgp")):
        if path.exists():
            return path.read_bytes()
    pytest.skip("no Debian archive keyring on this machine")


def test_known_fingerprints(keyring: bytes) -> None:
    found = fingerprints(keyring)
    assert BOOKWORM in found
    assert all(len(text) == 40 for text in found)
    assert fingerprints(block(keyring)) == found


def test_every_key_of_a_file_counts(keyring: bytes) -> None:
    assert len(fingerprints(keyring)) > 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no public key"),
        (b"<html>404</html>", "no OpenPGP packets"),
        (b"\x99\x01\x00abc", "ends in the middle"),
        (b"\x99", "ends in the middle"),
        (b"\x98\x03\x05ab", "version 05"),
        (block(b"\xff")[:60] + b"!!!!\n-----END PGP PUBLIC KEY BLOCK-----", "damaged|OpenPGP|no public key"),
    ],
)
def test_what_is_no_key_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(OpenPGPError, match=says):
        fingerprints(content)


def test_packets_of_both_formats() -> None:
    assert list(packets(b"\xc6\x03\x04ab" + b"\x98\x02xy")) == [(6, b"\x04ab"), (6, b"xy")]


def test_what_is_written_is_what_was_looked_at() -> None:
    good, evil = b"\x98\x02\x04a", b"\x98\x02\x04b"
    hidden = b"-----BEGIN PGP MESSAGE-----\n\n" + base64.encodebytes(evil) + b"-----END PGP MESSAGE-----\n" + block(good)
    written = armored(dearmored(hidden))
    assert base64.b64encode(evil) not in written
    assert fingerprints(written) == fingerprints(good)
    assert written.count(b"BEGIN") == 1
    assert dearmored(armored(b"x" * 1000)) == b"x" * 1000
