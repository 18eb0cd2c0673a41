# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The state that the bench hosts' roles declared, checked by pyinfra: the same resources, from the roles' own records."""

from __future__ import annotations

import json
import os
from io import StringIO
from pathlib import Path

from pyinfra import host
from pyinfra.operations import apt, files, server, systemd

STATE = json.loads(Path(os.environ["BENCH_STATE"]).read_text(encoding="utf-8"))[host.name]


def only(spec, *names):
    return {name: spec[name] for name in names if spec.get(name) is not None}


apt.packages(packages=[spec["name"] for spec in STATE["packages"]], _sudo=True)
for spec in STATE["groups"]:
    server.group(group=spec["name"], _sudo=True)
for spec in STATE["users"]:
    server.user(user=spec["name"], ensure_home=False, _sudo=True, **only(spec, "group", "groups", "home", "shell"))
for spec in STATE["directories"]:
    files.directory(path=spec["path"], user=spec["owner"], group=spec["group"], mode=spec["mode"], _sudo=True)
for spec in STATE["files"]:
    owned = {"user": spec.get("owner"), "group": spec.get("group"), "mode": spec.get("mode")}
    files.put(src=StringIO(spec["text"]), dest=spec["path"], _sudo=True, **owned)
for spec in STATE["links"]:
    files.link(path=spec["path"], target=spec["target"], _sudo=True)
for spec in STATE["sysctls"]:
    server.sysctl(key=spec["name"], value=spec["value"], _sudo=True)
for spec in STATE["units"]:
    systemd.service(service=spec["name"], running=True, enabled=True, _sudo=True)
