# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a role declares on a host, compared with what the host has.

A declaration is a mapping from a kind (``packages``, ``files``, ``units``, …) to a list of resources. Each kind is one
class below: it says what identifies a resource, looks at the live one, tells what differs from the declaration, and
takes it away again. A new kind is a new class in `KINDS`; nothing else changes.

The record of a role's last successful run lies in ``/var/lib/onprem/state/<role>.json`` (root only, mode 0600).
"""

from __future__ import annotations

import fnmatch
import grp
import hashlib
import json
import os
import pwd
import resource
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ansible_collections.onprem.llm.plugins.module_utils._model_release import damaged
from ansible_collections.onprem.llm.plugins.module_utils._package_manager import (
    PackageError,
    PackageManager,
    command,
    package_manager,
    plan_holds,
)

STATE_DIRECTORY = Path("/var/lib/onprem/state")
# Copies of small files as they were before a role first wrote them; root only, like the records.
BEFORE_DIRECTORY = STATE_DIRECTORY / "before"
SITE_CA_DIRECTORY = "/usr/local/share/ca-certificates/"
RECORD_VERSION = 1
# A configuration file is small; a larger one is compared by digest and its diff is not shown.
DIFF_MAX_BYTES = 256 * 1024

Spec = dict[str, Any]
Snapshot = dict[str, Any]


class HostStateError(Exception):
    """A state that cannot be read, recorded or removed; the message says what, why and what to do."""


class Host:
    """One look at the host; tables that serve many resources are read once."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self._manager: PackageManager | None = None
        self._packages: dict[str, tuple[str, bool]] | None = None
        self._units: dict[str, dict[str, str]] = {}
        # Paths that are taken away, or would be: what a directory holds besides them is not ours.
        self.gone: set[str] = set()
        # Names and patterns of packages that stay on hold when another hold on them is taken away.
        self.kept_holds: set[str] = set()

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    @property
    def manager(self) -> PackageManager:
        if self._manager is None:
            try:
                self._manager = package_manager(self.root)
            except PackageError as error:
                raise HostStateError(str(error)) from error
        return self._manager

    def packages(self) -> dict[str, tuple[str, bool]]:
        """Installed packages: name to (version, on hold)."""
        if self._packages is None:
            self._packages = self.manager.installed()
        return self._packages

    def forget(self) -> None:
        self._packages = None
        self._units = {}

    def read_units(self, names: list[str]) -> None:
        """Ask systemd about many units in one call."""
        wanted = sorted(set(names) - set(self._units))
        if not wanted:
            return
        fields = "LoadState,ActiveState,UnitFileState,NeedDaemonReload,ConditionResult,ConditionTimestampMonotonic"
        done = command("systemctl", "show", "--property", fields, "--", *wanted)
        for name, block in zip(wanted, done.stdout.strip().split("\n\n")):
            self._units[name] = dict(line.split("=", 1) for line in block.split("\n") if "=" in line)

    def unit(self, name: str) -> dict[str, str]:
        self.read_units([name])
        return self._units.get(name, {})


def owner_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class Kind:
    """One kind of resource. `label` is what messages call it, `key` the field that identifies one."""

    label: ClassVar[str]
    key: ClassVar[str]
    # Resources of these kinds are taken away when the role no longer declares them.
    prunable: ClassVar[bool] = False

    def __init__(self, host: Host) -> None:
        self.host = host

    def identity(self, spec: Spec) -> str:
        return str(spec[self.key])

    def look(self, spec: Spec) -> Snapshot:
        """The live resource as plain values; an empty mapping when it is not there."""
        raise NotImplementedError

    def wanted(self, spec: Spec) -> Snapshot:
        """The fields that the declaration fixes."""
        raise NotImplementedError

    def differences(self, spec: Spec, live: Snapshot) -> list[tuple[str, Any, Any]]:
        """(field, declared, found) for each field that is not as declared."""
        if not live:
            return [("", "present", "absent")]
        return [(field, value, live.get(field)) for field, value in self.wanted(spec).items() if live.get(field) != value]

    def make(self, spec: Spec, live: Snapshot, apply: bool) -> list[str]:
        """Bring a resource that differs to what is declared (or say how); returns the commands.

        Kinds whose making needs more than the declaration (packages, environments, …) have modules of their own.
        """
        return []

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        """Take the resource away (or say how); returns the commands."""
        raise NotImplementedError


class Packages(Kind):
    label = "package"
    key = "name"

    def look(self, spec: Spec) -> Snapshot:
        found = self.host.packages().get(spec["name"])
        return {"version": found[0]} if found else {}

    def wanted(self, spec: Spec) -> Snapshot:
        return {"version": spec.get("version") or "*"}

    def differences(self, spec: Spec, live: Snapshot) -> list[tuple[str, Any, Any]]:
        if not live:
            return [("", "installed", "not installed")]
        pattern = self.wanted(spec)["version"]
        return [] if fnmatch.fnmatchcase(live["version"], pattern) else [("version", pattern, live["version"])]


