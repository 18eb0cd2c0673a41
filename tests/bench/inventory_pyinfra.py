# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The first BENCH_HOSTS of the bench hosts, as pyinfra reaches them."""

import os
from pathlib import Path

SSH = Path(os.environ["BENCH_SSH"])
REACH = {
    "ssh_user": "ops",
    "ssh_key": str(SSH / "id_ed25519"),
    "ssh_known_hosts_file": str(SSH / "known_hosts"),
    "ssh_strict_host_key_checking": "yes",
}
hosts = [(address, REACH) for address in os.environ["BENCH_HOSTS"].split(",")]
