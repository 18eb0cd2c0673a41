# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The Jinja test `onprem.llm.private_address`."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

DOCUMENTATION = r"""
name: private_address
author: The onprem.llm authors
version_added: 0.1.0
short_description: Whether an address can be reached from private networks only
description:
  - True for an IPv4 or IPv6 address, or a network, that is loopback, link-local, of RFC 1918 (C(10.0.0.0/8),
    C(172.16.0.0/12), C(192.168.0.0/16)) or unique local (C(fc00::/7)).
  - False for everything else, a host name and the unspecified address among it, since nothing is known about them.
options:
  _input:
    description: The address or network.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Refuse to listen on a public address
  ansible.builtin.assert:
    that: gateway_metrics_address is onprem.llm.private_address
"""

RETURN = r"""
_value:
  description: Whether the address is private.
  type: bool
"""

# Not ipaddress.is_private: that is also true of documentation, benchmark and unspecified addresses.
PRIVATE = [
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
]


def is_private(value: object) -> bool:
    """Whether the whole of an address or network lies in a private one."""
    # The module takes integers too, and 1 as an address is a mistake rather than 0.0.0.1.
    if not isinstance(value, str):
        return False
    address, slash, prefix = value.strip().partition("/")
    address = address.partition("%")[0]
    try:
        network = ipaddress.ip_network(address + slash + prefix, strict=False)
    except ValueError:
        return False
    if isinstance(network, ipaddress.IPv6Network):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= 96:
            network = ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}", strict=False)
    # An if for each version, because subnet_of refuses to compare them.
    if isinstance(network, ipaddress.IPv4Network):
        return any(isinstance(known, ipaddress.IPv4Network) and network.subnet_of(known) for known in PRIVATE)
    return any(isinstance(known, ipaddress.IPv6Network) and network.subnet_of(known) for known in PRIVATE)


class TestModule:
    """What ansible loads."""

    def tests(self) -> dict[str, Callable[[object], bool]]:
        return {"private_address": is_private}
