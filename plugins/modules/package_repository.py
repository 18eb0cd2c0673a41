#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: package_repository
short_description: Add a signed package repository after it was read and its signature checked
version_added: 0.2.0
description:
  - The repository's key is taken from a file or fetched, and refused unless every primary key in it has an expected
    fingerprint.
  - The repository is then read with that key in a scratch directory. Only when that succeeded are key and source
    written, so that an unreachable, unsigned or wrongly signed repository never becomes a source of the host.
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: The repository is read as well; key and source are not written.
  diff_mode:
    support: full
    description: Shows the source's content.
options:
  path:
    description: File of the source, C(.sources) for apt, C(.repo) for dnf.
    type: path
    required: true
  content:
    description: Content of the source. It names O(key_path).
    type: str
    required: true
  key_path:
    description: File of the key on the host. Nothing is written when neither O(key_content) nor O(key_url) is given.
    type: path
    required: true
  key_content:
    description: The public key itself, armored.
    type: str
  key_url:
    description: Address to fetch the key from.
    type: str
  fingerprints:
    description: Fingerprints of which each key must have one.
    type: list
    elements: str
    default: []
  ca_path:
    description: PEM file that certifies the key's server.
    type: path
"""

EXAMPLES = r"""
- name: Add the GPU repository
  onprem.llm.package_repository:
    path: /etc/apt/sources.list.d/onprem-gpu.sources
    content: |
      Types: deb
      URIs: https://mirror.example.internal/cuda/debian12/x86_64
      Suites: /
      Signed-By: /etc/apt/keyrings/onprem-gpu.asc
    key_path: /etc/apt/keyrings/onprem-gpu.asc
    key_url: https://mirror.example.internal/cuda/debian12/x86_64/3bf863cc.pub
    fingerprints: [EB693B3035CD5710E231E123A4B469963BF863CC]
"""

RETURN = r"""
fingerprints:
  description: Fingerprints of the keys.
  returned: when there is a key
  type: list
  elements: str
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.onprem.llm.plugins.module_utils._host_state import write_file
from ansible_collections.onprem.llm.plugins.module_utils._openpgp import OpenPGPError, armored, dearmored, fingerprints
from ansible_collections.onprem.llm.plugins.module_utils._package_manager import command, last_lines

# What the package managers say, and what an operator should look at.
HINTS = {
    "NO_PUBKEY": "The repository is signed with another key than the one given.",
    "Missing key": "The repository is signed with another key than the one given.",
    "BADSIG": "The signature does not fit the index: it was altered, or the mirror is in the middle of an update.",
    "Bad signature": "The signature does not fit the index: it was altered, or the mirror is in the middle of an update.",
    "has been manipulated": "The signature does not fit the index: it was altered, or the mirror is in the middle of an update.",
    # Said of every signature that does not verify, so it comes after them.
    "is not signed": "The repository is not signed.",
    "Hash Sum mismatch": "The mirror is in the middle of an update, or its index was altered.",
    "Could not resolve": "The name of its server cannot be resolved from this host.",
    "Could not connect": "Its server cannot be reached from this host.",
    "Connection refused": "Its server cannot be reached from this host.",
    "404": "There is nothing at this address: look at the platform's folder.",
    "certificate": "Its certificate is not trusted here: set onprem_llm_ca_bundle.",
}


class RepositoryError(Exception):
    """A repository or key that cannot be used."""


