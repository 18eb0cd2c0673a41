#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: python_environment
short_description: Make a Python virtual environment from a lock file
version_added: 0.1.0
description:
  - Makes a virtual environment that holds what a lock file names, installed with uv from an index, an offline mirror or
    a directory of wheels, with byte code compiled, so that a service user who may not write there starts fast.
  - An environment is made once for one lock and never changed. A run that was cut off leaves no marker, and the next
    run begins again.
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: Nothing is made; whether something would be is returned.
  diff_mode:
    support: none
    description: An environment is made as a whole.
options:
  path:
    description: Directory of the environment. Put a part of the lock's digest into its name.
    type: path
    required: true
  lock:
    description: Lock file on the host, one C(name==version) a line, with hashes where a file is the same everywhere.
    type: path
    required: true
  overrides:
    description: File on the host with requirements that replace those of the packages themselves (uv's C(--overrides)).
    type: path
  python:
    description: Interpreter to make the environment with; it needs the module C(venv).
    type: path
    default: /usr/bin/python3
  python_version:
    description: The versions for which the lock was made, for instance V(3.11); another one is refused.
    type: list
    elements: str
    default: []
  uv:
    description: Requirement of uv, exact.
    type: str
    default: uv==0.13.9
  imports:
    description: Modules that must be importable in the finished environment.
    type: list
    elements: str
    default: []
  required_bytes:
    description: Free disk space wanted before anything is fetched, in bytes.
    type: int
    default: 0
  index:
    description: Python package index instead of the tools' own default. May hold credentials.
    type: str
  extra_indexes:
    description: More indexes. May hold credentials.
    type: list
    elements: str
    default: []
  find_links:
    description: Directories or pages that hold wheels.
    type: list
    elements: str
    default: []
  ca_bundle:
    description: PEM file on the host that certifies the indexes.
    type: path
  cache:
    description: Directory in which downloads are kept for the next environment; none when empty.
    type: path
"""

EXAMPLES = r"""
- name: Make the environment of the model server
  onprem.llm.python_environment:
    path: /opt/onprem/environments/vllm-cpu-0123456789ab
    lock: /opt/onprem/environments/vllm-cpu.lock
    imports: [vllm]
"""

RETURN = r"""
path:
  description: The environment.
  returned: always
  type: str
lock_sha256:
  description: SHA-256 of the lock and the overrides that the environment was made from.
  returned: always
  type: str
seconds:
  description: Time that making it took, in seconds.
  returned: when something was made
  type: float
commands:
  description: The commands that were or would be run; addresses of indexes are in the environment, not here.
  returned: always
  type: list
  elements: str
"""

import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.onprem.llm.plugins.module_utils._host_state import distributions

MARKER = ".onprem-environment.json"
HINTS = {
    "No space left on device": "The disk is full: free some space and run again.",
    "invalid peer certificate": "The index's certificate is not trusted: set onprem_llm_ca_bundle.",
    "CERTIFICATE_VERIFY_FAILED": "The index's certificate is not trusted: set onprem_llm_ca_bundle.",
    "dns error": "The index cannot be reached: set onprem_llm_python_index to one that this host reaches.",
    "Temporary failure in name resolution": "The index cannot be reached: set onprem_llm_python_index to one this host reaches.",
    "No solution found": "The index or wheel directory does not have every version of the lock.",
    "No matching distribution": "The index or wheel directory does not have every version of the lock.",
    "was not found in the package registry": "The index or wheel directory does not have every version of the lock.",
    "Hash mismatch": "A downloaded file is not the one of the lock. Do not use this index before you know why.",
    "No module named venv": "Install the distribution's package python3-venv.",
    "ensurepip is not": "Install the distribution's package python3-venv.",
}


class PythonEnvironmentError(Exception):
    """An environment that cannot be made."""


class PythonEnvironment:
    """Probe the environment, plan the commands, run them, and leave a marker last."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.parameters: dict[str, Any] = module.params
        self.path = Path(self.parameters["path"])
        self.lock = Path(self.parameters["lock"])
        self.overrides = Path(self.parameters["overrides"]) if self.parameters["overrides"] else None

    def lock_sha256(self) -> str:
        digest = hashlib.sha256()
        for path in filter(None, (self.lock, self.overrides)):
            if not path.exists() and not self.module.check_mode:
                raise PythonEnvironmentError(f"The lock file {path} is not on this host.")
            digest.update(path.read_bytes() if path.exists() else b"")
        return digest.hexdigest()

    def commands(self) -> list[list[str]]:
        python = str(self.path / "bin/python")
        install = [python, "-m", "uv", "pip", "install", "--python", python, "--compile-bytecode", "-r", str(self.lock)]
        if self.overrides:
            install += ["--overrides", str(self.overrides)]
        if not self.parameters["cache"]:
            install.append("--no-cache")
        plan = [
            [self.parameters["python"], "-m", "venv", str(self.path)],
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", self.parameters["uv"]],
            install,
        ]
        if self.parameters["imports"]:
            plan.append([python, "-c", f"import {', '.join(self.parameters['imports'])}"])
        return plan

    def environment(self) -> dict[str, str]:
        """Addresses travel in the environment: they may hold credentials, and arguments are readable by all users."""
        given = self.parameters
        settings = {
            "PIP_INDEX_URL": given["index"],
            "UV_DEFAULT_INDEX": given["index"],
            "PIP_EXTRA_INDEX_URL": " ".join(given["extra_indexes"]),
            "UV_INDEX": " ".join(given["extra_indexes"]),
            "PIP_FIND_LINKS": " ".join(given["find_links"]),
            "UV_FIND_LINKS": ",".join(given["find_links"]),
            "PIP_CERT": given["ca_bundle"],
            "SSL_CERT_FILE": given["ca_bundle"],
            "UV_CACHE_DIR": given["cache"],
            "PIP_CACHE_DIR": f"{given['cache']}/pip" if given["cache"] else "",
            "PIP_NO_CACHE_DIR": "" if given["cache"] else "1",
        }
        fixed = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "UV_LINK_MODE": "copy", "HOME": "/root"}
        return {**fixed, **{name: value for name, value in settings.items() if value}}

    def run(self) -> dict[str, Any]:
        wanted = self.lock_sha256()
        made = self._made_from()
        plan = [" ".join(words) for words in self.commands()] if made != wanted else []
        result = {"path": str(self.path), "lock_sha256": wanted, "changed": bool(plan), "commands": plan}
        if plan:
            self._need_python()
            self._need_space()
        if plan and not self.module.check_mode:
            started = time.monotonic()
            self._make(wanted)
            result["seconds"] = round(time.monotonic() - started, 1)
        return result

    def _made_from(self) -> str | None:
        try:
            marker = json.loads((self.path / MARKER).read_text(encoding="utf-8"))
            # One in which something was changed by hand is made anew.
            return marker["lock_sha256"] if marker.get("distributions") == distributions(self.path) else None
        except (OSError, ValueError, KeyError):
            return None

    def _make(self, wanted: str) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for words in self.commands():
            # Services of other users run from it, whatever the umask of this session.
            done = subprocess.run(words, text=True, capture_output=True, check=False, env=self.environment(), umask=0o022)
            if done.returncode:
                shutil.rmtree(self.path, ignore_errors=True)
                raise PythonEnvironmentError(self._explain(words, done))
        made = distributions(self.path)
        marker = {"lock_sha256": wanted, "distributions": made, "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        (self.path / MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")

    def _need_python(self) -> None:
        wanted, python = self.parameters["python_version"], self.parameters["python"]
        program = "import sys; print('%d.%d' % sys.version_info[:2])"
        try:
            done = subprocess.run([python, "-c", program], text=True, capture_output=True, check=False)
        except OSError as error:
            raise PythonEnvironmentError(f"Cannot make {self.path}: {python} cannot be run: {error.strerror}.") from error
        found = done.stdout.strip()
        if wanted and found not in wanted:
            versions = " or ".join(wanted)
            raise PythonEnvironmentError(
                f"Cannot make {self.path}: its lock is for Python {versions}, and {python} is {found or 'broken'}. Take a host "
                f"with Python {versions}, or give a lock made for this one (docs/engines.md)."
            )

    def _need_space(self) -> None:
        wanted = self.parameters["required_bytes"]
        place = self.path
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if free < wanted:
            raise PythonEnvironmentError(
                f"Cannot make {self.path}: {free} bytes ({free / 2**30:.1f} GiB) free on the file system of {place}, "
                f"{wanted} bytes ({wanted / 2**30:.1f} GiB) wanted."
            )

    def _explain(self, words: list[str], done: subprocess.CompletedProcess[str]) -> str:
        output = f"{done.stdout}\n{done.stderr}".strip()
        for url in filter(None, [self.parameters["index"], *self.parameters["extra_indexes"]]):
            output = output.replace(url, "(index)")
        hint = next((text for sign, text in HINTS.items() if sign in output), "")
        tail = "\n".join(output.splitlines()[-12:])
        return f"Cannot make {self.path}: `{' '.join(words[:5])} …` ended with code {done.returncode}. {hint}\n{tail}".strip()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "lock": {"type": "path", "required": True},
            "overrides": {"type": "path"},
            "python": {"type": "path", "default": "/usr/bin/python3"},
            "python_version": {"type": "list", "elements": "str", "default": []},
            "uv": {"type": "str", "default": "uv==0.13.9"},
            "imports": {"type": "list", "elements": "str", "default": []},
            "required_bytes": {"type": "int", "default": 0},
            "index": {"type": "str", "no_log": True},
            "extra_indexes": {"type": "list", "elements": "str", "default": [], "no_log": True},
            "find_links": {"type": "list", "elements": "str", "default": []},
            "ca_bundle": {"type": "path"},
            "cache": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        result = PythonEnvironment(module).run()
    except PythonEnvironmentError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
