#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Run every check of the project, or the named ones, and say at the end what passed, failed and was skipped, and why.

    tests/run.py [NAME …]     all, or for instance: lint unit molecule-gateway lab

Each check's whole output lies in tests/output/NAME.log.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "lab"))
import lab

OUTPUT = ROOT / "tests" / "output"
STAGE = ROOT / ".lab" / "stage"
SCENARIOS = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))
# Scenarios that fetch gigabytes, by a file that the package cache holds once they ran. One of them is enough for each run
# of all checks; the others run when they are quick, or when TEST_HEAVY says so.
HEAVY = {"gpu_stack_debian12": ("nvidia-cuda-dev_11.8*.deb", "1.9 GB")}


class Skip(Exception):
    """A check that cannot run here, with the reason."""


class Failed(Exception):
    """A check that did not pass."""


def shell(name: str, *commands: list[str | Path], cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
    """Run the commands of one check one after the other, into its log; the first that fails ends it."""
    with (OUTPUT / f"{name}.log").open("a", encoding="utf-8") as log:
        for command in commands:
            log.write(f"$ {' '.join(map(str, command))}\n")
            log.flush()
            done = subprocess.run(
                [str(word) for word in command],
                cwd=cwd,
                env={**lab.ansible_environment(), **(env or {})},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode:
                raise Failed(f"`{' '.join(map(str, command[:4]))}` ended with code {done.returncode}")


def lint(name: str) -> None:
    shell(
        name,
        ["ruff", "check", "plugins", "tests", "molecule", "roles"],
        ["ruff", "format", "--check", "plugins", "tests", "molecule"],
        ["yamllint", "--strict", "."],
        ["mypy"],
        [sys.executable, "tests/role_docs.py"],
        ["ansible-lint", "--offline", "--profile", "production"],
    )


def collection(name: str) -> None:
    """Build the tarball, install it where nothing of this checkout is seen, and use it from there."""
    installed = STAGE / "installed"
    shutil.rmtree(STAGE, ignore_errors=True)
    installed.mkdir(parents=True)
    shell(name, ["ansible-galaxy", "collection", "build", "--force", "--output-path", STAGE, ROOT])
    tarball = next(STAGE.glob("onprem-llm-*.tar.gz"))
    alone = {"ANSIBLE_CONFIG": str(STAGE / "none.cfg"), "ANSIBLE_COLLECTIONS_PATH": str(installed)}
    inventory = ROOT / "inventories" / "example"
    shell(
        name,
        ["ansible-galaxy", "collection", "install", "--no-deps", "--collections-path", installed, tarball],
        ["ansible-playbook", "-i", inventory, "--list-tasks", "onprem.llm.site"],
        cwd=STAGE,
        env=alone,
    )
    shell(name, ["ansible-playbook", "-i", inventory, "--list-tasks", "site.yml"])


def sanity(name: str) -> None:
    collection(name)
    home = STAGE.parent / "sanity"
    prepare_sanity_home(home)
    # Outside the checkout: ansible-test looks at no file that a surrounding git repository ignores.
    with tempfile.TemporaryDirectory(prefix="onprem-llm-sanity-") as folder:
        shutil.copytree(STAGE / "installed", folder, dirs_exist_ok=True)
        shell(
            name,
            ["ansible-test", "sanity", "--venv", "--python", f"{sys.version_info[0]}.{sys.version_info[1]}", "--color", "no"],
            cwd=Path(folder) / "ansible_collections" / "onprem" / "llm",
            env={"ANSIBLE_CONFIG": "", "ANSIBLE_COLLECTIONS_PATH": folder, "HOME": str(home)},
        )
    if "All targets skipped" in (OUTPUT / f"{name}.log").read_text(encoding="utf-8"):
        raise Failed("ansible-test found nothing to test")


def prepare_sanity_home(home: Path) -> None:
    """ansible-test hands no variable on to pip, and loads pip itself from a place that a closed network does not reach."""
    settings = home / ".config" / "pip" / "pip.conf"
    settings.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{key} = {' '.join(values)}\n" for key, values in lab.pip_settings().items() if key in lab.PIP_REACH]
    settings.write_text("".join(["[global]\n", *lines]), encoding="utf-8")
    settings.chmod(0o600)  # an index address may carry a password
    requirements = Path(sysconfig.get_path("purelib")) / "ansible_test/_internal/python_requirements.py"
    version = re.search(r"'(\d+(?:\.\d+)+)'", requirements.read_text(encoding="utf-8").partition("pip_version")[2])
    if not version:
        raise Failed("cannot tell which pip this ansible-test wants")
    bootstrap = home / ".ansible/test/cache" / f"get_pip_{version[1].replace('.', '_')}.py"
    bootstrap.parent.mkdir(parents=True, exist_ok=True)
    bootstrap.write_text(
        "import ensurepip, os, subprocess, sys\n"
        "settings = dict(os.environ)  # ensurepip switches pip's configuration off for its own process\n"
        "ensurepip.bootstrap()\n"
        "wanted = [word for word in sys.argv[1:] if not word.startswith('--no-')]\n"
        "subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', *wanted], check=True, env=settings)\n",
        encoding="utf-8",
    )


def unit(name: str) -> None:
    shell(name, [sys.executable, "-m", "pytest", "-q", "-n", "2", "tests/unit"], env={"PYTHONPATH": str(ROOT / "collections")})


def molecule(scenario: str) -> Callable[[str], None]:
    def check(name: str) -> None:
        pattern, size = HEAVY.get(scenario, ("", ""))
        cached = any((lab.LAB / "cache" / "apt").rglob(pattern)) if pattern else True
        if not cached and os.environ.get("TEST_HEAVY", "") in {"", "0"}:
            raise Skip(f"fetches {size} that are not in the cache yet; TEST_HEAVY=1 runs it")
        shell(name, ["molecule", "test", "--scenario-name", scenario])

    return check


def converge_lab(name: str) -> None:
    """The whole lab, twice: the second time nothing may change."""
    inventory = ["-i", "inventories/lab"]
    shell(name, ["ansible-playbook", *inventory, "tests/lab/create.yml"], ["ansible-playbook", *inventory, "site.yml"])
    lab.write_endpoint()
    for extra in ([], ["-e", "onprem_llm_verify=full"], []):
        shell(name, ["ansible-playbook", *inventory, "site.yml", *extra])
        log = (OUTPUT / f"{name}.log").read_text(encoding="utf-8")
        whole = "Enable and start the gateway" in log.rpartition("$ ansible-playbook")[2]
        if whole is not bool(extra):
            raise Failed(f"site.yml {' '.join(extra)} {'ran' if whole else 'passed over'} roles that it should not have")
        recap = [line for line in log.rpartition("PLAY RECAP")[2].splitlines() if "changed=" in line]
        changed = [line.split()[0] for line in recap if "changed=0 " not in line]
        if changed or not recap:
            raise Failed(f"another run of site.yml {' '.join(extra)} changed something on {', '.join(changed) or 'no host'}")


def use_lab(name: str) -> None:
    shell(name, [sys.executable, "-m", "pytest", "-q", "--durations=10", "tests/integration"])


CHECKS: dict[str, Callable[[str], None]] = {
    "lint": lint,
    "unit": unit,
    "collection": collection,
    "sanity": sanity,
    **{f"molecule-{scenario}": molecule(scenario) for scenario in SCENARIOS},
    "lab": converge_lab,
    "use": use_lab,
}


def judged(name: str, check: Callable[[str], None]) -> tuple[str, str, float]:
    """The verdict of a check, why, and how long it took in seconds."""
    (OUTPUT / f"{name}.log").touch()
    begun = time.monotonic()
    verdict, why = "passed", ""
    try:
        check(name)
    except Skip as reason:
        verdict, why = "skipped", str(reason)
    except Exception as reason:
        # A check that breaks down is no check that passed, and must not end the others.
        verdict, why = "failed", str(reason) or type(reason).__name__
    return verdict, why, time.monotonic() - begun


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(CHECKS))
    if unknown:
        print(f"error: unknown check {', '.join(unknown)}; known are {', '.join(CHECKS)}")
        return 2
    chosen = {name: CHECKS[name] for name in CHECKS if not names or name in names}
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    results: dict[str, tuple[str, str, float]] = {}
    try:
        lab.choose_engine()
        was_up = lab.lab_is_up()
        steps = lab.Steps(6)
        lab.prepare(steps, list(lab.SUITES))
        if Path(sys.executable).parent != lab.VENV / "bin":
            # From here on in the lab's own environment, which has all the tools.
            os.execv(lab.VENV / "bin" / "python", [str(lab.VENV / "bin" / "python"), __file__, *names])
        steps("Network and package cache")
        lab.playbook("tests/lab/create.yml", "-i", "localhost,", quiet=True)
    except lab.LabError as error:
        print(f"\nerror: {error}")
        return 1
    started = time.monotonic()
    numbers = {name: number for number, name in enumerate(chosen, 1)}

    def run(names: Iterable[str]) -> None:
        for name in names:
            print(f"[{numbers[name]}/{len(chosen)}] {name} … ({int(time.monotonic() - started)} s so far)", flush=True)
            results[name] = judged(name, chosen[name])
            if results[name][0] == "failed":
                tail = (OUTPUT / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()[-60:]
                print("\n".join(f"    {line}" for line in tail), flush=True)

    # A run on one host computes now here, now there: two checks, whose hosts are not the same, fill two cores.
    scenarios = [name for name in chosen if name.startswith("molecule-")]
    beside = threading.Thread(target=run, args=([name for name in chosen if name not in scenarios],))
    beside.start()
    run(scenarios)
    beside.join()
    results = {name: results[name] for name in chosen}
    if not was_up and not os.environ.get("KEEP_LAB"):
        subprocess.run(
            [lab.VENV / "bin" / "ansible-playbook", "-i", "inventories/lab", "tests/lab/destroy.yml"],
            cwd=ROOT,
            env=lab.ansible_environment(),
            stdout=subprocess.DEVNULL,
            check=False,
        )
    print("\nSummary")
    for name, (verdict, why, seconds) in results.items():
        print(f"  {verdict:<8} {name:<24} {seconds:6.0f} s  {why}")
    counts = {
        verdict: sum(1 for result in results.values() if result[0] == verdict) for verdict in ("passed", "failed", "skipped")
    }
    print(f"  {time.monotonic() - started:.0f} s in all; whole output in tests/output/\n")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
