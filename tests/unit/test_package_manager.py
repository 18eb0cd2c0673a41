# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""What the package managers say is read right; apt itself is used for real in the Molecule scenarios."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ansible_collections.onprem.llm.plugins.module_utils import _package_manager as library
from ansible_collections.onprem.llm.plugins.module_utils._package_manager import (
    Apt,
    Change,
    Dnf,
    PackageError,
    differing,
    plan_holds,
)


def status(root: Path, *packages: tuple[str, str, str]) -> None:
    path = root / "var/lib/dpkg/status"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"Package: {name}\nStatus: {state}\nVersion: {version}\n\n" for name, state, version in packages))


@pytest.fixture(name="says")
def stub_commands(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What commands print, by a word that their line holds."""
    said: dict[str, str] = {}

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        line = " ".join(words)
        text = next((text for sign, text in said.items() if sign in line), "")
        return subprocess.CompletedProcess(words, 1 if text.startswith("E:") else 0, text, "")

    monkeypatch.setattr(library, "command", command)
    return said


def test_installed_held_and_interrupted(tmp_path: Path) -> None:
    status(
        tmp_path,
        ("libnccl2", "hold ok installed", "2.22.3-1-1"),
        ("gone", "deinstall ok config-files", "1"),
        ("half", "install reinstreq half-installed", "1"),
        ("unfinished", "install ok half-configured", "1"),
    )
    apt = Apt(tmp_path)
    assert apt.installed() == {"libnccl2": ("2.22.3-1-1", True)}
    assert apt.interrupted() == ["half", "unfinished"]


def test_a_journal_of_dpkg_is_an_interrupted_run(tmp_path: Path) -> None:
    status(tmp_path, ("a", "install ok installed", "1"))
    assert Apt(tmp_path).interrupted() == []
    (tmp_path / "var/lib/dpkg/updates").mkdir()
    (tmp_path / "var/lib/dpkg/updates/0001").write_text("")
    assert Apt(tmp_path).interrupted() == ["dpkg's journal 0001"]


def test_what_differs_and_what_is_to_be_held() -> None:
    installed = {"libnccl2": ("2.22.3-1-1", False), "libnccl-dev": ("2.22.3-1-1", True)}
    wanted = [{"name": "libnccl2", "version": "2.22.*"}, {"name": "libnccl-dev", "version": "2.23.*"}, {"name": "cuda"}]
    assert differing(installed, wanted) == {"libnccl-dev": "2.23.*", "cuda": ""}
    assert plan_holds(installed, ["libnccl*", "other"]) == ["libnccl2"]


def test_versions_on_offer_are_named(tmp_path: Path, says: dict[str, str]) -> None:
    says["madison"] = (
        "  libnccl2 | 2.30.3-1+cuda12.9 | http://mirror Packages\n"
        "  libnccl2 | 2.29.7-1+cuda12.9 | http://mirror Packages\n"
        "  libnccl2 | 2.29.7-1+cuda12.9 | http://other Packages\n"
        "      nccl | 2.30.3-1 | http://mirror Sources\n"
    )
    apt = Apt(tmp_path)
    assert apt.resolve({"libnccl2": "2.29.*"}) == {"libnccl2": "2.29.7-1+cuda12.9"}
    assert apt.resolve({"libnccl2": ""}) == {"libnccl2": "2.30.3-1+cuda12.9"}
    with pytest.raises(PackageError) as caught:
        apt.resolve({"libnccl2": "2.28.*", "cuda": "12.*", "nccl": ""})
    assert str(caught.value) == (
        "libnccl2 2.28.* is not on offer; there is 2.30.3-1+cuda12.9, 2.29.7-1+cuda12.9; "
        "cuda is in none of the host's repositories; nccl is in none of the host's repositories."
    )


def test_a_change_is_known_before_it_is_made(tmp_path: Path, says: dict[str, str]) -> None:
    says["--simulate"] = (
        "Inst libnccl2 [2.21.5-1] (2.22.3-1-1 Debian:13 [amd64])\nInst new (1.0 x [amd64])\n"
        "Remv old [0.9]\nConf libnccl2 (2.22.3-1-1)\n"
    )
    says["show"] = "Package: libnccl2\nSize: 1000\nInstalled-Size: 5\n\nPackage: new\nSize: 24\nInstalled-Size: 1\n"
    change = Apt(tmp_path).change({"libnccl2": "2.22.3-1-1"})
    assert change.install == {"libnccl2": "2.22.3-1-1", "new": "1.0"}
    assert change.remove == ["old"]
    assert (change.fetch_bytes, change.disk_bytes) == (1024, 6144)


def test_what_apt_refuses_is_told(tmp_path: Path, says: dict[str, str]) -> None:
    says["--simulate"] = "E: Unable to correct problems, you have held broken packages.\n"
    with pytest.raises(PackageError, match="held broken packages"):
        Apt(tmp_path).change({"a": "1"})


def test_a_full_disk_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    change = Change()
    change.install, change.disk_bytes = {"a": "1"}, 10**18
    with pytest.raises(PackageError, match=r"1000000000000 MB are wanted .*Nothing was changed|nothing was changed"):
        Apt(tmp_path).need_space(change)


def test_dnf_is_read_right(tmp_path: Path, says: dict[str, str]) -> None:
    says["-qa"] = "libnccl 2.29.7-1+cuda12.9\nkernel 5.14.0-503.el9\n"
    locks = tmp_path / "etc/dnf/plugins/versionlock.list"
    locks.parent.mkdir(parents=True)
    locks.write_text("# Added locks\nlibnccl-0:2.29.7-1+cuda12.9.*\n!excluded-0:1-1.*\n")
    dnf = Dnf(tmp_path)
    assert dnf.installed() == {"libnccl": ("2.29.7-1+cuda12.9", True), "kernel": ("5.14.0-503.el9", False)}
    says["repoquery"] = "libnccl 2.28.9-1+cuda13.0\nlibnccl 2.29.7-1+cuda12.9\n"
    assert dnf.resolve({"libnccl": "2.*+cuda12.9"}) == {"libnccl": "2.29.7-1+cuda12.9"}
    says["--assumeno"] = (
        "Dependencies resolved.\n================\n Package Arch Version Repository Size\n================\n"
        "Installing:\n libnccl x86_64 2.29.7-1+cuda12.9 cuda 200 M\n"
        "Installing dependencies:\n other x86_64 1.0-1 cuda 1.0 k\nRemoving:\n old x86_64 1-1 @cuda 5 k\n\n"
        "Transaction Summary\n================\nTotal download size: 200 M\nInstalled size: 1.5 G\nOperation aborted.\n"
    )
    change = dnf.change({"libnccl": "2.29.7-1+cuda12.9"})
    assert change.install == {"libnccl": "2.29.7-1+cuda12.9", "other": "1.0-1"}
    assert change.remove == ["old"]
    assert (change.fetch_bytes, change.disk_bytes) == (200_000_000, 1_500_000_000)


def test_a_hold_of_dnf_is_for_one_name_alone(tmp_path: Path, says: dict[str, str]) -> None:
    says["-qa"] = "nvidia 1-1\nnvidia-driver 1-1\n"
    locks = tmp_path / "etc/dnf/plugins/versionlock.list"
    locks.parent.mkdir(parents=True)
    locks.write_text("nvidia-driver-3:1-1.*\n")
    assert Dnf(tmp_path).installed() == {"nvidia": ("1-1", False), "nvidia-driver": ("1-1", True)}


def test_of_several_architectures_the_machines_own_counts(tmp_path: Path) -> None:
    status(tmp_path, ("libcuda1", "hold ok installed", "2"))
    path = tmp_path / "var/lib/dpkg/status"
    own = path.read_text().replace("Version", "Architecture: amd64\nVersion")
    foreign = own.replace("amd64", "i386").replace("hold", "install").replace(": 2", ": 1")
    for text in (own + foreign, foreign + own):
        path.write_text(text)
        assert Apt(tmp_path).installed() == {"libcuda1": ("2", True)}
