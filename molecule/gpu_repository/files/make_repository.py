#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Build a signed apt repository with the names and layout of NVIDIA's, and broken ones beside it.

    make_repository.py ROOT FOLDER

The packages are real to dpkg and hold little: what the roles look at. ROOT/fingerprint names the key that signs.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TOOLKIT = """#!/bin/sh
echo "nvcc: NVIDIA (R) Cuda compiler driver"
echo "Cuda compilation tools, release {release}, V{version}"
"""
ALTERNATIVE = """#!/bin/sh
set -e
# What a test asks for: a moment in which a run can be killed.
test ! -e /run/slow-postinst || {{ touch /run/in-postinst; sleep 60; }}
update-alternatives --install /usr/local/cuda cuda /usr/local/cuda-{release} {priority}
"""
FORGET = """#!/bin/sh
set -e
test "$1" != remove || update-alternatives --remove cuda /usr/local/cuda-{release}
"""
DAEMON = "[Unit]\nDescription=NVIDIA {name}\n[Service]\nExecStart=/bin/sleep infinity\n"


def run(*words: str | Path, **options: object) -> None:
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL, **options)  # type: ignore[call-overload]


class Repository:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path.with_name(path.name + ".work")
        shutil.rmtree(self.work, ignore_errors=True)
        path.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        name: str,
        version: str,
        files: dict[str, str] | None = None,
        depends: str = "",
        size_kib: int = 10,
        scripts: dict[str, str] | None = None,
    ) -> None:
        """One package; `size_kib` is what it says of itself."""
        tree = self.work / f"{name}_{version}"
        for path, content in (files or {f"usr/share/doc/{name}/readme": name}).items():
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8")
            target.chmod(0o755 if "/bin/" in path else 0o644)
        control = tree / "DEBIAN"
        control.mkdir(parents=True)
        fields = {
            "Package": name,
            "Version": version,
            "Architecture": "amd64",
            "Maintainer": "test <test@example.internal>",
            "Installed-Size": str(size_kib),
            "Depends": depends,
            "Description": f"{name}, made for a test",
        }
        (control / "control").write_text("".join(f"{k}: {v}\n" for k, v in fields.items() if v), encoding="utf-8")
        for script, text in (scripts or {}).items():
            (control / script).write_text(text, encoding="utf-8")
            (control / script).chmod(0o755)
        run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, self.path / f"{name}_{version}_amd64.deb")

    def index(self, label: str, sign_with: str | None) -> None:
        packages = ""
        for deb in sorted(self.path.glob("*.deb")):
            content = deb.read_bytes()
            control = subprocess.run(["dpkg-deb", "--field", str(deb)], check=True, capture_output=True, text=True).stdout
            digest = hashlib.sha256(content).hexdigest()
            packages += f"{control.strip()}\nFilename: ./{deb.name}\nSize: {len(content)}\nSHA256: {digest}\n\n"
        (self.path / "Packages").write_text(packages, encoding="utf-8")
        (self.path / "Packages.gz").write_bytes(gzip.compress(packages.encode(), mtime=0))
        lines = [f"Origin: NVIDIA\nLabel: {label}\nArchitecture: amd64\nDate: Tue, 24 Nov 2026 00:00:00 UTC\nSHA256:\n"]
        for name in ("Packages", "Packages.gz"):
            content = (self.path / name).read_bytes()
            lines.append(f" {hashlib.sha256(content).hexdigest()} {len(content)} {name}\n")
        (self.path / "Release").write_text("".join(lines), encoding="utf-8")
        (self.path / "InRelease").unlink(missing_ok=True)
        if sign_with:
            run(
                "gpg",
                "--batch",
                "--yes",
                "--local-user",
                sign_with,
                "--clearsign",
                "--output",
                self.path / "InRelease",
                self.path / "Release",
            )


def make_key(name: str) -> str:
    """A new signing key; its fingerprint."""
    run(
        "gpg",
        "--batch",
        "--passphrase",
        "",
        "--quick-generate-key",
        f"{name} <{name}@example.internal>",
        "ed25519",
        "sign",
        "never",
    )
    listing = subprocess.run(["gpg", "--with-colons", "--list-keys", name], check=True, capture_output=True, text=True).stdout
    return next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))


