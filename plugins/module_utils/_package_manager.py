# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages at pinned versions: what is installed, what is on offer, what a change would bring and take away.

One class for each package manager. All of them read the package database once, resolve every pattern against what the
repositories offer before anything is changed, and change the host in one transaction.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

Command = list[str]
# What a 64-bit machine has beside its own.
FOREIGN = ("i386", "armhf", "armel")


class PackageError(Exception):
    """Packages that cannot be had; the message says which, what is on offer instead, and what to do."""


def command(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(words, text=True, capture_output=True, check=False, env=environment)


def matches(version: str, pattern: str) -> bool:
    return not pattern or fnmatch.fnmatchcase(version, pattern)


class Change:
    """What one transaction would do to the host, before it is done."""

    def __init__(self) -> None:
        self.install: dict[str, str] = {}
        self.remove: list[str] = []
        self.fetch_bytes = 0
        self.disk_bytes = 0

    def summary(self) -> str:
        return f"{len(self.install)} packages, {self.fetch_bytes / 1e6:.0f} MB to fetch, {self.disk_bytes / 1e6:.0f} MB on disk"


class PackageManager:
    """What the package managers have in common."""

    name: ClassVar[str]
    # Where packages are unpacked and where they are fetched to.
    installs_to: ClassVar[str] = "/usr"
    fetches_to: ClassVar[str]

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def installed(self) -> dict[str, tuple[str, bool]]:
        """Installed packages: name to (version, on hold)."""
        raise NotImplementedError

    def interrupted(self) -> list[str]:
        """Packages that an earlier run left half-way."""
        return []

    def repair(self) -> list[Command]:
        return []

    def refresh(self) -> None:
        """Read the repositories' lists anew."""
        raise NotImplementedError

    def offered(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Versions that the repositories offer, the newest first, for each name."""
        raise NotImplementedError

    def change(self, wanted: dict[str, str]) -> Change:
        raise NotImplementedError

    def fetch_command(self, wanted: dict[str, str]) -> Command:
        raise NotImplementedError

    def install_command(self, wanted: dict[str, str]) -> Command:
        raise NotImplementedError

    def hold_command(self, names: list[str]) -> Command:
        raise NotImplementedError

    def unhold_command(self, names: list[str]) -> Command:
        raise NotImplementedError

    def automatic(self) -> set[str]:
        """Packages that are there for others, and would go with them."""
        return set()

    def automatic_command(self, names: list[str]) -> Command:
        raise NotImplementedError

    def purged(self, *words: str) -> set[str]:
        """The packages that the package manager would take away."""
        raise NotImplementedError

    def purge_command(self, names: list[str]) -> Command:
        raise NotImplementedError

    def resolve(self, wanted: dict[str, str]) -> dict[str, str]:
        """The exact version for each (name: pattern); every package that cannot be had is named at once."""
        offered = self.offered(wanted)
        resolved, problems = {}, []
        for name, pattern in wanted.items():
            versions = offered.get(name, [])
            fitting = [version for version in versions if matches(version, pattern)]
            if fitting:
                resolved[name] = fitting[0]
            elif versions:
                problems.append(f"{name} {pattern} is not on offer; there is {', '.join(versions[:12])}")
            else:
                problems.append(f"{name} is in none of the host's repositories")
        if problems:
            raise PackageError("; ".join(problems) + ".")
        return resolved

    def need_space(self, change: Change) -> None:
        needs: dict[int, tuple[Path, int]] = {}
        for place, wanted in ((self.installs_to, change.disk_bytes), (self.fetches_to, change.fetch_bytes)):
            path = self.root / place.lstrip("/")
            while not path.exists():
                path = path.parent
            device = path.stat().st_dev
            first, sofar = needs.get(device, (path, 0))
            needs[device] = (first, sofar + wanted)
        for path, wanted in needs.values():
            free = shutil.disk_usage(path).free
            if free < wanted:
                raise PackageError(
                    f"{free / 1e6:.0f} MB are free on the file system of {path}, and {wanted / 1e6:.0f} MB are wanted "
                    f"({change.summary()}). Free some space; nothing was changed."
                )


class Apt(PackageManager):
    name = "apt"
    fetches_to = "/var/cache/apt/archives"
    options: ClassVar[Command] = ["-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    # A hold is for others; the play that pins versions is what moves them, and what they depend on, which is on hold too.
    # Going back to a former version is one such move. Holds of somebody else's are the caller's to respect.
    install_options: ClassVar[Command] = [
        "--no-install-recommends",
        "--ignore-hold",
        "--allow-change-held-packages",
        "--allow-downgrades",
    ]

    def paragraphs(self) -> Iterable[dict[str, str]]:
        text = (self.root / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")
        for paragraph in text.split("\n\n"):
            fields = {}
            for line in paragraph.split("\n"):
                if line.startswith(("Package:", "Status:", "Version:", "Architecture:")):
                    key, _colon, value = line.partition(": ")
                    fields[key] = value
            if fields:
                yield fields

    def installed(self) -> dict[str, tuple[str, bool]]:
        found: dict[str, tuple[str, bool]] = {}
        native: set[str] = set()
        for fields in self.paragraphs():
            name = fields["Package"]
            # Of a package that is there for several architectures, the machine's own counts.
            if fields.get("Status", "").endswith(" ok installed") and name not in native:
                found[name] = (fields["Version"], fields["Status"].startswith("hold "))
                if fields.get("Architecture") not in FOREIGN:
                    native.add(name)
        return found

    def interrupted(self) -> list[str]:
        whole = ("", "installed", "config-files", "not-installed")
        found = [fields["Package"] for fields in self.paragraphs() if fields.get("Status", "").rpartition(" ")[2] not in whole]
        journal = self.root / "var/lib/dpkg/updates"
        return found or [f"dpkg's journal {path.name}" for path in sorted(journal.glob("[0-9]*"))]

    def repair(self) -> list[Command]:
        return [
            ["dpkg", "--configure", "-a", "--force-confdef", "--force-confold"],
            ["apt-get", *self.options, *self.install_options, "--fix-broken", "install"],
        ]

    def refresh(self) -> None:
        done = command("apt-get", *self.options, "update")
        if done.returncode:
            raise PackageError(f"apt-get update failed: {last_lines(done)}")

    def offered(self, names: Iterable[str]) -> dict[str, list[str]]:
        listing = command("apt-cache", "madison", *names)
        versions: dict[str, list[str]] = {}
        for line in listing.stdout.splitlines():
            fields = [field.strip() for field in line.split("|")]
            if len(fields) == 3 and not fields[2].endswith("Sources") and fields[1] not in versions.setdefault(fields[0], []):
                versions[fields[0]].append(fields[1])
        return versions

    def change(self, wanted: dict[str, str]) -> Change:
        simulated = command("apt-get", *self.options, *self.install_options, "--simulate", "install", *self._words(wanted))
        if simulated.returncode:
            raise PackageError(f"apt cannot install {', '.join(self._words(wanted))}: {last_lines(simulated)}")
        change = Change()
        for line in simulated.stdout.splitlines():
            found = re.match(r"(Inst|Remv) (\S+)(?: \[(\S+)\])?(?: \((\S+))?", line)
            if found and found[1] == "Remv":
                change.remove.append(found[2])
            elif found:
                change.install[found[2].partition(":")[0]] = found[4]
        if change.install:
            shown = command("apt-cache", "show", *(f"{name}={version}" for name, version in change.install.items()))
            for line in shown.stdout.splitlines():
                key, _colon, value = line.partition(": ")
                if key == "Size":
                    change.fetch_bytes += int(value)
                elif key == "Installed-Size":
                    change.disk_bytes += int(value) * 1024
        return change

    def fetch_command(self, wanted: dict[str, str]) -> Command:
        return ["apt-get", *self.options, *self.install_options, "--download-only", "install", *self._words(wanted)]

    def install_command(self, wanted: dict[str, str]) -> Command:
        keep = ["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]
        return ["apt-get", *self.options, *keep, *self.install_options, "install", *self._words(wanted)]

    def hold_command(self, names: list[str]) -> Command:
        return ["apt-mark", "hold", *names]

    def unhold_command(self, names: list[str]) -> Command:
        return ["apt-mark", "unhold", *names]

    def automatic(self) -> set[str]:
        return set(command("apt-mark", "showauto").stdout.split())

    def automatic_command(self, names: list[str]) -> Command:
        return ["apt-mark", "auto", *names]

    def purged(self, *words: str) -> set[str]:
        # Read without the holds, which are this collection's own; others' packages are kept by the caller's comparison.
        plan = command("apt-get", "--simulate", "--allow-change-held-packages", "purge", *words)
        return {line.split()[1] for line in plan.stdout.splitlines() if line.startswith(("Purg ", "Remv "))}

    def purge_command(self, names: list[str]) -> Command:
        return ["apt-get", *self.options, "--allow-change-held-packages", "purge", *names]

    @staticmethod
    def _words(wanted: dict[str, str]) -> Command:
        return [f"{name}={version}" if version else name for name, version in wanted.items()]


class Dnf(PackageManager):
    name = "dnf"
    fetches_to = "/var/cache/dnf"
    options: ClassVar[Command] = ["-q", "-y"]

    def installed(self) -> dict[str, tuple[str, bool]]:
        listing = command("rpm", "--root", str(self.root), "-qa", "--qf", "%{NAME} %{VERSION}-%{RELEASE}\n")
        if listing.returncode:
            raise PackageError(f"rpm cannot list the installed packages: {last_lines(listing)}")
        locks = self._locks()
        return {
            # The lock's version may be a pattern; the name ends where the version begins.
            name: (version, any(re.match(rf"{re.escape(name)}-\d", lock) for lock in locks))
            for name, _blank, version in (line.partition(" ") for line in listing.stdout.splitlines())
        }

    def _locks(self) -> list[str]:
        path = self.root / "etc/dnf/plugins/versionlock.list"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        # An entry is [epoch:]name-version-release.arch with the epoch before the version.
        return [re.sub(r"-\d+:", "-", line.strip()) for line in lines if line.strip() and not line.startswith(("#", "!"))]

    def refresh(self) -> None:
        done = command("dnf", *self.options, f"--installroot={self.root}", "makecache")
        if done.returncode:
            raise PackageError(f"dnf makecache failed: {last_lines(done)}")

    def offered(self, names: Iterable[str]) -> dict[str, list[str]]:
        form = "%{name} %{version}-%{release}\n"
        query = ["repoquery", "--disableplugin=versionlock", "--showduplicates", "--qf", form]
        listing = command("dnf", "-q", f"--installroot={self.root}", *query, *names)
        versions: dict[str, list[str]] = {}
        for line in reversed(listing.stdout.splitlines()):  # dnf lists the oldest first
            name, _blank, version = line.strip().partition(" ")
            if version and version not in versions.setdefault(name, []):
                versions[name].append(version)
        return versions

    def change(self, wanted: dict[str, str]) -> Change:
        unlocked = ["--assumeno", "--disableplugin=versionlock", "--allowerasing"]
        plan = command("dnf", f"--installroot={self.root}", *unlocked, "install", *self._words(wanted))
        change = Change()
        section = ""
        for line in plan.stdout.splitlines():
            fields = line.split()
            if line and not line.startswith(" "):
                section = line.strip().rstrip(":").lower() if line.rstrip().endswith(":") else ""
            elif len(fields) >= 4 and section.startswith(("install", "upgrad", "downgrad")):
                change.install[fields[0]] = fields[2].partition(":")[2] or fields[2]
            elif len(fields) >= 4 and section.startswith("remov"):
                change.remove.append(fields[0])
            for sign, target in (("Total download size: ", "fetch_bytes"), ("Installed size: ", "disk_bytes")):
                if line.startswith(sign):
                    setattr(change, target, _bytes(line.removeprefix(sign)))
        if not change.install and "Nothing to do" not in plan.stdout:
            raise PackageError(f"dnf cannot install {', '.join(self._words(wanted))}: {last_lines(plan)}")
        return change

    def fetch_command(self, wanted: dict[str, str]) -> Command:
        return [
            "dnf",
            *self.options,
            "--disableplugin=versionlock",
            "--allowerasing",
            "--downloadonly",
            "install",
            *self._words(wanted),
        ]

    def install_command(self, wanted: dict[str, str]) -> Command:
        return ["dnf", *self.options, "--disableplugin=versionlock", "--allowerasing", "install", *self._words(wanted)]

    def hold_command(self, names: list[str]) -> Command:
        return ["dnf", "-q", "versionlock", "add", *names]

    def unhold_command(self, names: list[str]) -> Command:
        return ["dnf", "-q", "versionlock", "delete", *names]

    def purged(self, *words: str) -> set[str]:
        if not [word for word in words if not word.startswith("-")]:
            return set()
        names = [word for word in words if not word.startswith("-")]
        keep = [] if "--auto-remove" in words else ["--noautoremove"]
        plan = command("dnf", "--assumeno", "--disableplugin=versionlock", "remove", *keep, *names)
        section, found = "", set()
        for line in plan.stdout.splitlines():
            if line and not line.startswith(" "):
                section = line.strip().lower() if line.rstrip().endswith(":") else ""
            elif section.startswith("remov") and len(line.split()) >= 4:
                found.add(line.split()[0])
        return found

    def purge_command(self, names: list[str]) -> Command:
        return ["dnf", *self.options, "--disableplugin=versionlock", "remove", "--noautoremove", *names]

    @staticmethod
    def _words(wanted: dict[str, str]) -> Command:
        return [f"{name}-{version}" if version else name for name, version in wanted.items()]


def _bytes(text: str) -> int:
    """A size as dnf prints it, for instance ``2.1 G``."""
    number, _blank, unit = text.strip().partition(" ")
    return int(float(number) * {"k": 1e3, "M": 1e6, "G": 1e9}.get(unit[:1], 1))


def last_lines(done: subprocess.CompletedProcess[str], count: int = 8) -> str:
    """The end of what a command said, errors before all else."""
    lines = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "Error", "W:", "Err:"))]
    return " ".join((errors or lines)[-count:])


def package_manager(root: Path = Path("/")) -> PackageManager:
    if (root / "var/lib/dpkg/status").exists():
        return Apt(root)
    if shutil.which("dnf") and shutil.which("rpm"):
        return Dnf(root)
    raise PackageError("Neither dpkg nor dnf is on this host: packages cannot be looked at.")


def plan_holds(installed: dict[str, tuple[str, bool]], patterns: Iterable[str]) -> list[str]:
    """Installed packages that a pattern wants on hold and that are not."""
    names: set[str] = set()
    for pattern in patterns:
        names.update(name for name in fnmatch.filter(installed, pattern) if not installed[name][1])
    return sorted(names)


def differing(installed: dict[str, tuple[str, bool]], packages: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The packages (name: version pattern) that are not installed as wanted."""
    wanted = {package["name"]: package.get("version") or "" for package in packages}
    return {
        name: pattern for name, pattern in wanted.items() if name not in installed or not matches(installed[name][0], pattern)
    }
