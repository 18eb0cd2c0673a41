#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: pinned_packages
short_description: Install packages at pinned versions and hold them, in one transaction
version_added: 0.2.0
description:
  - Reads the package database once, whatever the number of packages.
  - Every version pattern is resolved against what the repositories offer before anything is changed; a version that is
    not there is an error that names the versions on offer. Disk space is checked, everything is fetched first, and then
    installed in one transaction, so that an unreachable repository or a full disk leaves the host as it was.
  - What a killed run left half-way is finished first.
  - Works with apt (Debian, Ubuntu) and dnf (RHEL and its kin, with the plugin C(versionlock) for holds).
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: >-
      Nothing is fetched or installed, and the repositories' lists are not read anew. A version that these lists do not have
      yet is an error only when they were read from the repository before.
  diff_mode:
    support: full
    description: Shows the versions before and after.
options:
  packages:
    description: Packages to install.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the package.
        type: str
        required: true
      version:
        description: Version, or a pattern such as V(12.4.*). Any version when empty.
        type: str
        default: ""
  holds:
    description: Names or patterns of installed packages that others may not upgrade.
    type: list
    elements: str
    default: []
  fetch_only:
    description: Only fetch what would be installed, so that the installation itself is short.
    type: bool
    default: false
  preferences:
    description: >-
      Files of apt's preferences as they will be, path to content, for this call alone. With O(fetch_only), what is fetched
      depends on pins that the host is not to have yet.
    type: dict
    default: {}
  keep_automatic:
    description: >-
      Packages that are there only because others need them stay so marked, also when they are named in O(packages), so that
      they go with those others. For going back to what O(former) keeps.
    type: bool
    default: false
  former:
    description:
      - File on the host that keeps the versions of what is replaced, until something removes it. A run that was killed after
        the installation leaves it to the next, which can then still go back.
    type: path
  allow_removal:
    description: Names or patterns of packages that the transaction may remove. Any other removal is refused.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Install NCCL and hold it
  onprem.llm.pinned_packages:
    packages:
      - name: libnccl2
        version: 2.22.*
      - name: libnccl-dev
        version: 2.22.*
    holds: [libnccl2, libnccl-dev]
"""

RETURN = r"""
commands:
  description: What was or would be run.
  returned: always
  type: list
  elements: str
installed:
  description: Packages that the transaction installs, name to version; those that others need among them.
  returned: always
  type: dict
  sample: {"libnccl2": "2.22.3-1-1"}
replaced:
  description: >-
    Packages of which another version was installed, name to that version; what it takes to go back. With O(former), those of
    an earlier run among them.
  returned: always
  type: dict
removed:
  description: Packages that the transaction removes.
  returned: always
  type: list
  elements: str
fetch_bytes:
  description: Size of what is fetched, in bytes.
  returned: always
  type: int
disk_bytes:
  description: Disk space that the packages take, in bytes.
  returned: always
  type: int
seconds:
  description: Time that it took, in seconds.
  returned: always
  type: float
