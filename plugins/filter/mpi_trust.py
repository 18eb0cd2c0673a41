# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter ``onprem.llm.mpi_trust``."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

DOCUMENTATION = r"""
name: mpi_trust
short_description: Whose keys a host of an MPI launch lets in, and which hosts it knows
version_added: 0.2.0
author: The onprem.llm authors (@onprem)
description:
  - Makes the launch user's C(authorized_keys) and C(known_hosts) of one host from what the hosts of a run have read.
  - A host that is not in the run keeps the keys that this host already has of it; one that is no longer listed loses them.
positional: _input
options:
  _input:
    description: The hosts, as in the variable C(openmpi_hosts) of the role M(onprem.llm.openmpi).
    type: list
    elements: dict
    required: true
  me:
    description: This host's name in the inventory.
    type: str
    required: true
  user:
    description: Name of the launch user.
    type: str
    default: onprem-mpi
  read:
    description: >-
      Inventory name to lines C(path:content) of the host's public host key, the launch user's public key, and its
      C(authorized_keys) and C(known_hosts) as they are.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Show which hosts have keys that nobody has read
  ansible.builtin.debug:
    msg: "{{ (openmpi_hosts | onprem.llm.mpi_trust(me=inventory_hostname, read=read)).unknown }}"
"""

RETURN = r"""
_value:
  description: What follows from the hosts and their keys.
  type: dict
  contains:
    problems:
      description: What is wrong with the list of hosts, one sentence each.
      type: list
      elements: str
    names:
      description: The hosts' names in the inventory.
      type: list
      elements: str
    others:
      description: >-
        The names by which the other hosts are reached. Each host's list begins with the one after it, so that not all of them
        knock at the same door at once.
      type: list
      elements: str
    unknown:
      description: Hosts of which no keys are known.
      type: list
      elements: str
    authorized_keys:
      description: Content of the file.
      type: str
    known_hosts:
      description: Content of the file.
      type: str
"""

KEY_TYPE = "ssh-ed25519"
KEY = re.compile(rf"({KEY_TYPE} [A-Za-z0-9+/]+=*)(?: (\S+))?$")
# These go into files whose other characters mean something.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def inventory_name(host: Mapping[str, Any]) -> str:
    return str(host.get("inventory_hostname") or host["name"])


def origins(host: Mapping[str, Any]) -> list[str]:
    """Where a host's connections come from."""
    return [str(address) for address in host.get("addresses") or [host["name"]]]


def list_problems(hosts: list[Mapping[str, Any]], me: str) -> list[str]:
    """Why a list of hosts cannot be launched on, one sentence each."""
    problems = []
    fields = {"name": [str(host["name"]) for host in hosts], "inventory_hostname": list(map(inventory_name, hosts))}
    for field, names in fields.items():
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            problems.append(f"openmpi_hosts has the {field} {', '.join(twice)} more than once.")
    for host in hosts:
        odd = [name for name in (str(host["name"]), inventory_name(host)) if not NAME.fullmatch(name)]
        if odd:
            problems.append(f"openmpi_hosts has the name {odd[0]!r}; a name has letters, digits, dots, colons, - and _.")
        wrong = [address for address in origins(host) if not is_address(address)]
        if wrong:
            problems.append(
                f"openmpi_hosts: {host['name']} connects from {', '.join(wrong)}, which is no address. The other hosts let it in "
                "by its address; list that in its addresses."
            )
        if int(host.get("slots", 1)) < 1:
            problems.append(f"openmpi_hosts: {host['name']} has {host['slots']} slots; it takes at least 1.")
    if hosts and me not in map(inventory_name, hosts):
        problems.append(
            f"This host, {me}, is not among openmpi_hosts ({', '.join(map(inventory_name, hosts))}). Add it, or set the "
            "inventory_hostname of its entry."
        )
    return problems


def keys_by_file(lines: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Name of the file to (key, comment) of each line that ends with one."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        path, _colon, content = line.partition(":")
        match = KEY.search(content.strip())
        if match:
            found.setdefault(path.rpartition("/")[2], []).append((match[1], match[2] or ""))
    return found


def trust(
    hosts: list[Mapping[str, Any]], me: str, user: str = "onprem-mpi", read: Mapping[str, Iterable[str]] | None = None
) -> dict[str, Any]:
    """What follows for one host; the filter's documentation has the details."""
    keys = {name: keys_by_file(lines) for name, lines in (read or {}).items()}
    mine = keys.get(me, {})
    # Entries of earlier runs are told apart by their comments.
    known_users = {comment: key for key, comment in mine.get("authorized_keys", [])}
    known_hosts = {comment: key for key, comment in mine.get("known_hosts", [])}
    names = list(map(inventory_name, hosts))
    after = names.index(me) + 1 if me in names else 0
    others = [host for host in [*hosts[after:], *hosts[:after]] if inventory_name(host) != me]
    unknown, let_in, known = [], [], []
    for host in sorted(others, key=inventory_name):
        name = inventory_name(host)
        comment = f"{user}@{name}"
        fresh = keys.get(name, {})
        user_key = fresh["id_ed25519.pub"][0][0] if "id_ed25519.pub" in fresh else known_users.get(comment)
        host_key = fresh["ssh_host_ed25519_key.pub"][0][0] if "ssh_host_ed25519_key.pub" in fresh else known_hosts.get(name)
        if not user_key or not host_key:
            unknown.append(name)
            continue
        let_in.append(f'restrict,from="{",".join(origins(host))}" {user_key} {comment}\n')
        aliases = dict.fromkeys([str(host["name"]), *(address for address in origins(host) if "/" not in address)])
        known.append(f"{','.join(aliases)} {host_key} {name}\n")
    return {
        "problems": list_problems(hosts, me),
        "names": names,
        "others": [str(host["name"]) for host in others],
        "unknown": unknown,
        "authorized_keys": "".join(let_in),
        "known_hosts": "".join(known),
    }


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"mpi_trust": trust}
