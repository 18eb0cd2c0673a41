# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The Jinja test onprem.llm.private_address."""

from __future__ import annotations

import pytest
from ansible_collections.onprem.llm.plugins.test.private_address import is_private


@pytest.mark.parametrize(
    "value",
    [
        "127.0.0.1",
        "127.255.0.9",
        "10.0.0.0",
        "10.255.255.255",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "::1",
        "fd00::1",
        "fe80::1",
        "fe80::1%eth0",
        "::ffff:10.1.2.3",
        "10.0.0.0/8",
        "192.168.1.7/24",
        "fd12:3456::/48",
        " 10.0.0.1 ",
    ],
)
def test_private(value: str) -> None:
    assert is_private(value)


@pytest.mark.parametrize(
    "value",
    [
        "8.8.8.8",
        "172.15.255.255",
        "172.32.0.0",
        "192.169.0.1",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "0.0.0.0",
        "::",
        "*",
        "",
        "2001:db8::1",
        "2a00::1",
        "::ffff:8.8.8.8",
        "::/0",
        "0.0.0.0/0",
        "10.0.0.0/7",
        "::ffff:0:0/96",
        "localhost",
        "gpu1.corp.example",
        "10.0.0.1:80",
        "10.0.0",
        "010.0.0.1",
        None,
        1,
        True,
        ["10.0.0.1"],
    ],
)
def test_not_private(value: object) -> None:
    assert not is_private(value)