class Holds(Kind):
    """A hold on one package, or on all installed packages whose name fits a pattern."""

    label = "package hold"
    key = "name"
    prunable = True

    def look(self, spec: Spec) -> Snapshot:
        installed = self.host.packages()
        names = fnmatch.filter(installed, spec["name"])
        return {"hold": not (unheld := plan_holds(installed, [spec["name"]])), "not_held": unheld} if names else {}

    def wanted(self, spec: Spec) -> Snapshot:
        return {"hold": True}

    def differences(self, spec: Spec, live: Snapshot) -> list[tuple[str, Any, Any]]:
        # A package that is not installed needs no hold.
        return [("", "on hold", f"not on hold ({', '.join(live['not_held'])})")] if live and not live["hold"] else []

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        installed = self.host.packages()
        kept = {name for pattern in self.host.kept_holds for name in fnmatch.filter(installed, pattern)}
        held = sorted(name for name in fnmatch.filter(installed, spec["name"]) if installed[name][1] and name not in kept)
        if before.get("hold") or not held:
            return []
        return run(self.host.manager.unhold_command(held), apply)


class Groups(Kind):
    label = "group"
    key = "name"

    def look(self, spec: Spec) -> Snapshot:
        try:
            return {"gid": grp.getgrnam(spec["name"]).gr_gid}
        except KeyError:
            return {}

    def wanted(self, spec: Spec) -> Snapshot:
        return {}

    def make(self, spec: Spec, live: Snapshot, apply: bool) -> list[str]:
        return run(["groupadd", "--system", spec["name"]], apply)

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        if before or not self.look(spec):
            return []
        return run(["groupdel", spec["name"]], apply)


class Users(Kind):
    label = "user"
    key = "name"

    def look(self, spec: Spec) -> Snapshot:
        try:
            entry = pwd.getpwnam(spec["name"])
        except KeyError:
            return {}
        groups = sorted(item.gr_name for item in grp.getgrall() if spec["name"] in item.gr_mem)
        return {
            "uid": entry.pw_uid,
            "group": group_name(entry.pw_gid),
            "groups": groups,
            "home": entry.pw_dir,
            "shell": entry.pw_shell,
        }

    def wanted(self, spec: Spec) -> Snapshot:
        fields = {field: spec[field] for field in ("group", "home", "shell") if spec.get(field)}
        return {**fields, "groups": sorted(spec["groups"])} if "groups" in spec else fields

    def make(self, spec: Spec, live: Snapshot, apply: bool) -> list[str]:
        options = {"group": "--gid", "home": "--home-dir" if not live else "--home", "shell": "--shell"}
        words = [word for field, option in options.items() if spec.get(field) for word in (option, str(spec[field]))]
        if "groups" in spec:
            words += ["--groups", ",".join(spec["groups"])]
        program = ["usermod"] if live else ["useradd", "--system", "--no-create-home"]
        return run([*program, *words, spec["name"]], apply)

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        if before or not self.look(spec):
            return []
        return run(["userdel", spec["name"]], apply)


