#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Test this machine's GPUs for real, through ansible-playbook and without a network, and write docs/benchmarks.md.

    tests/gpu/run.py                          where ansible-core is installed, and cupy beside it
    tests/gpu/run.py --python PYTHON          with the cupy of another interpreter
    tests/gpu/run.py --bundle DIR             fetch the wheels that such a machine needs besides cupy, to carry them there
    tests/gpu/run.py --wheels DIR             on that machine, with the wheels of DIR

Ends with 0 when no check failed, 1 when one did, and 2 where there is no GPU or nothing could be run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "plugins" / "module_utils"))
from _gpu_probe import TESTS

OUTPUT = ROOT / "tests" / "output" / "gpu.json"
PAGE = ROOT / "docs" / "benchmarks.md"
FIGURES = ROOT / "docs" / "benchmarks.json"
THRESHOLDS = ROOT / "plugins" / "plugin_utils" / "gpu_thresholds.yml"
LOCK = ROOT / "requirements" / "runtime.lock"
BEGIN, END = "<!-- gpu: written by make test-gpu -->", "<!-- gpu: end -->"
# What ansible-playbook itself needs, in the versions of the lock; nvidia-ml-py as in the role's own.
ANSIBLE = ("ansible-core", "cffi", "cryptography", "jinja2", "markupsafe", "packaging", "pycparser", "pyyaml", "resolvelib")
BUNDLE_BYTES = 60_000_000
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 34, 31, 28, 27, 24, 17)] + ["manylinux2014_x86_64"]


class GpuTestError(Exception):
    """Nothing could be tested; the message says why."""


def gpus(root: Path = Path("/")) -> int:
    """NVIDIA GPUs that have a device file, or are on the PCI bus without one."""
    nodes = [node for node in (root / "dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", node.name)]
    cards = 0
    for card in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = ((card / name).read_text(encoding="ascii").strip() for name in ("vendor", "class"))
        except OSError:
            continue
        cards += vendor == "0x10de" and kind.startswith("0x03")
    return max(len(nodes), cards)


def bundle(folder: Path, python_version: str) -> None:
    pins = dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE))
    own = (ROOT / "roles/gpu_probe/files/gpu-probe-none.lock").read_text(encoding="utf-8")
    wanted = [f"{name}=={pins[name]}" for name in ANSIBLE] + re.findall(r"^nvidia-ml-py==[^\s;\\]+", own, re.MULTILINE)
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    words += ["--python-version", python_version, "--implementation", "cp"]
    for platform in PLATFORMS:
        words += ["--platform", platform]
    subprocess.run([*words, *wanted], check=True)
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    print(f"{folder}: {len(wanted)} wheels for CPython {python_version} on x86-64, {size / 1e6:.1f} MB")
    if size > BUNDLE_BYTES:
        raise GpuTestError(f"that is more than {BUNDLE_BYTES / 1e6:.0f} MB.")


def install(wheels: Path, target: Path) -> None:
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise GpuTestError(f"{wheels} holds no wheels; fetch them with --bundle.")
    words = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--target",
        str(target),
    ]
    subprocess.run([*words, *files], check=True)


def play(options: argparse.Namespace, number: int, site: Path | None, output: Path) -> dict[str, Any]:
    variables = {
        "test_python": options.python,
        "test_backend": options.backend,
        "test_gpus": number,
        "test_names": list(TESTS),
        "test_output": str(output),
        "test_deadline_seconds": options.deadline_seconds,
        "ansible_python_interpreter": sys.executable,
    }
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "LC_ALL": "C.UTF-8",
    }
    if site:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    words = [sys.executable, "-m", "ansible", "playbook", "--inventory", "localhost,", "--extra-vars", json.dumps(variables)]
    done = subprocess.run([*words, str(ROOT / "tests/gpu/playbook.yml")], env=environment, check=False)
    if done.returncode or not output.exists():
        raise GpuTestError(f"ansible-playbook ended with code {done.returncode} and left no figures.")
    return dict(json.loads(output.read_text(encoding="utf-8")))


