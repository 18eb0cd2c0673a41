#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: model_release
short_description: Fetch, verify and activate model releases
version_added: 0.1.0
description:
  - Gets releases of models onto the host, checks every file against a SHA-256 manifest, and activates each by one
    rename. Whatever is refused leaves the active release as it was.
  - Weights that run code when they are loaded are refused, by name and by content, and so is any kind of file that
    models do not need.
  - A run that was cut off goes on where it was; a connection that breaks is taken up again where it broke.
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: Reads the manifest, so that a model that is not there is refused; the same commands are returned.
  diff_mode:
    support: full
    description: Shows the active release of each model before and after.
options:
  root:
    description: Directory of the store.
    type: path
    required: true
  models:
    description: Models with the release that shall be active.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the model.
        type: str
        required: true
      release:
        description: Name of the release; a release's files never change.
        type: str
        required: true
      source:
        description: Where the release comes from.
        type: dict
        required: true
        suboptions:
          type:
            description: Kind of source.
            type: str
            required: true
            choices: [directory, http, huggingface]
          path:
            description: Directory on the host, for instance an NFS mount.
            type: path
          url:
            description: Address of the release's folder on a mirror.
            type: str
          repo:
            description: Repository of the hub, C(owner/name).
            type: str
          revision:
            description: Commit of the repository, 40 hex digits.
            type: str
      manifest:
        description: Name of the manifest within the source, in the form of C(sha256sum).
        type: str
        default: SHA256SUMS
      manifest_sha256:
        description:
          - SHA-256 of the manifest itself; wanted for plain http.
        type: str
      keep:
        description: Number of releases that stay on the host, the active one among them.
        type: int
        default: 3
      allow_pickle:
        description:
          - Take weights that run code when they are loaded, and files of any other kind.
          - Without it a release may hold the suffixes C(.safetensors), C(.gguf), C(.json), C(.txt), C(.model), C(.jinja),
            C(.md), C(.tiktoken), C(.yaml) and C(.yml), licences and notices, none of them with a pickle or archive inside.
        type: bool
        default: false
  group:
    description: Group that may read the releases; root's alone where not given.
    type: str
  reserve_bytes:
    description: Free disk space that must be left, in bytes.
    type: int
    default: 0
  verify:
    description: V(fast) looks at sizes and times of the files that are here, V(full) reads them.
    type: str
    choices: [fast, full]
    default: fast
  ca_path:
    description: PEM file on the host that certifies mirror and hub.
    type: path
  ca_pem:
    description:
      - Certificates in PEM that are trusted besides those of O(ca_path). A site's own CA, for a look before the host has it.
    type: str
  huggingface_endpoint:
    description: Address of the hub or of a mirror with its interface.
    type: str
  huggingface_token:
    description: Token for the hub.
    type: str
"""

EXAMPLES = r"""
- name: Activate a release from an NFS mount
  onprem.llm.model_release:
    root: /var/lib/onprem/models
    models:
      - name: chat
        release: "2026-10-01"
        source:
          type: directory
          path: /mnt/models/chat/2026-10-01
"""

RETURN = r"""
models:
  description: What was or would be done, by model.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the model.
      type: str
    release:
      description: The release that is active after this.
      type: str
    path:
      description: Directory of the release.
      type: str
    before:
      description: The release that was active before, or null.
      type: str
    fetched:
      description: Whether files are fetched.
      type: bool
    bytes:
      description: Size of the release in bytes, as far as the source tells it.
      type: int
    removed:
      description: Releases that go, because only the last few are kept.
      type: list
      elements: str
    not_in_manifest:
      description: Files of a directory source that its manifest does not name, and that are left out.
      type: list
      elements: str
commands:
  description: What was or would be done, as shell commands.
  returned: always
  type: list
  elements: str
"""

import grp
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.onprem.llm.plugins.module_utils._model_release import ModelStore, ModelStoreError, converge_all

SOURCE = {
    "type": {"type": "str", "required": True, "choices": ["directory", "http", "huggingface"]},
    "path": {"type": "path"},
    "url": {"type": "str"},
    "repo": {"type": "str"},
    "revision": {"type": "str"},
}
MODEL = {
    "name": {"type": "str", "required": True},
    "release": {"type": "str", "required": True},
    "source": {
        "type": "dict",
        "required": True,
        "options": SOURCE,
        "required_if": [
            ("type", "directory", ["path"]),
            ("type", "http", ["url"]),
            ("type", "huggingface", ["repo", "revision"]),
        ],
    },
    "manifest": {"type": "str", "default": "SHA256SUMS"},
    "manifest_sha256": {"type": "str"},
    "keep": {"type": "int", "default": 3},
    "allow_pickle": {"type": "bool", "default": False},
}


def trusted_together(folder: str, ca_path: str | None, ca_pem: str) -> str:
    """A file with the host's certificates, where it has any, and the given ones."""
    store = Path(ca_path) if ca_path else None
    known = store.read_text(encoding="utf-8") if store and store.exists() else ""
    together = Path(folder) / "ca.pem"
    together.write_text(f"{known}\n{ca_pem}\n", encoding="utf-8")
    return str(together)


def converge(module: AnsibleModule) -> dict[str, Any]:
    """Bring each model to its release, and say what was or would be done."""
    settings = {name: value for name, value in module.params.items() if name != "models"}
    if module.params["ca_pem"]:
        settings["ca_path"] = trusted_together(module.tmpdir, module.params["ca_path"], module.params["ca_pem"])
    if module.params["group"]:
        try:
            settings["gid"] = grp.getgrnam(module.params["group"]).gr_gid
        except KeyError:
            if not module.check_mode:
                raise ModelStoreError(f"There is no group {module.params['group']!r} on this host.") from None
    stores = [ModelStore(model, settings) for model in module.params["models"]]
    results = converge_all(stores, apply=not module.check_mode)
    return {
        "changed": any(result["changed"] for result in results),
        "models": results,
        "commands": [command for result in results for command in result["commands"]],
        "diff": {
            "before": "".join(f"{result['name']}: {result['before'] or '(none)'}\n" for result in results),
            "after": "".join(f"{result['name']}: {result['after']}\n" for result in results),
        },
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "models": {"type": "list", "elements": "dict", "required": True, "options": MODEL},
            "group": {"type": "str"},
            "reserve_bytes": {"type": "int", "default": 0},
            "verify": {"type": "str", "choices": ["fast", "full"], "default": "fast"},
            "ca_path": {"type": "path"},
            "ca_pem": {"type": "str"},
            "huggingface_endpoint": {"type": "str"},
            "huggingface_token": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    try:
        result = converge(module)
    except ModelStoreError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