class PathKind(Kind):
    key = "path"
    type = "file"

    def path(self, spec: Spec) -> Path:
        return self.host.root / str(spec["path"]).lstrip("/")

    def look(self, spec: Spec) -> Snapshot:
        try:
            status = os.lstat(self.path(spec))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
        return {
            "type": kinds.get(stat.S_IFMT(status.st_mode), "other"),
            "owner": owner_name(status.st_uid),
            "group": group_name(status.st_gid),
            "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        }

    def wanted(self, spec: Spec) -> Snapshot:
        fields: Snapshot = {"type": self.type}
        fields.update({field: str(spec[field]) for field in ("owner", "group") if spec.get(field)})
        if spec.get("mode"):
            fields["mode"] = f"{int(str(spec['mode']), 8):04o}"
        return fields

    def own(self, spec: Spec, live: Snapshot, apply: bool) -> list[str]:
        """Set owner, group and mode where they are not as declared."""
        commands, path, wanted = [], self.path(spec), self.wanted(spec)
        owner, group = (wanted.get(field, live.get(field)) for field in ("owner", "group"))
        if (owner, group) != (live.get("owner"), live.get("group")) and owner and group:
            commands.append(f"chown {owner}:{group} {spec['path']}")
            if apply:
                shutil.chown(path, owner, group)
        if wanted.get("mode", live.get("mode")) != live.get("mode"):
            commands.append(f"chmod {wanted['mode']} {spec['path']}")
            if apply:
                path.chmod(int(wanted["mode"], 8))
        return commands


class Files(PathKind):
    label = "file"
    prunable = True

    def look(self, spec: Spec) -> Snapshot:
        live = super().look(spec)
        if live.get("type") == "file":
            live["sha256"] = file_sha256(self.path(spec))
        return live

    def wanted(self, spec: Spec) -> Snapshot:
        fields = super().wanted(spec)
        return {**fields, "sha256": spec["sha256"]} if spec.get("sha256") else fields

    def make(self, spec: Spec, live: Snapshot, apply: bool) -> list[str]:
        content = spec.get("content")
        if content is None:  # made on the host by something else, which also knows when
            return self.own(spec, live, apply) if live.get("type") == "file" else []
        if live.get("sha256") == spec["sha256"]:
            return self.own(spec, live, apply)
        if live and live["type"] != "file":
            raise HostStateError(f"{spec['path']} is a {live['type']}, and a file is to be there: move it away first.")
        if apply:
            path = self.path(spec)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, content.encode(), int(str(spec.get("mode", "0644")), 8), spec.get("owner"), spec.get("group"))
        return [f"write {spec['path']}"]

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        live = self.look(spec)
        if before:
            return self._restore(spec, before, apply) if live.get("sha256") != before.get("sha256") else []
        if not live:
            return []
        self.host.gone.add(str(self.path(spec)))
        if apply:
            self.path(spec).unlink()
        return [f"rm {spec['path']}"]

    def saved(self, spec: Spec) -> Path:
        return self.host.path(str(BEFORE_DIRECTORY)) / hashlib.sha256(spec["path"].encode()).hexdigest()

    def save(self, spec: Spec) -> None:
        """Keep the file as it is, before the role writes its own."""
        source, saved = self.path(spec), self.saved(spec)
        if source.is_file() and source.stat().st_size <= DIFF_MAX_BYTES and not saved.exists():
            saved.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(saved, source.read_bytes())

    def _restore(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        saved = self.saved(spec)
        if not saved.exists():
            return []
        if apply:
            path = self.path(spec)
            write_file(path, saved.read_bytes(), int(before["mode"], 8), before["owner"], before["group"])
            saved.unlink()
        return [f"restore {spec['path']}"]


class Directories(PathKind):
    label = "directory"
    type = "directory"

    def make(self, spec: Spec, live: Snapshot, apply: bool) -> list[str]:
        if live and live["type"] != "directory":
            raise HostStateError(f"{spec['path']} is a {live['type']}, and a directory is to be there: move it away first.")
        if live:
            return self.own(spec, live, apply)
        if apply:
            self.path(spec).mkdir(parents=True)
            self.own(spec, self.look(spec), apply)
        return [f"mkdir -p {spec['path']}"]

    def contents(self, spec: Spec) -> tuple[int, int]:
        """Number of files below the directory and their total size in bytes."""
        files = [Path(top) / name for top, _folders, names in os.walk(self.path(spec)) for name in names]
        return len(files), sum(os.lstat(path).st_size for path in files)

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        if before or self.look(spec).get("type") != "directory":
            return []
        path = self.path(spec)
        if spec.get("data") or spec.get("owned"):
            self.host.gone.add(str(path))
            if apply:
                shutil.rmtree(path)
            return [f"rm -r {spec['path']}"]
        if any(str(child) not in self.host.gone for child in path.iterdir()):
            return []  # it holds what the role did not declare
        self.host.gone.add(str(path))
        if apply:
            path.rmdir()
        return [f"rmdir {spec['path']}"]


class Links(PathKind):
    label = "link"
    type = "link"
    prunable = True

    def look(self, spec: Spec) -> Snapshot:
        live = super().look(spec)
        return {"type": "link", "target": os.readlink(self.path(spec))} if live.get("type") == "link" else live

    def wanted(self, spec: Spec) -> Snapshot:
        fields = {"type": "link"}
        return {**fields, "target": spec["target"]} if spec.get("target") else fields

    def make(self, spec: Spec, live: Snapshot, apply: bool) -> list[str]:
        if live and live["type"] != "link":
            raise HostStateError(f"{spec['path']} is a {live['type']}, and a link is to be there: move it away first.")
        if apply:
            path = self.path(spec)
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.new")
            new.unlink(missing_ok=True)
            new.symlink_to(spec["target"])
            os.replace(new, path)
        return [f"ln -s -f -n {spec['target']} {spec['path']}"]

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        live = self.look(spec)
        if live.get("type") != "link" or before == live:
            return []
        target = before.get("target")
        if before and not target:
            return []
        if apply:
            self.path(spec).unlink()
            if target:
                self.path(spec).symlink_to(target)
        if target:
            return [f"ln -s -f -n {target} {spec['path']}"]
        self.host.gone.add(str(self.path(spec)))
        return [f"rm {spec['path']}"]


class Units(Kind):
    label = "unit"
    key = "name"
    prunable = True

    def look(self, spec: Spec) -> Snapshot:
        live = self.host.unit(spec["name"])
        if live.get("LoadState", "not-found") == "not-found":
            return {}
        active = {"active": "started", "reloading": "started", "activating": "starting"}
        state = active.get(live["ActiveState"], live["ActiveState"])
        snapshot = {
            "enabled": live["UnitFileState"] not in ("disabled", "masked", "masked-runtime", ""),
            "masked": live["UnitFileState"].startswith("masked"),
            "state": "stopped" if state == "inactive" else state,
            "reload_needed": live["NeedDaemonReload"] == "yes",
        }
        refused = live.get("ConditionResult") == "no" and live.get("ConditionTimestampMonotonic", "0") != "0"
        if refused and spec.get("state") == "started" and snapshot["state"] == "stopped":
            snapshot["not_applied"] = "systemd does not start it here: a condition in its unit file is not met"
        return snapshot

    def wanted(self, spec: Spec) -> Snapshot:
        fields: Snapshot = {field: spec[field] for field in ("enabled", "state", "masked") if field in spec}
        return {**fields, "reload_needed": False}

    def differences(self, spec: Spec, live: Snapshot) -> list[tuple[str, Any, Any]]:
        if not live and (spec.get("state") == "stopped" or spec.get("masked")):
            return []  # what is not there does not run
        found = super().differences(spec, live)
        return [item for item in found if item[0] != "state"] if "not_applied" in live else found

    def make(self, spec: Spec, live: Snapshot, apply: bool) -> list[str]:
        found = {field for field, _declared, _found in self.differences(spec, live)}
        steps = [["daemon-reload"]] if "reload_needed" in found or not live else []
        if "masked" in found:
            steps.append(["mask" if spec["masked"] else "unmask", spec["name"]])
        if found & {"enabled", ""} and "enabled" in spec:
            steps.append(["enable" if spec["enabled"] else "disable", spec["name"]])
        if live.get("state") == "failed":  # it would stay so where a condition keeps it from being started again
            steps.append(["reset-failed", spec["name"]])
        if found & {"state", ""} and "state" in spec:
            steps.append(["start" if spec["state"] == "started" else "stop", spec["name"]])
        elif "reload_needed" in found and spec.get("state") == "started":
            steps.append(["restart", spec["name"]])
        commands = [line for words in steps for line in run(["systemctl", *words], apply)]
        if apply:
            self.host.forget()
        return commands

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        live = self.look(spec)
        if not live:
            return []
        # A unit that was there before, an instance of a template among them, goes back to what it was.
        disable = live["enabled"] and not before.get("enabled")
        stop = live["state"] != "stopped" and before.get("state") not in ("started", "starting")
        words: list[str] = []
        if live.get("masked") and not before.get("masked"):
            words = ["unmask"]
        elif disable:
            words = ["disable", "--now"] if stop else ["disable"]
        elif stop:
            words = ["stop"]
        commands = run(["systemctl", *words, spec["name"]], apply) if words else []
        if words and apply:
            self.host.forget()
            if self.look(spec).get("state") == "failed":  # systemd lists a failed unit even when its file is gone
                commands += run(["systemctl", "reset-failed", spec["name"]], apply)
        return commands


class Settings(Kind):
    """A kernel setting below /proc or /sys, or the same one of several devices where the path has wildcards.

    One that this host cannot take is reported, never passed over in silence.
    """

    label = "setting"
    key = "path"

    def path(self, spec: Spec) -> Path:
        return self.host.root / str(spec["path"]).lstrip("/")

    def paths(self, spec: Spec) -> list[Path]:
        path = self.path(spec)
        return sorted(self.host.root.glob(str(spec["path"]).lstrip("/"))) if "*" in path.as_posix() else [path]

    def look(self, spec: Spec) -> Snapshot:
        paths, values, fixed = self.paths(spec), set(), False
        if not paths:
            return {"value": None, "not_applied": "there is none on this host"}
        for path in paths:
            try:
                text = " ".join(path.read_text(encoding="ascii").split())
            except OSError as error:
                return {"value": None, "not_applied": f"cannot be read here: {error.strerror}"}
            if "[" in text:  # a choice such as `always [madvise] never`
                text = text[text.index("[") + 1 : text.index("]")]
            values.add(text)
            fixed = fixed or (text != self.wanted(spec)["value"] and not os.access(path, os.W_OK))
        live: Snapshot = {"value": ", ".join(sorted(values))}
        if fixed:
            live["not_applied"] = f"read-only here, its value stays {live['value']}"
        return live

    def wanted(self, spec: Spec) -> Snapshot:
        return {"value": " ".join(str(spec["value"]).split())}

    def differences(self, spec: Spec, live: Snapshot) -> list[tuple[str, Any, Any]]:
        return [] if "not_applied" in live else super().differences(spec, live)

    def make(self, spec: Spec, live: Snapshot, apply: bool) -> list[str]:
        return self.write(spec, self.wanted(spec)["value"], apply)

    def write(self, spec: Spec, value: str, apply: bool) -> list[str]:
        paths = self.paths(spec)
        for path in paths if apply else []:
            try:
                path.write_text(f"{value}\n", encoding="ascii")
            except OSError as error:
                raise HostStateError(
                    f"The kernel refused {value!r} for {path}: {error.strerror}. Set a value it takes."
                ) from error
        return [f"echo {value} > {path}" for path in paths]

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        value = before.get("value")
        # Devices that differed from each other have no one value to go back to.
        if value is None or ", " in value or "not_applied" in before or self.look(spec).get("value") == value:
            return []
        return self.write(spec, value, apply)


class Sysctls(Settings):
    label = "sysctl"
    key = "name"

    def path(self, spec: Spec) -> Path:
        return self.host.root / "proc/sys" / spec["name"].replace(".", "/")

    def paths(self, spec: Spec) -> list[Path]:
        return [self.path(spec)]


class Limits(Kind):
    """A resource limit of login sessions, as far as this host can give it; the file that asks for it is one of ``files``."""

    label = "limit"
    key = "name"
    raise_limits = 1 << 24  # CAP_SYS_RESOURCE, capabilities(7)
    # limits.conf(5) counts locked memory in KiB, setrlimit(2) in bytes.
    units: ClassVar[dict[str, int]] = {"memlock": 1024}

    def look(self, spec: Spec) -> Snapshot:
        hard = resource.getrlimit(getattr(resource, f"RLIMIT_{spec['name'].upper()}"))[1]
        wanted = -1 if spec["value"] == "unlimited" else int(spec["value"]) * self.units.get(spec["name"], 1)
        status = (self.host.root / "proc/self/status").read_text(encoding="utf-8")
        effective = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
        if hard == -1 or 0 <= wanted <= hard or effective & self.raise_limits:
            return {"value": str(spec["value"])}
        return {"not_applied": f"the hard limit is {hard} here and nobody may raise it"}

    def wanted(self, spec: Spec) -> Snapshot:
        return {}

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        return []


class Mounts(Kind):
    label = "mount"
    key = "path"

    def look(self, spec: Spec) -> Snapshot:
        table = (self.host.root / "proc/self/mountinfo").read_text(encoding="utf-8")
        for line in reversed(table.splitlines()):
            left, _dash, right = line.partition(" - ")
            if left.split()[4] == spec["path"]:
                fstype, source, *_options = right.split()
                return {"source": source, "fstype": fstype, "options": left.split()[5]}
        return {}

    def wanted(self, spec: Spec) -> Snapshot:
        return {field: spec[field] for field in ("source", "fstype") if spec.get(field)}

    def differences(self, spec: Spec, live: Snapshot) -> list[tuple[str, Any, Any]]:
        found = super().differences(spec, live)
        missing = set(filter(None, spec.get("options", "").split(","))) - set(live.get("options", "").split(","))
        return [*found, ("options", spec["options"], live["options"])] if live and missing else found

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        if before or not self.look(spec):
            return []
        return run(["umount", spec["path"]], apply)


class Environments(Kind):
    """A Python environment made by ``onprem.llm.python_environment``."""

    label = "Python environment"
    key = "path"
    prunable = True
    marker = ".onprem-environment.json"

    def look(self, spec: Spec) -> Snapshot:
        path = self.host.root / str(spec["path"]).lstrip("/")
        try:
            made = json.loads((path / self.marker).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {
            "lock_sha256": made.get("lock_sha256"),
            "distributions": "as installed" if made.get("distributions") == distributions(path) else "changed since",
            "python": (path / "bin/python").exists(),
        }

    def wanted(self, spec: Spec) -> Snapshot:
        fields: Snapshot = {"python": True, "distributions": "as installed"}
        return {**fields, "lock_sha256": spec["lock_sha256"]} if spec.get("lock_sha256") else fields

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        path = self.host.path(str(spec["path"]))
        if before or not path.is_dir():  # one that was never finished goes too
            return []
        self.host.gone.add(str(path))
        if apply:
            shutil.rmtree(path)
        return [f"rm -r {spec['path']}"]


class Releases(Kind):
    """A verified model release of ``onprem.llm.model_release``; its files lie in the store's directory of data."""

    label = "model release"
    key = "name"

    def look(self, spec: Spec) -> Snapshot:
        problem = damaged(self.host.path(spec["root"]), spec["model"], spec["release"])
        return {"files": problem or "as verified"}

    def wanted(self, spec: Spec) -> Snapshot:
        return {"files": "as verified"}

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        return []


class Certificates(Kind):
    """The validity of a certificate; the file itself is declared under ``files``."""

    label = "certificate"
    key = "path"

    def look(self, spec: Spec) -> Snapshot:
        path = self.host.root / str(spec["path"]).lstrip("/")
        if not path.exists():
            return {}
        seconds = int(spec.get("valid_for_days", 0)) * 86400
        done = command("openssl", "x509", "-noout", "-checkend", str(seconds), "-in", str(path))
        return {"valid": done.returncode == 0}

    def wanted(self, spec: Spec) -> Snapshot:
        return {"valid": True}

    def differences(self, spec: Spec, live: Snapshot) -> list[tuple[str, Any, Any]]:
        if live and not live["valid"]:
            return [("", f"valid for {spec.get('valid_for_days', 0)} more days", "expires sooner")]
        return super().differences(spec, live)

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        return []


class Modules(Kind):
    """A kernel module that a device needs. Without such a device it is not loaded, and that is no fault of the host."""

    label = "kernel module"
    key = "name"

    def look(self, spec: Spec) -> Snapshot:
        loaded = self.host.path(f"sys/module/{spec['name']}")
        if loaded.exists():
            version = loaded / "version"
            return {"loaded": True, "version": version.read_text(encoding="ascii").strip() if version.exists() else None}
        vendor = spec.get("pci_vendor")
        vendors = (path.read_text(encoding="ascii").strip() for path in self.host.root.glob("sys/bus/pci/devices/*/vendor"))
        if vendor and vendor not in vendors:
            return {"loaded": False, "not_applied": f"module not loaded: no {spec.get('device', vendor)} device"}
        return {"loaded": False}

    def wanted(self, spec: Spec) -> Snapshot:
        return {"loaded": True}

    def differences(self, spec: Spec, live: Snapshot) -> list[tuple[str, Any, Any]]:
        if "not_applied" in live:
            return []
        if not live["loaded"]:
            return [("", "loaded", "not loaded")]
        pattern = spec.get("version") or "*"
        return [] if fnmatch.fnmatchcase(live["version"] or "", pattern) else [("version", pattern, live["version"])]

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        return []  # it goes with its package, at the next boot


class Alternatives(Kind):
    """Which of several installed versions a generic name means, in the distribution's alternatives system."""

    label = "alternative"
    key = "name"
    prunable = True

    def look(self, spec: Spec) -> Snapshot:
        try:
            return {"target": os.readlink(self.host.path(f"etc/alternatives/{spec['name']}"))}
        except OSError:
            return {}

    def wanted(self, spec: Spec) -> Snapshot:
        return {"target": spec["target"]}

    def make(self, spec: Spec, live: Snapshot, apply: bool) -> list[str]:
        return run(["update-alternatives", "--set", spec["name"], spec["target"]], apply)

    def remove(self, spec: Spec, before: Snapshot, apply: bool) -> list[str]:
        return run(["update-alternatives", "--auto", spec["name"]], apply) if self.look(spec) else []


# In the order in which a role makes them; removal goes the other way round.
KINDS: dict[str, type[Kind]] = {
    "packages": Packages,
    "holds": Holds,
    "groups": Groups,
    "users": Users,
    "mounts": Mounts,
    "directories": Directories,
    "environments": Environments,
    "releases": Releases,
    "links": Links,
    "alternatives": Alternatives,
    "files": Files,
    "certificates": Certificates,
    "settings": Settings,
    "sysctls": Sysctls,
    "limits": Limits,
    "modules": Modules,
    "units": Units,
}


def distributions(environment: Path) -> str:
    """Digest of the distributions that a Python environment holds: what pip or a stray `rm` changed shows here."""
    names = sorted(item.name for item in environment.glob("lib/python3*/site-packages/*.dist-info"))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def write_file(path: Path, content: bytes, mode: int = 0o600, owner: str | None = None, group: str | None = None) -> None:
    """Replace a file whole; by default it is readable for root alone."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}-")
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
    if owner and group:
        shutil.chown(name, owner, group)
    os.chmod(name, mode)
    os.replace(name, path)


def run(words: list[str], apply: bool) -> list[str]:
    if apply:
        done = command(*words)
        if done.returncode:
            raise HostStateError(f"`{' '.join(words)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return [" ".join(words)]


class Role:
    """One role's declaration on one host, with the record of its last successful run."""

    def __init__(self, name: str, host: Host, declaration: dict[str, list[Spec]], digest: str = "") -> None:
        unknown = sorted(set(declaration) - set(KINDS))
        if unknown:
            raise HostStateError(f"role {name} declares unknown kinds {unknown}; known are {list(KINDS)}.")
        self.name = name
        self.host = host
        self.digest = digest
        self.declaration = declaration
        self.kinds = {kind: implementation(host) for kind, implementation in KINDS.items()}
        self.record_path = host.root / str(STATE_DIRECTORY).lstrip("/") / f"{name}.json"
        self.record = self._read_record()

    def _read_record(self) -> dict[str, Any]:
        try:
            record = json.loads(self.record_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            return {}  # a torn or foreign file is no proof of anything: the role runs
        return record if isinstance(record, dict) and record.get("version") == RECORD_VERSION else {}

    def resources(self, declaration: dict[str, list[Spec]] | None = None) -> Iterator[tuple[str, str, Kind, Spec]]:
        """(kind, label, implementation, spec) of each declared resource."""
        for kind, specs in (self.declaration if declaration is None else declaration).items():
            for spec in specs or []:
                implementation = self.kinds[kind]
                yield kind, f"{implementation.label} {implementation.identity(spec)}", implementation, spec

    def unit_names(self) -> list[str]:
        declared = [*self.resources(), *self.recorded_resources()]
        return [spec["name"] for kind, _label, _implementation, spec in declared if kind == "units"]

    def compare(self, diff: bool = False) -> dict[str, Any]:
        """Compare declaration, record and live host.

        Returns ``in_sync``, ``reasons`` (why the role has to run, in words), ``violations`` (the reasons in which the live
        host breaks the declaration itself), ``differences`` (the same as values),
        ``not_applied`` (what this host cannot take) and, with `diff`, ``files`` (content of the files that differ).
        """
        violations: list[str] = []
        drifted: list[str] = []
        differences: list[dict[str, Any]] = []
        not_applied: list[str] = []
        contents: dict[str, str] = {}
        observed = self.record.get("observed", {})
        for kind, label, implementation, spec in self.resources():
            live = implementation.look(spec)
            if "not_applied" in live:
                not_applied.append(f"{label}: {live['not_applied']}")
            found, told = implementation.differences(spec, live), violations
            if not found and label in observed:
                # As declared, but not as the last run left it: a package of another version, a replaced key.
                was, told = observed[label], drifted
                found = [
                    (name, was.get(name), live.get(name)) for name in sorted({*was, *live}) if was.get(name) != live.get(name)
                ]
            for field, expected, actual in found:
                differences.append({"resource": label, "field": field, "declared": expected, "found": actual})
                told.append(describe(label, field, expected, actual, told is drifted))
            if diff and kind == "files" and not spec.get("secret") and any(field in ("", "sha256") for field, *_values in found):
                contents[spec["path"]] = read_text(self.host.root / spec["path"].lstrip("/")) if live else ""
        reasons = [*violations, *drifted]
        if not self.record and not self.declaration:
            reasons = []  # absent, and never there
        elif not self.record.get("digest"):
            reasons.insert(0, "has not run to its end on this host yet")
        elif self.unfinished:
            reasons.insert(0, "its last run here did not come to its end")
        elif self.record["digest"] != self.digest:
            reasons.insert(0, "its inputs or its code changed since it last ran here")
        return {
            "in_sync": not reasons,
            "reasons": reasons,
            "violations": violations,
            "differences": differences,
            "not_applied": not_applied,
            "files": contents,
        }

    def look(self) -> dict[str, Snapshot]:
        return {label: implementation.look(spec) for _kind, label, implementation, spec in self.resources()}

    def begin(self, apply: bool) -> None:
        """Note what the host had before the role first touched it; uninstall leaves that alone.

        What this run is about to make is noted too, so that a run that dies half-way leaves nothing that nobody knows.
        """
        if not self.record and not self.declaration:
            return  # absent, and never there
        before = self.record.get("before", {})
        inherited = self._before_of_others()
        fresh = {label: inherited.get(label, live) for label, live in self.look().items() if label not in before}
        if apply:
            for _kind, label, implementation, spec in self.resources():
                if isinstance(implementation, Files) and fresh.get(label):
                    implementation.save(spec)
        record = {**self.record, "version": RECORD_VERSION, "role": self.name, "before": {**fresh, **before}, "unfinished": True}
        record.setdefault("packages_before", sorted(self.host.packages()))
        if self.declaration != self.record.get("declaration"):
            begun = {item[1]: item for item in [*self.resources(self.record.get("begun", {})), *self.resources()]}
            record["begun"] = {}
            for kind, _label, _implementation, spec in begun.values():
                record["begun"].setdefault(kind, []).append(spec)
        if apply and record != self.record:
            self._write(record)

    def make(self, kinds: list[str], contents: dict[str, str], apply: bool) -> tuple[list[str], list[dict[str, str]]]:
        """Bring the resources of some kinds to what is declared; returns the commands and a diff of what is no secret."""
        commands: list[str] = []
        diffs: list[dict[str, str]] = []
        ordered = sorted(self.resources(), key=lambda item: list(KINDS).index(item[0]))
        for kind, label, implementation, spec in ordered:
            if kind not in kinds:
                continue
            live = implementation.look(spec)
            found = implementation.differences(spec, live)
            if not found:
                continue
            text = contents.get(spec["path"]) if kind == "files" else None
            before = read_text(self.host.path(spec["path"])) if text is not None and live else ""
            done = implementation.make({**spec, "content": text}, live, apply)
            commands += done
            if text is not None and not spec.get("secret") and live.get("sha256") != spec["sha256"]:
                diffs.append({"before_header": spec["path"], "after_header": spec["path"], "before": before, "after": text})
            elif done:
                old = "".join(f"{label}{f' {field}' if field else ''}: {was}\n" for field, _declared, was in found)
                new = "".join(f"{label}{f' {field}' if field else ''}: {declared}\n" for field, declared, _was in found)
                diffs.append({"before": old, "after": new})
        return commands, diffs

    def recorded_resources(self) -> list[tuple[str, str, Kind, Spec]]:
        """What earlier runs declared, among them one that died before its end; each resource once."""
        found = {}
        for declaration in (self.record.get("declaration", {}), self.record.get("begun", {})):
            found.update({item[1]: item for item in self.resources(declaration)})
        return list(found.values())

    def finish(self, apply: bool) -> list[str]:
        """Take away what is no longer declared, then record declaration and live state; returns the commands."""
        commands = self.prune(apply)
        record = {
            **self.record,
            "version": RECORD_VERSION,
            "role": self.name,
            "digest": self.digest,
            "declaration": self.declaration,
            "observed": self.look(),
        }
        record.setdefault("before", {})
        record.pop("begun", None)
        record.pop("unfinished", None)
        known = {key: value for key, value in self.record.items() if key != "finished"}
        if apply and known != record:
            self._write({**record, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        return commands

    @property
    def unfinished(self) -> bool:
        """Whether an earlier run began and did not record its end: what it wrote may not have been read by any service."""
        return bool(self.record.get("unfinished"))

    def prune(self, apply: bool, only: tuple[str, ...] = tuple(KINDS)) -> list[str]:
        """Remove units, files, links, holds and environments that an earlier run declared and this one does not."""
        declared = {label for _kind, label, _implementation, _spec in self.resources()}
        before = self.record.get("before", {})
        commands: list[str] = []
        shared = self._declared_by_others()
        self.host.kept_holds = self._holds(declared | shared)
        for kind, label, implementation, spec in reversed(self.recorded_resources()):
            if kind in only and implementation.prunable and label not in declared and label not in shared:
                commands += implementation.remove(spec, before.get(label, {}), apply)
        return commands + self._settle(apply)

    def remove(self, apply: bool, safe_mode: bool) -> list[str]:
        """Take away what the record says the role brought, and nothing else; returns the commands."""
        if not self.record:
            return []
        before = self.record.get("before", {})
        shared = self._declared_by_others()
        self.host.kept_holds = self._holds(shared)
        mine = [item for item in self.recorded_resources() if item[1] not in shared]
        if safe_mode:
            self._refuse_data_loss(mine, before)
        order = list(KINDS)
        commands: list[str] = []
        # Nested directories go from the inside out.
        mine.sort(key=lambda item: (order.index(item[0]), item[3].get("path", "")), reverse=True)
        for kind, label, implementation, spec in mine:
            if kind != "packages":
                commands += implementation.remove(spec, before.get(label, {}), apply)
        packages = [spec["name"] for kind, label, _kind, spec in mine if kind == "packages" and not before.get(label)]
        commands += self._remove_packages(packages, apply)
        commands += self._settle(apply)
        commands.append(f"rm {self.record_path}")
        if apply:
            self.record_path.unlink()
            self.record = {}
        return commands

    def _settle(self, apply: bool) -> list[str]:
        """Have systemd and the CA store read what was taken away."""
        commands = []
        root = str(self.host.root).rstrip("/")
        gone = [path[len(root) :] for path in self.host.gone]
        if any(path.startswith("/etc/systemd/") for path in gone):
            commands += run(["systemctl", "daemon-reload"], apply)
        if any(path.startswith(SITE_CA_DIRECTORY) for path in gone) and shutil.which("update-ca-certificates"):
            commands += run(["update-ca-certificates", "--fresh"], apply)
        return commands

    def _remove_packages(self, names: list[str], apply: bool) -> list[str]:
        """Purge the role's packages and what apt brought along for them; nothing that others need or brought."""
        installed, manager = self.host.packages(), self.host.manager
        had = set(self.record.get("packages_before", []))
        names = [name for name in names if name in installed]
        commands = []
        for name in list(names):
            needed_by = sorted(manager.purged(name) - set(names))
            if needed_by:
                commands.append(f"# {name} stays: {', '.join(needed_by)} would go with it")
                names.remove(name)
        if not names:
            return commands
        # What apt would drop anyway is not this role's.
        brought = manager.purged("--auto-remove", *names) - manager.purged("--auto-remove") - had
        commands += run(manager.purge_command(sorted({*names, *brought})), apply)
        if apply:
            self.host.forget()
        return commands

    def _refuse_data_loss(self, resources: list[tuple[str, str, Kind, Spec]], before: dict[str, Snapshot]) -> None:
        for _kind, label, implementation, spec in resources:
            if isinstance(implementation, Directories) and spec.get("data") and not before.get(label):
                files, size = implementation.contents(spec) if implementation.look(spec) else (0, 0)
                if files:
                    raise HostStateError(
                        f"removing role {self.name} would delete {spec['path']} with {files} files ({size} bytes). "
                        f"Set {self.name}_safe_mode: false to delete them."
                    )

    def _others(self) -> list[Role]:
        paths = sorted(self.record_path.parent.glob("*.json"))
        return [Role(path.stem, self.host, {}) for path in paths if path != self.record_path]

    def _declared_by_others(self) -> set[str]:
        return {item[1] for other in self._others() for item in other.recorded_resources()}

    @staticmethod
    def _holds(labels: set[str]) -> set[str]:
        return {label.removeprefix(f"{Holds.label} ") for label in labels if label.startswith(f"{Holds.label} ")}

    def _before_of_others(self) -> dict[str, Snapshot]:
        """What was there before any role: of what two roles declare, the second must not take the first's for the host's."""
        before: dict[str, Snapshot] = {}
        for other in self._others():
            declared = {item[1] for item in other.recorded_resources()}
            before.update({label: live for label, live in other.record.get("before", {}).items() if label in declared})
        return before

    def _write(self, record: dict[str, Any]) -> None:
        directory = self.record_path.parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=directory, prefix=".record-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(record, stream, indent=1, sort_keys=True)
        os.replace(name, self.record_path)
        self.record = record


def read_text(path: Path) -> str:
    try:
        if path.stat().st_size > DIFF_MAX_BYTES:
            return f"({path.stat().st_size} bytes, too large to show)\n"
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return "(not text)\n"


def describe(label: str, field: str, expected: Any, found: Any, recorded: bool) -> str:
    """One difference as an operator reads it."""
    source = "after the last run" if recorded else "declared"
    if field == "sha256":
        return f"{label}: its content is not what was {'there after the last run' if recorded else 'declared'}"
    if field == "reload_needed":
        return f"{label}: its unit file changed on disk and was not read again"
    if not field:
        return f"{label}: {found}, {source} {expected}"
    return f"{label}: {field} is {found}, {source} {expected}"
