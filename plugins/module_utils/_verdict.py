# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a check found, and what a host's checks say together.

One form for every validation: passive and active GPU tests, networks, and what other tools report. It fails closed: a
host about which nothing was learnt is a host that failed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

PASS = "PASS"  # noqa: S105
# Worth a look, and no reason to keep the host out of service.
WARN = "WARN"
FAIL = "FAIL"
# Does not apply to this host, device or driver; the message says why.
SKIPPED = "SKIPPED"
# Applies, and could not be looked at; counts as a failure wherever it is required.
NOT_RUN = "NOT_RUN"
VERDICTS = (PASS, WARN, FAIL, SKIPPED, NOT_RUN)

# From bad to good, for sorting and for taking the worst of several.
SEVERITY = (FAIL, NOT_RUN, WARN, PASS, SKIPPED)


@dataclass
class Check:
    """One question with its answer.

    measured and expected are in `unit` (null where the question has none); `source` says where the expectation comes
    from; `action` is what an operator does about a verdict that is not PASS.
    """

    name: str
    verdict: str
    subject: str = "host"
    measured: Any = None
    expected: Any = None
    unit: str | None = None
    source: str = ""
    action: str = ""
    message: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"{self.name}: {self.verdict!r} is no verdict; there are {', '.join(VERDICTS)}.")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def overall(checks: Iterable[Check]) -> str:
    """The verdict over all checks: FAIL if one failed, was not run, or if none looked at anything."""
    found = {check.verdict for check in checks}
    if found & {FAIL, NOT_RUN} or not found & {PASS, WARN}:
        return FAIL
    return WARN if WARN in found else PASS


def summary(checks: Iterable[Check]) -> str:
    """One line for a log: how many ended how, and what failed."""
    listed = list(checks)
    if not listed:
        return "nothing was checked"
    counts = ", ".join(
        f"{number} {verdict}" for verdict in SEVERITY if (number := sum(1 for check in listed if check.verdict == verdict))
    )
    bad = [f"{check.name} ({check.subject}): {check.message}" for check in listed if check.verdict in (FAIL, NOT_RUN)]
    shown = "; ".join(bad[:5]) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
    return f"{counts}: {shown}" if bad else counts