def peaks(device: dict[str, Any]) -> dict[str, Any]:
    """The datasheet's figures of a device, empty where the threshold file does not know it."""
    import yaml

    products = yaml.safe_load(THRESHOLDS.read_text(encoding="utf-8"))["products"].values()
    alike = [product for product in products if device.get("pci_device_id") in product["pci_device_ids"]]
    named = [product for product in products if product["name"] == device.get("name")]
    found = [product for product in named if product in alike] or named or alike
    return dict(found[0]["figures"]) if found else {}


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Each measurement with its ratio to the peak, where there is one."""
    devices = found["benchmark"]["devices"]
    by_subject = {device["subject"]: peaks(device) for device in devices}
    common = peaks(devices[0]) if devices else {}
    listed = []
    for event in found["benchmark"]["measurements"]:
        figures = by_subject.get(event["subject"].partition(" -> ")[0], common)
        name = event["name"]
        if name == "sustained_matmul":
            name = f"matmul_{event['detail']['type']}"
        figure = figures.get(name, {})
        peak = figure.get("peak") if figure.get("unit") == event["unit"] and event["backend"] != "cpu" else None
        listed.append(
            {
                "name": event["name"],
                "subject": event["subject"],
                "value": event["value"],
                "unit": event["unit"],
                "peak": peak,
                "ratio": event["value"] / peak if peak else None,
            }
        )
    return listed


def section(figures: dict[str, Any]) -> list[str]:
    lines = [
        f"Measured {figures['when']} on {', '.join(figures['devices'])} with {figures['versions']}: {figures['verdict']}.",
        "",
        "| test | of | measured | datasheet | ratio |",
        "|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        peak = f"{row['peak']:g} {row['unit']}" if row["peak"] else ""
        ratio = f"{row['ratio']:.2f}" if row["ratio"] is not None else ""
        lines.append(f"| {row['name']} | {row['subject']} | {row['value']:.5g} {row['unit']} | {peak} | {ratio} |")
    notable = [check for check in figures["checks"] if check["verdict"] not in ("PASS", "SKIPPED")]
    lines += ["", *(f"- {check['verdict']} {check['name']} ({check['subject']}): {check['message']}" for check in notable)]
    return lines if notable else lines[:-1]


def write(figures: dict[str, Any]) -> None:
    known = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    known["gpu"] = figures
    FIGURES.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        text[: text.index(BEGIN) + len(BEGIN)] + "\n" + "\n".join(section(figures)) + "\n" + text[text.index(END) :],
        encoding="utf-8",
    )


def judged(found: dict[str, Any], validate_may_fail: bool) -> list[str]:
    """What speaks against this machine; empty is good."""
    problems = []
    if found["info"].get("state") != "read":
        problems.append(f"gpu_info: {found['info'].get('state')}: {found['info'].get('reason')}")
    parts = ["benchmark"] if validate_may_fail else ["validate", "benchmark"]
    problems += [f"gpu_{part}: {found[part]['summary']}" for part in parts if found[part].get("verdict") not in ("PASS", "WARN")]
    if not any(event["backend"] == "cuda" for event in found["benchmark"]["measurements"]):
        problems.append("gpu_benchmark: nothing was measured on a GPU")
    return problems


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests/gpu/run.py")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has cupy")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="fetch wheels into DIR, and do nothing else")
    parser.add_argument("--python-version", default="3.12", help="of the machine that --bundle is for")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="install these wheels into a folder of this run first")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where all that was found goes, as JSON")
    parser.add_argument("--deadline-seconds", type=int, default=300)
    parser.add_argument("--validate-may-fail", action="store_true", help="for a machine whose slot or kernel log cannot be read")
    parser.add_argument("--dry-run", action="store_true", help="on the processor, to try this program; writes only --output")
    options = parser.parse_args(words)
    options.backend = "numpy" if options.dry_run else "cupy"
    try:
        if options.bundle:
            bundle(options.bundle, options.python_version)
            return 0
        number = gpus()
        if not number and not options.dry_run:
            raise GpuTestError("this machine has no NVIDIA GPU (no /dev/nvidia0, none on the PCI bus). Nothing was tested.")
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="onprem-llm-gpu-") as folder:
            site = Path(folder) if options.wheels else None
            if site:
                install(options.wheels, site)
                sys.path.insert(0, str(site))
            found = play(options, max(1, number), site, options.output.resolve())
            listed = rows(found)
    except (GpuTestError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    problems = judged(found, options.validate_may_fail)
    benchmark = found["benchmark"]
    figures = {
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "devices": [f"{device['subject']} {device['name']}" for device in benchmark["devices"]],
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(benchmark["versions"].items())),
        "verdict": benchmark["verdict"],
        "validate": found["validate"]["verdict"],
        "rows": listed,
        "checks": benchmark["checks"],
    }
    print("\n".join(section(figures)))
    # Figures of a machine on which nothing was measured must not replace those of one on which something was.
    if any(event["backend"] == "cuda" for event in benchmark["measurements"]):
        write(figures)
        print(f"{PAGE.relative_to(ROOT)} and {FIGURES.relative_to(ROOT)} are written")
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
