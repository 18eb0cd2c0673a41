# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the NVIDIA driver wrote to the kernel's log since the host booted, and what is to be done about it.

The table of codes is ``plugins/plugin_utils/xid_policy.yml``; it comes as an argument, because modules carry no data files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# NVRM: Xid (PCI:0000:05:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
# With MIG the instance stands behind the address: NVRM: Xid (PCI:0000:19:00 GPU-I:05): 94, ...
XID = re.compile(r"NVRM: (?:GPU at PCI:\S+: )?Xid \((?:PCI:)?(?P<bus>[0-9a-fA-F:.]+)[^)]*\): (?P<code>\d+)(?:, ?(?P<text>.*))?")
# nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 12028, Non-fatal, Link 32 egress non-posted PRIV error (First)
SXID = re.compile(r"SXid \(PCI:(?P<bus>[0-9a-fA-F:.]+)[^)]*\): (?P<code>\d+)(?:, ?(?P<text>.*))?")
RECOVERY_CODE = 154
# "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)": what counts is the action that it changed to.
CHANGED_TO = re.compile(r"\bto 0x[0-9a-fA-F]+ \((?P<text>[^)]*)\)")
READ_SECONDS = 60
KMSG = Path("/dev/kmsg")


class KernelLogError(Exception):
    """The kernel's log cannot be read; the message says which ways were tried."""


def kernel_log(path: str | None = None) -> tuple[list[str], str, str | None]:
    """The kernel's messages since boot, where they came from, and what may be missing (null if nothing).

    With `path` they are read from that file, all of it: a site that forwards its kernel log names the local copy.
    """
    if path:
        try:
            lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise KernelLogError(f"{path}: {error.strerror}") from error
        if not lines:
            raise KernelLogError(f"{path} is empty")
        return lines, path, missing_start(lines)
    tried = []
    try:
        lines = from_journal()
    except KernelLogError as error:
        tried.append(str(error))
    else:
        if lines:
            return lines, "journal", missing_start(lines)
        tried.append("the journal has no kernel messages of this boot")
    try:
        lines, first = from_kmsg()
    except OSError as error:
        tried.append(f"{KMSG}: {error.strerror}")
    else:
        if lines:
            lost = None if first == 0 else f"the first {first} messages of this boot are no longer there"
            return lines, str(KMSG), lost
        tried.append(f"{KMSG} is empty")
    raise KernelLogError("; ".join(tried))


def missing_start(lines: list[str]) -> str | None:
    """What to say of a log that does not go back to the boot: the kernel's first message names its version."""
    return None if any("Linux version " in line for line in lines) else "the log does not go back to the boot"


def from_journal() -> list[str]:
    program = shutil.which("journalctl")
    if not program:
        raise KernelLogError("journalctl is not there")
    try:
        done = subprocess.run(
            [program, "--dmesg", "--boot", "--output=json", "--output-fields=MESSAGE", "--no-pager", "--quiet"],
            capture_output=True,
            check=False,
            timeout=READ_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise KernelLogError(f"journalctl did not end within {READ_SECONDS} s") from error
    if done.returncode:
        raise KernelLogError(f"journalctl ended with code {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
    lines = []
    for raw in done.stdout.splitlines():
        message = json.loads(raw).get("MESSAGE")
        if isinstance(message, list):  # bytes that are no text
            message = bytes(message).decode(errors="replace")
        lines.append(message or "")
    return lines


def from_kmsg() -> tuple[list[str], int]:
    """The kernel's ring buffer, and the number of its first message: above zero, older ones were overwritten."""
    descriptor = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK)
    lines, first = [], None
    try:
        while True:
            try:
                record = os.read(descriptor, 8192).decode(errors="replace")
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # overwritten while it was read; the next read goes on behind it
            head, _semicolon, text = record.partition(";")
            number = int(head.split(",")[1])
            first = number if first is None else first
            lines.append(text.splitlines()[0] if text else "")
    finally:
        os.close(descriptor)
    return lines, first or 0


def bus_id(text: str) -> str:
    """A PCI address as NVML and the kernel both can be compared by: domain, bus and device, lower case, no function."""
    parts = text.lower().split(".")[0].split(":")
    domain, bus, device = (["0", *parts] if len(parts) == 2 else parts)[-3:]
    return f"{int(domain, 16):04x}:{int(bus, 16):02x}:{int(device, 16):02x}"


def events(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Each Xid and SXid of the log: kind, code, bus_id, text."""
    found = []
    for line in lines:
        for kind, pattern in (("xid", XID), ("sxid", SXID)):
            match = pattern.search(line)
            if match and (kind == "sxid" or "SXid" not in line):
                found.append(
                    {
                        "kind": kind,
                        "code": int(match["code"]),
                        "bus_id": bus_id(match["bus"]),
                        "text": (match["text"] or "").strip(),
                    }
                )
                break
    return found


def is_recovery(event: Mapping[str, Any]) -> bool:
    return bool(event["kind"] == "xid" and event["code"] == RECOVERY_CODE)


def classify(event: Mapping[str, Any], policy: Mapping[str, Any]) -> dict[str, Any]:
    """The event with name, nvidia_action, action and source; the text of a recovery message decides over its code."""
    table = policy["codes"] if event["kind"] == "xid" else policy.get("sxid", {})
    entry = table.get(event["code"]) or table.get(str(event["code"])) or {"name": "not in the table", **policy["unknown"]}
    action = entry["action"]
    if is_recovery(event):
        changed = CHANGED_TO.search(event["text"])
        text = (changed["text"] if changed else event["text"]).lower()
        for known in policy["recovery_actions"]:
            if known["text"].lower() in text:
                action = known["action"]
                break
    return {
        **event,
        "name": entry["name"],
        "nvidia_action": entry.get("nvidia_action"),
        "action": action,
        "source": entry.get("source") or policy.get("version", ""),
    }


def worst_by_device(found: Iterable[Mapping[str, Any]], policy: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Classified events by device, the most severe action first, each code once with how often it came."""
    order = {name: number for number, name in enumerate(policy["actions"])}
    found = list(found)
    # A recovery message tells how it is from then on, so that only a device's last one counts.
    last = {event["bus_id"]: number for number, event in enumerate(found) if is_recovery(event)}
    found = [event for number, event in enumerate(found) if not is_recovery(event) or last[event["bus_id"]] == number]
    devices: dict[str, dict[tuple[str, int, str], dict[str, Any]]] = {}
    for event in found:
        known = classify(event, policy)
        entry = devices.setdefault(known["bus_id"], {}).setdefault(
            (known["kind"], known["code"], known["action"]), {**known, "count": 0}
        )
        entry["count"] += 1
    return {
        device: sorted(entries.values(), key=lambda entry: (-order.get(entry["action"], 0), entry["code"]))
        for device, entries in devices.items()
    }
