# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The filter onprem.llm.mpi_trust."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.onprem.llm.plugins.filter.mpi_trust import trust

HOSTS: list[dict[str, Any]] = [
    {"name": "10.0.0.1", "slots": 8, "inventory_hostname": "gpu1"},
    {"name": "gpu2.example", "inventory_hostname": "gpu2", "addresses": ["10.0.0.2", "10.1.0.0/24"]},
    {"name": "10.0.0.3"},
]
HOME = "/var/lib/onprem-mpi/.ssh"


def key(name: str) -> str:
    return f"ssh-ed25519 AAAA{name}="


def keys(name: str, *more: str) -> list[str]:
    return [
        f"/etc/ssh/ssh_host_ed25519_key.pub:{key('host' + name)} root@{name}",
        f"{HOME}/id_ed25519.pub:{key('user' + name)} onprem-mpi@{name}",
        *more,
    ]


READ = {"gpu1": keys("1"), "gpu2": keys("2"), "10.0.0.3": keys("3")}


def test_a_whole_run() -> None:
    found = trust(HOSTS, me="gpu1", read=READ)
    assert found["problems"] == found["unknown"] == []
    assert found["names"] == ["gpu1", "gpu2", "10.0.0.3"]
    assert found["authorized_keys"] == (
        f'restrict,from="10.0.0.3" {key("user3")} onprem-mpi@10.0.0.3\n'
        f'restrict,from="10.0.0.2,10.1.0.0/24" {key("user2")} onprem-mpi@gpu2\n'
    )
    assert found["known_hosts"] == f"10.0.0.3 {key('host3')} 10.0.0.3\ngpu2.example,10.0.0.2 {key('host2')} gpu2\n"


def test_each_begins_with_the_host_after_it() -> None:
    assert trust(HOSTS, me="gpu1")["others"] == ["gpu2.example", "10.0.0.3"]
    assert trust(HOSTS, me="gpu2")["others"] == ["10.0.0.3", "10.0.0.1"]
    assert trust(HOSTS, me="10.0.0.3")["others"] == ["10.0.0.1", "gpu2.example"]


def lines(found: dict[str, Any]) -> list[str]:
    return [f"{HOME}/{name}:{line}" for name in ("authorized_keys", "known_hosts") for line in found[name].splitlines()]


def test_hosts_outside_the_run_keep_their_keys() -> None:
    whole = trust(HOSTS, me="gpu1", read=READ)
    again = trust(HOSTS, me="gpu1", read={"gpu1": keys("1", *lines(whole))})
    assert again == whole
    # With the addresses that hold now.
    moved = trust(
        [HOSTS[0], {**HOSTS[1], "addresses": ["10.0.0.9"]}, HOSTS[2]], me="gpu1", read={"gpu1": keys("1", *lines(whole))}
    )
    assert f'restrict,from="10.0.0.9" {key("user2")} onprem-mpi@gpu2\n' in moved["authorized_keys"]


def test_a_new_key_replaces_the_old_one() -> None:
    whole = trust(HOSTS, me="gpu1", read=READ)
    again = trust(HOSTS, me="gpu1", read={"gpu1": keys("1", *lines(whole)), "gpu2": keys("new")})
    assert key("usernew") in again["authorized_keys"] and key("user2") not in again["authorized_keys"]
    assert key("hostnew") in again["known_hosts"] and key("host3") in again["known_hosts"]


def test_a_former_host_is_forgotten() -> None:
    whole = trust(HOSTS, me="gpu1", read=READ)
    less = trust(HOSTS[:2], me="gpu1", read={"gpu1": keys("1", *lines(whole)), "gpu2": keys("2"), "10.0.0.3": keys("3")})
    assert "10.0.0.3" not in less["authorized_keys"] + less["known_hosts"]


@pytest.mark.parametrize("partly", [[], keys("2")[:1], keys("2")[1:], [f"{HOME}/id_ed25519.pub:garbage"]])
def test_unknown_hosts_are_named(partly: list[str]) -> None:
    found = trust(HOSTS, me="gpu1", read={"gpu1": keys("1"), "gpu2": partly})
    assert found["unknown"] == ["10.0.0.3", "gpu2"]
    assert found["authorized_keys"] == found["known_hosts"] == ""


def test_foreign_lines_are_dropped() -> None:
    mine = keys("1", f"{HOME}/authorized_keys:{key('intruder')} me@home", f"{HOME}/known_hosts:[x]:22 {key('other')} gpu2")
    found = trust(HOSTS[:2], me="gpu1", read={"gpu1": mine, "gpu2": keys("2")})
    assert "intruder" not in found["authorized_keys"] and "other" not in found["known_hosts"]


def test_a_host_alone_and_none_at_all() -> None:
    for hosts, me in ((HOSTS[:1], "gpu1"), ([], "gpu1")):
        found = trust(hosts, me=me, read={"gpu1": keys("1")})
        assert not found["problems"] and not found["unknown"] and not found["others"] and not found["authorized_keys"]


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ([{"name": "gpu1"}], "gpu1 connects from gpu1, which is no address"),
        ([{"name": "10.0.0.1", "inventory_hostname": "gpu1", "addresses": ["*"]}], "connects from *"),
        ([{"name": '10.0.0.1" ssh', "inventory_hostname": "gpu1"}], "has the name"),
        ([{"name": "-oProxyCommand=x", "inventory_hostname": "gpu1", "addresses": ["10.0.0.1"]}], "has the name"),
        ([{"name": "10.0.0.1", "inventory_hostname": "gpu 1"}], "has the name"),
        ([HOSTS[0], {"name": "10.0.0.1"}], "the name 10.0.0.1 more than once"),
        ([HOSTS[0], {"name": "10.0.0.2", "inventory_hostname": "gpu1"}], "the inventory_hostname gpu1 more than once"),
        ([{**HOSTS[0], "slots": 0}], "has 0 slots"),
        (HOSTS[1:], "This host, gpu1, is not among openmpi_hosts (gpu2, 10.0.0.3)"),
    ],
)
def test_refused(hosts: list[dict[str, Any]], said: str) -> None:
    assert any(said in problem for problem in trust(hosts, me="gpu1")["problems"])


def test_ipv6() -> None:
    hosts = [{"name": "fd00::1", "inventory_hostname": "gpu1"}, {"name": "fd00::2", "inventory_hostname": "gpu2"}]
    found = trust(hosts, me="gpu1", read={"gpu1": keys("1"), "gpu2": keys("2")})
    assert not found["problems"]
    assert found["authorized_keys"].startswith('restrict,from="fd00::2" ')