"""

import contextlib
import fnmatch
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.onprem.llm.plugins.module_utils._host_state import write_file
from ansible_collections.onprem.llm.plugins.module_utils._package_manager import (
    Change,
    PackageError,
    command,
    differing,
    last_lines,
    package_manager,
    plan_holds,
)

PREFERENCES = "/etc/apt/preferences.d"


class PinnedPackages:
    """Probe the package database, plan one transaction, then run it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.packages: list[dict[str, Any]] = module.params["packages"]
        self.holds: list[str] = module.params["holds"]
        self.manager = package_manager()
        self.commands: list[list[str]] = []
        self.former_path = Path(module.params["former"]) if module.params["former"] else None
        self.former: dict[str, str] = {}
        if self.former_path and self.former_path.exists():
            self.former = json.loads(self.former_path.read_text(encoding="utf-8"))

    def run(self) -> dict[str, Any]:
        begun = time.monotonic()
        if self.manager.interrupted():
            for words in self.manager.repair():
                # A package that cannot be finished may be about to be replaced; what is left is looked at in the end.
                self.execute(words, fatal=False)
        before = self.manager.installed()
        wanted = differing(before, self.packages)
        change = self.install(wanted, before) if wanted else Change()
        after = before if self.module.check_mode or not wanted else self.manager.installed()
        unheld = plan_holds({**after, **{name: (version, False) for name, version in change.install.items()}}, self.holds)
        if unheld and not self.module.params["fetch_only"]:
            self.execute(self.manager.hold_command(unheld))
        if not self.module.check_mode and (left := self.manager.interrupted()):
            raise PackageError(f"{', '.join(left)} could not be finished; `dpkg --configure -a` on the host says why.")
        return {
            "changed": bool(self.commands),
            "commands": [" ".join(words) for words in self.commands],
            "installed": change.install,
            "replaced": self.former,
            "removed": change.remove,
            "fetch_bytes": change.fetch_bytes,
            "disk_bytes": change.disk_bytes,
            "seconds": round(time.monotonic() - begun, 1),
            "diff": self.diff(before, change, unheld),
        }

    def install(self, wanted: dict[str, str], before: dict[str, tuple[str, bool]]) -> Change:
        if not self.module.check_mode:
            self.manager.refresh()
        try:
            exact = self.manager.resolve(wanted)
        except PackageError:
            if not self.module.check_mode:
                raise
            # The play would have added or read a repository by now, which check mode does not.
            self.commands.append(self.manager.install_command(wanted))
            change = Change()
            change.install = {name: pattern or "(newest)" for name, pattern in wanted.items()}
            return change
        change = self.manager.change(exact)
        allowed = self.module.params["allow_removal"]
        lost = [name for name in change.remove if not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed)]
        if lost:
            raise PackageError(
                f"Installing {', '.join(exact)} would remove {', '.join(lost)}. Remove them first, or choose other versions; "
                "nothing was changed."
            )
        ours = {*exact, *(name for pattern in self.holds for name in fnmatch.filter(change.install, pattern))}
        foreign = sorted(name for name in change.install if before.get(name, ("", False))[1] and name not in ours)
        if foreign:
            raise PackageError(
                f"Installing {', '.join(exact)} would change {', '.join(foreign)}, which somebody put on hold. Release that "
                "hold, or choose other versions; nothing was changed."
            )
        self.manager.need_space(change)
        if change.fetch_bytes:
            self.execute(self.manager.fetch_command(exact))
        if self.module.params["fetch_only"]:
            change.install, change.remove = {}, []
            return change
        self.remember({name: before[name][0] for name in {*change.install, *change.remove} if name in before})
        automatic = sorted(self.manager.automatic() & set(exact)) if self.module.params["keep_automatic"] else []
        self.execute(self.manager.install_command(exact))
        if automatic:
            self.execute(self.manager.automatic_command(automatic))
        return change

    def remember(self, replaced: dict[str, str]) -> None:
        # What an earlier run replaced is what was there when all was well.
        self.former = {**replaced, **self.former}
        if self.former_path and self.former and not self.module.check_mode:
            self.former_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(self.former_path, json.dumps(self.former, sort_keys=True).encode())

    def execute(self, words: list[str], fatal: bool = True) -> None:
        self.commands.append(words)
        if self.module.check_mode:
            return
        done = command(*words)
        if done.returncode and fatal:
            raise PackageError(f"`{' '.join(words)}` ended with code {done.returncode}: {explained(done)}")

    @staticmethod
    def diff(before: dict[str, tuple[str, bool]], change: Change, unheld: list[str]) -> dict[str, str]:
        names = sorted({*change.install, *change.remove})
        old = [f"{name} {before[name][0]}" for name in names if name in before]
        new = [f"{name} {change.install[name]}" for name in names if name in change.install]
        old += [f"{name} not on hold" for name in unheld]
        new += [f"{name} on hold" for name in unheld]
        return {"before": "".join(f"{line}\n" for line in old), "after": "".join(f"{line}\n" for line in new)}


@contextlib.contextmanager
def preferences(files: dict[str, str]) -> Iterator[None]:
    """Let apt see its preferences with these files in place of the host's own."""
    if not files:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="onprem-preferences-") as folder:
        place = Path(folder) / "preferences.d"
        if Path(PREFERENCES).is_dir():
            shutil.copytree(PREFERENCES, place)
        place.mkdir(exist_ok=True)
        for path, content in files.items():
            (place / Path(path).name).write_text(content, encoding="utf-8")
        configuration = Path(folder) / "apt.conf"
        configuration.write_text(f'Dir::Etc::preferencesparts "{place}";\n', encoding="utf-8")
        os.environ["APT_CONFIG"] = str(configuration)
        try:
            yield
        finally:
            del os.environ["APT_CONFIG"]


def explained(done: subprocess.CompletedProcess[str]) -> str:
    """What a package manager said, with what an operator should do about it."""
    said = f"{done.stdout}\n{done.stderr}"
    if "No space left on device" in said:
        return f"{last_lines(done)} The disk is full: free some space and run again."
    broken = re.search(r"Bad return status for module build on kernel: (\S+)", said)
    if broken:
        logs = sorted(Path("/var/lib/dkms").glob("*/*/build/make.log"), key=lambda path: path.stat().st_mtime)
        text = logs[-1].read_text(encoding="utf-8", errors="replace") if logs else ""
        error = next((line for line in text.splitlines() if re.search(r"\d: (fatal )?error: ", line)), "")
        return (
            f"the kernel module does not build for the kernel {broken[1]}: {error} (more in {logs[-1] if logs else 'no log'}). "
            "Take a driver that supports this kernel, or boot a kernel that the driver supports and remove the other's headers."
        )
    return last_lines(done)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "packages": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": {"type": "str", "required": True}, "version": {"type": "str", "default": ""}},
            },
            "holds": {"type": "list", "elements": "str", "default": []},
            "fetch_only": {"type": "bool", "default": False},
            "preferences": {"type": "dict", "default": {}},
            "keep_automatic": {"type": "bool", "default": False},
            "former": {"type": "path"},
            "allow_removal": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        with preferences(module.params["preferences"]):
            result = PinnedPackages(module).run()
    except PackageError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
