#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: model_server_service
short_description: Start a model server and wait until it can serve
version_added: 0.1.0
description:
  - Enables and starts a unit, restarts it when its unit files are newer than its process, and waits for its health.
  - While it waits, the action plugin of the same name prints how far the start is. When the process dies, the task fails
    at once with the last lines of its log and the likely cause.
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: Nothing is started and nothing is waited for; whether a start or restart is due is returned.
  diff_mode:
    support: none
    description: A service has no text to show.
options:
  unit:
    description: Name of the unit.
    type: str
    required: true
  health_url:
    description: Address that answers 200 when the server can serve.
    type: str
    required: true
  ready_seconds:
    description: Time in seconds after which a start counts as failed.
    type: int
    default: 900
  phase:
    description: Used by the action plugin; V(start) starts what has to be started, V(look) waits a little and looks.
    type: str
    choices: [start, look]
    default: start
  invocation:
    description: Used by the action plugin; the run of the unit that is waited for.
    type: str
  wait_seconds:
    description: Used by the action plugin; the longest time in seconds that one look takes.
    type: int
    default: 10
"""

EXAMPLES = r"""
- name: Start the model server
  onprem.llm.model_server_service:
    unit: onprem-model-server@chat.service
    health_url: http://10.0.0.5:8000/health
"""

RETURN = r"""
status:
  description: V(ready), V(starting) or V(dead).
  returned: always
  type: str
seconds:
  description: Time from the start to the first healthy answer, in seconds.
  returned: when the server was started
  type: float
log:
  description: Last lines of the server's log.
  returned: when the server died
  type: list
  elements: str
cause:
  description: The likely cause of the death, by name.
  returned: when the server died
  type: str
"""

import errno
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.onprem.llm.plugins.module_utils._diagnosis import likely_cause

LOG_LINES = 400
SHOWN_LINES = 25
PROPERTIES = (
    "LoadState,ActiveState,SubState,UnitFileState,Result,ExecMainCode,ExecMainStatus,InvocationID,"
    "FragmentPath,DropInPaths,ExecMainStartTimestampMonotonic,MemoryCurrent"
)


class ModelServerServiceError(Exception):
    """A unit that cannot be started."""


class ModelServerService:
    """One unit: what it is doing, whether it has to be started, whether it can serve."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.unit: str = module.params["unit"]

    def run(self) -> dict[str, Any]:
        return self.start() if self.module.params["phase"] == "start" else self.look()

    def systemctl(self, *words: str) -> str:
        done = subprocess.run(["systemctl", *words], text=True, capture_output=True, check=False)
        if done.returncode and not self.module.check_mode:
            raise ModelServerServiceError(f"`systemctl {' '.join(words)}` failed: {done.stderr.strip()}")
        return done.stdout

    def show(self) -> dict[str, str]:
        lines = self.systemctl("show", "--property", PROPERTIES, self.unit).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    @staticmethod
    def stale(state: dict[str, str]) -> bool:
        """Whether a unit file was written after the process started, also by a run that was cut off before the restart."""
        with open("/proc/uptime", encoding="ascii") as stream:
            booted = time.time() - float(stream.read().split()[0])
        started = booted + int(state.get("ExecMainStartTimestampMonotonic") or 0) / 1e6
        files = [state.get("FragmentPath", ""), *state.get("DropInPaths", "").split()]
        return any(os.path.getmtime(path) > started + 1 for path in files if path and os.path.exists(path))

    def start(self) -> dict[str, Any]:
        state = self.show()
        enabled = state.get("UnitFileState") == "enabled"
        running = state.get("ActiveState") == "active"
        stale = running and self.stale(state)
        changed = not enabled or not running or stale
        if not running and state.get("ActiveState") != "activating":
            self.refuse_taken_port()
        if changed and not self.module.check_mode:
            if not enabled:
                self.systemctl("enable", self.unit)
            if not running or stale:
                # Whether it worked is seen by looking, which also finds the reason.
                for verb in ("reset-failed", "restart"):
                    subprocess.run(["systemctl", verb, self.unit], capture_output=True, check=False)
                state = self.show()
        return {"changed": changed, "started": not running or stale, "invocation": state.get("InvocationID", "")}

    def refuse_taken_port(self) -> None:
        """Whoever holds the port may even answer the health check; a start would seem to have worked."""
        address = urllib.parse.urlsplit(self.module.params["health_url"])
        host, port = address.hostname or "127.0.0.1", address.port or 80
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise ModelServerServiceError(
                        f"{self.unit} cannot listen on {host}: this host has no such address."
                    ) from error
                if error.errno != errno.EADDRINUSE:
                    raise ModelServerServiceError(
                        f"{self.unit} cannot listen on {host} port {port}: {error.strerror}."
                    ) from error
                holder = subprocess.run(["ss", "-Hltnp", f"sport = :{port}"], text=True, capture_output=True, check=False).stdout
                process = holder.partition("users:")[2].strip() or "a process unknown"
                raise ModelServerServiceError(
                    f"{self.unit} was not started. Likely cause: port taken. {host} port {port} is held by {process}: stop that, "
                    "or give the instance another port."
                ) from error

    def look(self) -> dict[str, Any]:
        end = time.monotonic() + self.module.params["wait_seconds"]
        while True:
            state = self.show()
            gone = state["InvocationID"] != self.module.params["invocation"]
            if gone or state["ActiveState"] not in ("active", "activating", "reloading") or state["SubState"] == "auto-restart":
                return self.death(state)
            if self.healthy():
                return {"changed": False, "status": "ready"}
            if time.monotonic() > end:
                memory = state.get("MemoryCurrent", "")
                last = self.log(1)
                return {
                    "changed": False,
                    "status": "starting",
                    "last": last[-1] if last else "",
                    "memory_bytes": int(memory) if memory.isdigit() else None,
                    "log": self.log(SHOWN_LINES),
                }
            time.sleep(0.5)

    def healthy(self) -> bool:
        # The server is on this host or beside it: a proxy of the environment has no part in it.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self.module.params["health_url"], timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def log(self, lines: int) -> list[str]:
        words = ["journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={lines}"]
        # What the process wrote, and what systemd says of it.
        run = self.module.params["invocation"]
        words += [f"_SYSTEMD_INVOCATION_ID={run}", "+", f"INVOCATION_ID={run}"]
        done = subprocess.run(words, text=True, capture_output=True, check=False, errors="replace")
        return done.stdout.splitlines()

    def death(self, state: dict[str, str]) -> dict[str, Any]:
        time.sleep(0.5)  # the journal takes a moment to hold the last words
        lines = self.log(LOG_LINES)
        name = ""
        if state.get("ExecMainCode") in ("2", "3") and state.get("ExecMainStatus", "").isdigit():
            name = signal.Signals(int(state["ExecMainStatus"])).name.removeprefix("SIG")
        cause = likely_cause(lines, state.get("Result", ""), name)
        how = f"signal SIG{name}" if name else f"exit code {state.get('ExecMainStatus', '?')}"
        return {
            "changed": False,
            "status": "dead",
            "how": f"{how}, {state.get('Result', '')}",
            "cause": cause.name if cause else "unknown",
            "advice": cause.advice if cause else "The log has the reason.",
            "log": lines[-SHOWN_LINES:],
        }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "health_url": {"type": "str", "required": True},
            "ready_seconds": {"type": "int", "default": 900},
            "phase": {"type": "str", "choices": ["start", "look"], "default": "start"},
            "invocation": {"type": "str"},
            "wait_seconds": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    try:
        result = ModelServerService(module).run()
    except ModelServerServiceError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
