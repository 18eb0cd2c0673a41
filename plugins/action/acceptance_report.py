# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``onprem.llm.acceptance_report``: keep, compare, sign and show records of acceptance tests. All of it is on the controller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.onprem.llm.plugins.plugin_utils._acceptance import (
    AcceptanceError,
    Signatures,
    Site,
    absolute,
    digest,
    plain,
    worst,
)
from ansible_collections.onprem.llm.plugins.plugin_utils._acceptance_page import render


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(
            argument_spec={
                "directory": {"type": "path", "required": True},
                "records": {"type": "list", "elements": "dict", "default": []},
                "hosts": {"type": "list", "elements": "str"},
                "title": {"type": "str", "default": "Acceptance of the site"},
                "signing_key": {"type": "path", "no_log": False},
                "allowed_signers": {"type": "path"},
                "signer": {"type": "str", "default": ""},
                "require_signatures": {"type": "bool", "default": False},
            }
        )
        try:
            result.update(self._report(plain(given)))
        except AcceptanceError as error:
            raise AnsibleActionFail(str(error)) from None
        return result

    def _report(self, given: dict[str, Any]) -> dict[str, Any]:
        check_mode = bool(self._task.check_mode)
        directory = absolute(given["directory"])
        # Whoever hands over the key itself shall not find it in a log.
        if "PRIVATE KEY" in (given["signing_key"] or "") or "\n" in (given["signing_key"] or ""):
            raise AcceptanceError("signing_key: is not a path; name the file that holds the key.")
        signatures = Signatures(
            key=absolute(given["signing_key"]) if given["signing_key"] else None,
            allowed_signers=absolute(given["allowed_signers"]) if given["allowed_signers"] else None,
            identity=given["signer"],
            required=given["require_signatures"],
        )
        if given["hosts"] == [] and not given["records"]:
            raise AcceptanceError(
                "hosts: is empty, so that nothing was examined. Say which hosts were to be, or leave hosts out to make the "
                "page from the records that are there."
            )
        site = Site(directory, signatures)
        site.take(given["records"], given["hosts"] or [], sign=not check_mode)
        hosts = site.hosts()
        verdict = worst(host["verdict"] for host in hosts)
        index = directory / "index.html"
        page = render(given["title"], verdict, hosts).encode()
        before = index.read_bytes() if index.exists() else b""
        # The page's text alone is compared: where check mode makes no signature, it knows which state it would have.
        if page != before:
            site.writes.append((index, page))
        diff = diffs(site.writes) if self._task.diff else []
        if not check_mode:
            site.write()
        return {
            "changed": bool(site.writes),
            "verdict": verdict,
            "hosts": {host["host"]: host["verdict"] for host in hosts},
            "drift": [{"host": host["host"], **item} for host in hosts for item in host["drift"]],
            "outliers": [item for host in hosts for item in host["outliers"]],
            "signatures": {host["host"]: host["signature"]["state"] for host in hosts},
            "index": str(index),
            "records": {host["host"]: str(directory / host["file"]) for host in hosts},
            "written": [str(path) for path, content in site.writes if content is not None],
            **({"diff": diff} if diff else {}),
        }


def diffs(writes: list[tuple[Path, bytes | None]]) -> list[dict[str, str]]:
    """Records as text; signatures and the page by their digest, which is all that a reader could compare."""
    shown = []
    for path, content in writes:
        old = path.read_bytes() if path.exists() else None
        texts = []
        for side in (old, content):
            if side is None:
                texts.append("")
            elif path.suffix == ".json":
                texts.append(side.decode())
            else:
                texts.append(f"sha256:{digest(side)}\n" if side else "(made when the task runs)\n")
        if texts[0] != texts[1]:
            header = str(path)
            shown.append({"before_header": header, "after_header": header, "before": texts[0], "after": texts[1]})
    return shown