def export(fingerprint: str, path: Path) -> None:
    done = subprocess.run(["gpg", "--armor", "--export", fingerprint], check=True, capture_output=True)
    path.write_bytes(done.stdout)


def toolkit(repository: Repository, release: str, version: str, priority: int) -> None:
    dashed = release.replace(".", "-")
    home = f"usr/local/cuda-{release}"
    repository.add(
        f"cuda-nvcc-{dashed}",
        f"{version}-1",
        {f"{home}/bin/nvcc": TOOLKIT.format(release=release, version=version), f"{home}/lib64/readme": release},
    )
    repository.add(
        f"cuda-toolkit-{dashed}",
        f"{version}-1",
        depends=f"cuda-nvcc-{dashed} (>= {version})",
        scripts={
            "postinst": ALTERNATIVE.format(release=release, priority=priority),
            "prerm": FORGET.format(release=release),
        },
    )


def driver(repository: Repository, version: str) -> None:
    # As theirs: each version wants its own libraries, and other branches are on offer under the same names.
    repository.add("libcuda1", f"{version}-1")
    repository.add("nvidia-driver-cuda", f"{version}-1", depends=f"libcuda1 (= {version}-1)")
    # Where the test's modprobe reads which module this version would load.
    repository.add("nvidia-kernel-open-dkms", f"{version}-1", {"usr/lib/test-driver/version": f"{version}\n"})
    unit = {"usr/lib/systemd/system/nvidia-persistenced.service": DAEMON.format(name="persistenced")}
    repository.add("nvidia-persistenced", f"{version}-1", unit)


def main(words: Sequence[str]) -> None:
    root, folder = Path(words[0]), words[1]
    home = root / "gnupg"
    home.mkdir(mode=0o700, parents=True)
    os.environ["GNUPGHOME"] = str(home)
    good, other = make_key("good"), make_key("other")
    (root / "fingerprint").write_text(good, encoding="ascii")

    place = root / "cuda" / folder / "x86_64"
    repository = Repository(place)
    toolkit(repository, "12.4", "12.4.1", 124)
    toolkit(repository, "12.9", "12.9.1", 129)
    for version in ("575.51.03", "575.57.08", "580.65.06"):
        driver(repository, version)
    # The running kernel's headers, which no repository has for the kernel of a container.
    release = os.uname().release
    repository.add("linux-headers-amd64", "9999-1")
    repository.add(f"linux-headers-{release}", "9999-1", {f"lib/modules/{release}/build/Makefile": "# for a test\n"})
    repository.add("libnccl2", "2.30.3-1+cuda12.9")
    repository.add("libnccl-dev", "2.30.3-1+cuda12.9")
    repository.add("too-large", "1.0-1", size_kib=4_000_000_000)
    # It says less of itself than it takes.
    repository.add("fills-the-disk", "1.0-1", {"srv/small/blob": "x" * 3_000_000}, size_kib=1)
    repository.index("NVIDIA CUDA", good)
    for name in ("3bf863cc.pub", "8793F200.pub"):
        export(good, place / name)

    container = Repository(root / "toolkit" / "stable" / "deb" / "amd64")
    container.add(
        "nvidia-container-toolkit",
        "1.20.1-1",
        {"usr/bin/nvidia-ctk": "#!/bin/sh\necho NVIDIA Container Toolkit CLI version 1.20.1\n"},
    )
    for name in ("nvidia-container-toolkit-base", "libnvidia-container-tools", "libnvidia-container1"):
        container.add(name, "1.20.1-1")
    container.index("NVIDIA container toolkit", good)
    export(good, root / "toolkit" / "gpgkey")

    # The same packages, signed with another key, not at all, and altered after signing.
    for name, key in (("wrong", other), ("unsigned", None), ("altered", good)):
        broken = root / name / folder / "x86_64"
        shutil.copytree(place, broken)
        Repository(broken).index("NVIDIA CUDA", key)
    changed = root / "altered" / folder / "x86_64" / "InRelease"
    changed.write_text(changed.read_text(encoding="utf-8").replace("Label: NVIDIA CUDA", "Label: NVIDIA CUDB"), encoding="utf-8")
    strange = root / "strange" / folder / "x86_64"
    shutil.copytree(place, strange)
    Repository(strange).index("NVIDIA CUDA", other)
    for path in strange.glob("*.pub"):
        export(other, path)


if __name__ == "__main__":
    main(sys.argv[1:])