class PackageRepository:
    """Get the key, try the repository, then write both."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.given: dict[str, Any] = module.params
        self.path, self.key_path = Path(self.given["path"]), Path(self.given["key_path"])
        self.address = next(iter(re.findall(r"(?m)^(?:URIs:|baseurl=)\s*(\S+)", self.given["content"])), str(self.path))

    def run(self) -> dict[str, Any]:
        key = self.key()
        result: dict[str, Any] = {"fingerprints": self.checked(key)} if key else {}
        scratch = Path(tempfile.mkdtemp(prefix="onprem-repository-"))
        try:
            scratch.chmod(0o755)  # apt reads as a user of its own
            self.try_out(scratch, key)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        content = self.given["content"]
        before = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        changed = before != content or (bool(key) and (not self.key_path.exists() or self.key_path.read_bytes() != key))
        if changed and not self.module.check_mode:
            for path, text in ((self.key_path, key), (self.path, content.encode())):
                if text:
                    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                    write_file(path, text, 0o644)
        header = str(self.path)
        diff = {"before_header": header, "after_header": header, "before": before, "after": content}
        return {"changed": changed, "diff": diff, **result}

    def key(self) -> bytes:
        if self.given["key_content"]:
            return str(self.given["key_content"]).encode()
        url = self.given["key_url"]
        if not url:
            return b""
        try:
            with open_url(url, timeout=30, ca_path=self.given["ca_path"]) as answer:
                fetched = bytes(answer.read(1 << 20))
        except Exception as error:  # urllib's, ssl's and socket's errors have no common base
            raise RepositoryError(f"The key of the repository cannot be fetched from {url}: {error}.") from error
        try:
            # Written anew from what was looked at: another reader must not find a key that this one did not see.
            return armored(dearmored(fetched))
        except OpenPGPError as error:
            raise RepositoryError(f"What {url} holds is no public key: {error}.") from error

    def checked(self, key: bytes) -> list[str]:
        origin = self.given["key_url"] or "the given file"
        try:
            found = fingerprints(key)
        except OpenPGPError as error:
            raise RepositoryError(f"What {origin} holds is no public key: {error}.") from error
        wanted = {text.replace(" ", "").upper() for text in self.given["fingerprints"]}
        strange = [text for text in found if text not in wanted]
        if wanted and strange:
            raise RepositoryError(
                f"The key of {origin} has the fingerprint {', '.join(strange)}, and {' or '.join(sorted(wanted))} is wanted. "
                "Nothing was written: do not use this repository before you know why."
            )
        return found

    def try_out(self, scratch: Path, key: bytes) -> None:
        """Read the repository as the package manager would, without touching the host's own lists."""
        content = self.given["content"]
        if key:
            trial = scratch / self.key_path.name
            write_file(trial, key, 0o644)
            content = content.replace(str(self.key_path), str(trial))
        sources = scratch / "sources"
        sources.mkdir(mode=0o755)
        write_file(sources / self.path.name, content.encode(), 0o644)
        if self.path.suffix == ".repo":
            options = [f"--setopt=reposdir={sources}", f"--setopt=cachedir={scratch}/cache", "--setopt=varsdir=/etc/dnf/vars"]
            done = command("dnf", "-q", "-y", *options, "makecache")
        else:
            lists = scratch / "lists"
            (lists / "partial").mkdir(parents=True)
            settings = {
                "Dir::Etc::sourcelist": "/dev/null",
                "Dir::Etc::sourceparts": str(sources),
                "Dir::State::lists": str(lists),
                "Dir::Cache::pkgcache": "",
                "Dir::Cache::srcpkgcache": "",
                "APT::Update::Error-Mode": "any",
                "Acquire::Retries": "1",
            }
            done = command("apt-get", "-q", *(word for item in settings.items() for word in ("-o", "=".join(item))), "update")
        if done.returncode:
            said = last_lines(done)
            hint = next((text for sign, text in HINTS.items() if sign in said), "")
            raise RepositoryError(f"The repository {self.address} cannot be used, and was not added. {hint} It says: {said}")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "required": True},
            "key_path": {"type": "path", "required": True, "no_log": False},
            "key_content": {"type": "str", "no_log": False},
            "key_url": {"type": "str", "no_log": False},
            "fingerprints": {"type": "list", "elements": "str", "default": []},
            "ca_path": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        result = PackageRepository(module).run()
    except RepositoryError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
