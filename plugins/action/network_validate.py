# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``onprem.llm.network_validate``: the run's token, and a line on what is ahead and what was found."""

from __future__ import annotations

import math
import secrets
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.onprem.llm.plugins.module_utils._network_probe import Timetable, rounds

display = Display()

# Ansible loads this file before it forks for the hosts, so all hosts of a run have the same one, and no variable holds it.
# The longest that the module lets a server live.
LONGEST_SECONDS = 86400
TOKEN = secrets.token_hex(32)


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        state = arguments.get("state")
        if state in ("listening", "measured"):
            arguments.setdefault("me", task_vars.get("inventory_hostname"))
            if not arguments.get("token"):
                arguments["token"] = TOKEN
            self._plan(arguments, int(task_vars.get("ansible_forks") or 1))
        result.update(self._execute_module("onprem.llm.network_validate", module_args=arguments, task_vars=task_vars))
        if state == "measured" and "verdict" in result:
            display.display(f"{arguments['me']}: network {result['verdict']}, {self._worst(result)}")
        return result

    def _plan(self, arguments: dict[str, Any], forks: int) -> None:
        """Say how long it takes, and let the servers live longer than that."""
        try:
            names = [host["name"] for host in arguments["hosts"]]
            number = len(rounds(names, arguments["me"]))
            timetable = Timetable(
                float(arguments.get("latency_seconds", 2.0)),
                float(arguments.get("bandwidth_seconds", 1.0)),
                int(arguments.get("rdma_count") or 0),
            )
        except (KeyError, TypeError, ValueError):
            return  # the module says better what is wrong
        batches = math.ceil(len(names) / forks)
        seconds = batches * timetable.seconds(number)
        if arguments["state"] == "listening" and not arguments.get("seconds"):
            arguments["seconds"] = min(LONGEST_SECONDS, max(300, 2 * seconds))
        if arguments["state"] == "measured" and arguments["me"] == names[0] and not self._task.check_mode:
            more = f", in {batches} batches because Ansible has {forks} forks" if batches > 1 else ""
            display.display(
                f"{len(names)} hosts measure each other in {number} rounds of {timetable.slot} s{more}; at most {seconds} s"
            )

    @staticmethod
    def _worst(result: dict[str, Any]) -> str:
        """The slowest pair, or the first that has no figures."""
        pairs = result.get("pairs") or []
        for pair in pairs:
            if "latency_median_us" not in pair:
                return f"{pair['from']} -> {pair['to']}: {'; '.join(pair['errors'].values()) or 'no figures'}"
        if not pairs:
            return str(result.get("summary", "nothing was measured"))
        worst = max(pairs, key=lambda pair: pair["latency_median_us"])
        line = f"worst of {len(pairs)} pairs {worst['from']} -> {worst['to']}: median {worst['latency_median_us']:g} us, "
        line += f"p99 {worst['latency_p99_us']:g} us"
        rates = [
            pair[f"{name}_gbytes_per_second"]
            for pair in pairs
            for name in ("send", "receive")
            if f"{name}_gbytes_per_second" in pair
        ]
        return line + (f"; least bandwidth {min(rates) * 8:.2f} Gbit/s" if rates else "")
