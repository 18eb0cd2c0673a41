# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Model releases on one host: fetched, verified file by file, activated by one rename, the last few kept.

On disk, below the store's root::

    <model>/releases/<release>/…        the files of a release, never changed once they are there
    <model>/releases/<release>.json     what was verified: source, manifest digest, files with size, SHA-256 and time
    <model>/current -> releases/<name>  the active release; replaced by rename, so that it is never missing
    <model>/.staging-<release>/         what is being fetched; a cut-off run goes on from there
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import pickletools
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ansible.module_utils.urls import open_url

BLOCK_BYTES = 1 << 20
# The safetensors library itself refuses a larger header.
SAFETENSORS_HEADER_MAX_BYTES = 100_000_000
MANIFEST_MAX_BYTES = 16 << 20
ATTEMPTS = 4
TIMEOUT_SECONDS = 60
REDIRECTS = 10
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MANIFEST_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
# What a release may hold unless told otherwise: nothing that runs code when it is loaded.
SAFE_SUFFIXES = {
    ".gguf",
    ".gif",
    ".jinja",
    ".jpeg",
    ".jpg",
    ".json",
    ".md",
    ".model",
    ".pdf",
    ".png",
    ".safetensors",
    ".svg",
    ".tiktoken",
    ".txt",
    ".yaml",
    ".yml",
}
SAFE_NAMES = re.compile(r"(licen[cs]e|notice|readme|copying|copyright|use_policy|acceptable_use_policy)([_-][a-z0-9_-]+)?", re.I)
SAFE_OTHERS = {".gitattributes", "SHA256SUMS"}
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"}
ARCHIVES = [
    (0, b"PK\x03\x04", "zip archive"),
    (0, b"PK\x05\x06", "zip archive"),
    (0, b"PK\x07\x08", "zip archive"),
    (0, b"\x1f\x8b", "gzip archive"),
    (257, b"ustar", "tar archive"),
]
# The opcodes that call what the pickle names.
PICKLE_CALLS = {"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
# The host's own disk refuses; asking the server again does not help.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class ModelStoreError(Exception):
    """A release that is refused or cannot be had: action, object, cause, found and wanted."""


class Wanted(NamedTuple):
    """One file of a release. `size` in bytes where the source tells it; `git_sha1` where it gives no SHA-256."""

    path: str
    sha256: str | None
    size: int | None
    git_sha1: str | None = None


@contextmanager
def told(doing: str) -> Iterator[None]:
    """What the system or a server refuses becomes a sentence of ours."""
    try:
        yield
    except (OSError, HTTPException) as error:
        raise ModelStoreError(f"{doing} failed: {str(error) or type(error).__name__}.") from error


def shown(url: str) -> str:
    """An address without the name and password that it may hold."""
    return re.sub(r"//[^@/]*@", "//", url)


def gib(count: int) -> str:
    return f"{count} bytes ({count / 2**30:.2f} GiB)"


def checked_path(path: str, what: str) -> str:
    """A relative path that stays inside the release, or a refusal."""
    pure = PurePosixPath(path)
    inside = not pure.is_absolute() and ".." not in pure.parts and str(pure) == path
    if not path or not path.isprintable() or "\\" in path or not inside:
        raise ModelStoreError(
            f"{what} names the path {path!r}, which leaves the release or is not in its plain form: relative paths with "
            "forward slashes are wanted."
        )
    return path


def checked_files(files: list[Wanted], what: str) -> list[Wanted]:
    """Files that can lie beside each other, or a refusal."""
    paths: set[str] = set()
    for file in files:
        path = checked_path(file.path, what).casefold()
        if path in paths:
            raise ModelStoreError(f"{what} names {file.path!r} twice (apart from upper and lower case).")
        paths.add(path)
    for file in files:
        for parent in PurePosixPath(file.path.casefold()).parents:
            if str(parent) in paths:
                raise ModelStoreError(f"{what} names {file.path!r} and also {str(parent)!r} as a file: both cannot be.")
    if not files:
        raise ModelStoreError(f"{what} names no file.")
    return files


def parse_manifest(text: str, what: str) -> list[Wanted]:
    """The files of a manifest in the form of ``sha256sum``."""
    files = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        found = MANIFEST_LINE.fullmatch(line)
        if not found:
            raise ModelStoreError(f"Line {number} of {what} is {line[:80]!r}; 64 hex digits, two spaces and a path are wanted.")
        files.append(Wanted(found[2].removeprefix("./"), found[1].lower(), None))
    return checked_files(files, what)


def file_digest(path: Path, algorithm: str = "sha256", prefix: bytes = b"") -> str:
    digest = hashlib.new(algorithm, prefix)
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(BLOCK_BYTES), b""):
            digest.update(block)
    return digest.hexdigest()


def refuse_name(path: str, allow: bool) -> None:
    """Refuse a file whose name is none of those that a release needs."""
    pure = PurePosixPath(path)
    suffix = pure.suffix.lower()
    if allow or suffix in SAFE_SUFFIXES or pure.name in SAFE_OTHERS or SAFE_NAMES.fullmatch(pure.name):
        return
    if suffix in PICKLE_SUFFIXES:
        raise ModelStoreError(
            f"{path} is a pickle or archive of Python objects, which runs code when it is loaded. Take a release with "
            "safetensors or GGUF weights, or set allow_pickle: true for this model if you trust who made it."
        )
    raise ModelStoreError(
        f"{path} is of no kind that a release may hold ({', '.join(sorted(SAFE_SUFFIXES))}, licences and notices). "
        "Leave it out of the release, or set allow_pickle: true for this model if you trust who made it."
    )


def is_pickle(path: Path) -> bool:
    """Whether the content can be loaded as a pickle of any protocol: its opcodes make sense up to a call or the end.

    The protocols 0 and 1 have no mark at the beginning, and a text may begin with a few opcodes by chance.
    """
    depth = 0
    marks: list[int] = []
    with path.open("rb") as stream:
        if stream.read(1) == b"\x80":  # protocol 2 and later say so; no text begins like that
            return True
        stream.seek(0)
        try:
            for count, (opcode, argument, _position) in enumerate(pickletools.genops(stream)):
                if opcode.name in ("GLOBAL", "INST") and len(str(argument).split()) != 2:
                    return False  # two lines of a text, not the names of a module and of something in it
                taken = opcode.stack_before
                if pickletools.markobject in taken:
                    depth, taken = marks.pop(), taken[: taken.index(pickletools.markobject)]
                depth -= len(taken)
                if depth < (marks[-1] if marks else 0):
                    return False
                if opcode.name == "MARK":
                    marks.append(depth)
                else:
                    depth += len(opcode.stack_after)
                if opcode.name in PICKLE_CALLS:
                    return True
                if opcode.name == "STOP":
                    return count >= 4 or not stream.read(1)
        except (ValueError, IndexError, OverflowError, MemoryError):
            return False
    return False


def inspect(path: Path, name: str, allow_pickle: bool) -> None:
    """Refuse files whose content is not what their name says."""
    suffix = PurePosixPath(name).suffix.lower()
    with path.open("rb") as stream:
        head = stream.read(512)
        if suffix == ".safetensors":
            stream.seek(8)
            inspect_safetensors(stream, head[:8], name, path.stat().st_size)
            return
    if suffix == ".gguf":
        if head[:4] not in (b"GGUF", b"FUGG"):
            raise ModelStoreError(f"{name} begins with {head[:4]!r}, a GGUF file with b'GGUF': it is not what its name says.")
    elif not allow_pickle:
        kind = next((kind for begin, mark, kind in ARCHIVES if head[begin:].startswith(mark)), "")
        if kind or is_pickle(path):
            raise ModelStoreError(
                f"{name} holds a {kind or 'pickle'}, whatever its name says; "
                "set allow_pickle: true for this model if you trust who made it."
            )


def inspect_safetensors(stream: Any, head: bytes, name: str, size: int) -> None:
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > min(SAFETENSORS_HEADER_MAX_BYTES, size - 8):
        raise ModelStoreError(
            f"{name} says that its header has {length} bytes, in a file of {size} bytes: it is truncated, or no safetensors file."
        )
    try:
        header = json.loads(stream.read(length))
        end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelStoreError(f"The header of {name} cannot be read ({error}): it is no safetensors file.") from error
    if 8 + length + end != size:
        raise ModelStoreError(f"{name} has {size} bytes, its header speaks of {8 + length + end}: it is truncated or padded.")


class Source:
    """Where a release comes from: tells the files wanted, and puts one of them into place."""

    kind = ""

    def __init__(self, model: dict[str, Any], settings: dict[str, Any]) -> None:
        self.model = model
        self.settings = settings
        self.given: dict[str, Any] = model["source"]
        self.manifest: str = model.get("manifest") or "SHA256SUMS"
        self.extra: list[str] = []

    def describe(self) -> str:
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Tells one source from another without keeping an address that may hold a password."""
        return hashlib.sha256(json.dumps([self.given, self.manifest], sort_keys=True).encode()).hexdigest()

    def wanted(self) -> tuple[list[Wanted], str]:
        """The files, and the SHA-256 of the list they come from."""
        text = self.read_manifest()
        digest = hashlib.sha256(text).hexdigest()
        pin = self.model.get("manifest_sha256")
        if pin and pin.lower() != digest:
            raise ModelStoreError(f"The manifest of {self.describe()} has the SHA-256 {digest}, manifest_sha256 wants {pin}.")
        try:
            lines = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelStoreError(f"The manifest of {self.describe()} is not text.") from error
        files = parse_manifest(lines, f"the manifest {self.manifest} of {self.describe()}")
        return [file._replace(size=self.size(file.path)) for file in files], digest

    def read_manifest(self) -> bytes:
        raise NotImplementedError

    def size(self, path: str) -> int | None:
        return None

    def fetch(self, file: Wanted, target: Path) -> None:
        raise NotImplementedError


class DirectorySource(Source):
    """A directory of the host: an NFS mount, a USB disk."""

    kind = "directory"

    @property
    def root(self) -> Path:
        return Path(self.given["path"])

    def describe(self) -> str:
        return str(self.root)

    def _inside(self, path: str) -> Path:
        place = self.root / path
        real = Path(os.path.realpath(place))
        if not real.is_relative_to(os.path.realpath(self.root)):
            raise ModelStoreError(f"{place} is a link to {real}, outside of the release {self.root}.")
        return place

    def read_manifest(self) -> bytes:
        if not self.root.is_dir():
            raise ModelStoreError(f"The model {self.model['name']} is not there: no directory {self.root} on this host.")
        path = self._inside(self.manifest)
        if not path.is_file():
            raise ModelStoreError(
                f"{self.root} has no manifest {self.manifest}. Make one where the release was made and trusted: "
                f"`find . -type f ! -name {self.manifest} | xargs sha256sum > {self.manifest}`."
            )
        return path.read_bytes()

    def wanted(self) -> tuple[list[Wanted], str]:
        files, digest = super().wanted()
        named = {file.path for file in files} | {self.manifest}
        there = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        self.extra = sorted(set(there) - named)
        return files, digest

    def size(self, path: str) -> int | None:
        place = self._inside(path)
        if not place.is_file():
            raise ModelStoreError(f"{self.root} lacks {path}, which its manifest names.")
        return place.stat().st_size

    def fetch(self, file: Wanted, target: Path) -> None:
        with self._inside(file.path).open("rb") as reader, target.open("wb") as writer:
            shutil.copyfileobj(reader, writer, BLOCK_BYTES)


class HttpSource(Source):
    """A mirror that serves the release's folder."""

    kind = "http"

    @property
    def base(self) -> str:
        return str(self.given["url"]).rstrip("/")

    def describe(self) -> str:
        return shown(self.base)

    def address(self, path: str) -> str:
        return f"{self.base}/{urllib.parse.quote(path)}"

    def headers(self) -> dict[str, str]:
        return {}

    def origin(self, url: str) -> tuple[str, str | None, int | None]:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)

    def ask(self, url: str, headers: dict[str, str], method: str) -> Any:
        """One request, not redirected; the token and the password of the address go to the configured server alone."""
        own = self.origin(url) == self.origin(self.base)
        if own:
            url = urllib.parse.urlsplit(url)._replace(netloc=urllib.parse.urlsplit(self.base).netloc).geturl()
        return open_url(
            url,
            method=method,
            headers={**(self.headers() if own else {}), **headers},
            unredirected_headers=list(self.headers()),
            follow_redirects="none",
            timeout=TIMEOUT_SECONDS,
            ca_path=self.settings.get("ca_path"),
        )

    def open(self, url: str, headers: dict[str, str] | None = None, method: str = "GET") -> Any:
        """Ask, and follow redirects here: urllib would pass the token on to whatever server it is sent to."""
        places = [url]
        try:
            while len(places) <= REDIRECTS:
                try:
                    return self.ask(places[-1], headers or {}, method)
                except urllib.error.HTTPError as error:
                    if error.code not in (301, 302, 303, 307, 308) or not error.headers.get("Location"):
                        raise
                    places.append(urllib.parse.urljoin(places[-1], error.geturl()))
                    error.close()
        except urllib.error.HTTPError as error:
            if error.code == 416:
                raise
            raise ModelStoreError(f"{shown(url)} answered {error.code} {error.reason}.") from error
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            hint = " Set onprem_llm_ca_bundle to the CA of the mirror." if isinstance(reason, ssl.SSLError) else ""
            raise ModelStoreError(f"{shown(url)} cannot be read: {reason}.{hint}") from error
        raise ModelStoreError(f"{shown(url)} cannot be read: it redirects more than {REDIRECTS - 1} times.")

    @staticmethod
    def length(answer: Any) -> int | None:
        """The number of bytes that the server announced."""
        given = answer.headers.get("Content-Length") or ""
        return int(given) if given.isdigit() else None

    def read(self, url: str) -> tuple[bytes, Any]:
        """A manifest or list, whole or not at all, and the answer's headers."""
        with self.open(url) as answer:
            content = answer.read(MANIFEST_MAX_BYTES + 1)
            expected = self.length(answer)
        if len(content) > MANIFEST_MAX_BYTES:
            raise ModelStoreError(f"{shown(url)} has more than {MANIFEST_MAX_BYTES} bytes: it is no list of a release's files.")
        if expected is not None and len(content) < expected:
            raise ModelStoreError(f"{shown(url)} ended after {len(content)} of {expected} bytes.")
        return content, answer.headers

    def read_manifest(self) -> bytes:
        if self.base.startswith("http://") and not self.model.get("manifest_sha256"):
            raise ModelStoreError(
                f"{self.describe()} is plain http, so anybody on the way can change manifest and files: use https, or set "
                "manifest_sha256 to the SHA-256 of the manifest."
            )
        return self.read(self.address(self.manifest))[0]

    def size(self, path: str) -> int | None:
        with self.open(self.address(path), method="HEAD") as answer:
            return self.length(answer)

    def fetch(self, file: Wanted, target: Path) -> None:
        """Go on from what is there; a connection that is cut is taken up again a few times."""
        why = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(2**attempt / 4)
            have = target.stat().st_size if target.exists() else 0
            if file.size is not None and have >= file.size > 0:
                return
            try:
                with self.open(self.address(file.path), {"Range": f"bytes={have}-"} if have else None) as answer:
                    mode = "ab" if have and answer.status == 206 else "wb"
                    with target.open(mode) as writer:
                        shutil.copyfileobj(answer, writer, BLOCK_BYTES)
                    expected = self.length(answer)
                    got = target.stat().st_size - (have if mode == "ab" else 0)
                    if expected is None or got == expected:
                        return
                    why = f"the connection ended after {got} of {expected} bytes"
            except urllib.error.HTTPError:
                return  # 416: there is nothing after what is here; the digest decides
            except (OSError, HTTPException) as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise
                why = str(error) or type(error).__name__
        raise ModelStoreError(
            f"{self.describe()}/{file.path} could not be read to its end in {ATTEMPTS} tries: {why}. "
            "What came is kept; run again."
        )


class HuggingFaceSource(HttpSource):
    """A hub (or a mirror with its interface) at one commit."""

    kind = "huggingface"

    @property
    def base(self) -> str:
        endpoint = self.settings.get("huggingface_endpoint")
        if not endpoint:
            raise ModelStoreError(
                f"The model {self.model['name']} comes from a Hugging Face hub, but model_store_huggingface_endpoint is empty: "
                "set it to the hub's address or to your mirror's."
            )
        return str(endpoint).rstrip("/")

    def describe(self) -> str:
        return f"{self.given['repo']} at {self.given['revision'][:12]}"

    def headers(self) -> dict[str, str]:
        token = self.settings.get("huggingface_token")
        return {"Authorization": f"Bearer {token}"} if token else {}

    def address(self, path: str) -> str:
        return f"{self.base}/{self.given['repo']}/resolve/{self.given['revision']}/{urllib.parse.quote(path)}"

    def wanted(self) -> tuple[list[Wanted], str]:
        revision = str(self.given["revision"])
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise ModelStoreError(
                f"The model {self.model['name']} names the revision {revision!r}: a branch or tag can move. "
                "Give the commit, 40 hex digits."
            )
        url: str | None = f"{self.base}/api/models/{self.given['repo']}/tree/{revision}?recursive=true"
        files = []
        while url:
            text, headers = self.read(url)
            following = re.search(r'<([^>]+)>;\s*rel="next"', headers.get("Link") or "")
            url = following[1] if following else None
            try:
                for entry in json.loads(text):
                    if entry["type"] == "file":
                        lfs = entry.get("lfs")
                        sha256 = lfs["oid"].removeprefix("sha256:") if lfs else None
                        size = int((lfs or entry)["size"])
                        files.append(Wanted(str(entry["path"]), sha256, size, None if lfs else entry["oid"]))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelStoreError(f"{shown(self.base)} gave no list of files for {self.describe()}: {error!r}.") from error
        digest = hashlib.sha256(json.dumps(sorted(files, key=lambda file: file.path)).encode()).hexdigest()
        pin = self.model.get("manifest_sha256")
        if pin and pin.lower() != digest:
            raise ModelStoreError(
                f"The list of files of {self.describe()} has the SHA-256 {digest}, manifest_sha256 wants {pin}."
            )
        needed = [file for file in files if not file.path.startswith(".git")]
        return checked_files(needed, f"The hub's list of {self.describe()}"), digest


SOURCES = {source.kind: source for source in (DirectorySource, HttpSource, HuggingFaceSource)}


def read_record(path: Path) -> dict[str, Any] | None:
    """What was verified when a release came; None where the record is not there, torn, or of another form."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = all(isinstance(record[key], str) for key in ("source_sha256", "manifest_sha256")) and record["bytes"] >= 0
        sound = all(isinstance(file["size"], int) and isinstance(file["sha256"], str) for file in record["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole and sound and record["files"] else None


def difference(place: Path, name: str, file: dict[str, Any]) -> str:
    """How a file of a release differs from its record, as far as size and time tell; '' where it does not."""
    try:
        status = (place / name).stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    if status.st_size != file["size"]:
        return f"{name} has {status.st_size} bytes, {file['size']} were recorded"
    if status.st_mtime_ns != file.get("mtime_ns"):
        return f"{name} changed since it was verified"
    return ""


def damaged(root: str | Path, model_name: str, release: str) -> str:
    """Why a release on this host is not as it was verified, or '' if it is: one short reason.

    Only sizes and times are looked at, so this is cheap and sees no file that was altered with its time put back;
    `model_release` with `verify: full` reads the files. Whether the release is the active one is not looked at.
    """
    releases = Path(root) / model_name / "releases"
    record = read_record(releases / f"{release}.json")
    if record is None:
        return "no record of its verification"
    reasons = (difference(releases / release, name, file) for name, file in record["files"].items())
    return next((reason for reason in reasons if reason), "")


class Plan(NamedTuple):
    """What brings one model to its release."""

    record: dict[str, Any] | None
    active: str | None
    files: list[Wanted]
    digest: str
    fetch: bool
    gone: list[str]
    commands: list[str]


class ModelStore:
    """All releases of one model below the store's root."""

    def __init__(self, model: dict[str, Any], settings: dict[str, Any]) -> None:
        for field in ("name", "release"):
            if not NAME.fullmatch(str(model[field])):
                raise ModelStoreError(f"The {field} {model[field]!r} is not made of letters, digits, dot, - and _.")
        self.model = model
        self.settings = settings
        self.release = str(model["release"])
        self.home = Path(settings["root"]) / model["name"]
        self.releases = self.home / "releases"
        self.place = self.releases / self.release
        self.record = self.releases / f"{self.release}.json"
        self.current = self.home / "current"
        self.staging = self.home / f".staging-{self.release}"
        self.gid: int | None = settings.get("gid")
        self.source = SOURCES[model["source"]["type"]](model, settings)

    # --- looking ---

    def active(self) -> str | None:
        try:
            return Path(os.readlink(self.current)).name
        except OSError:
            return None

    def recorded(self) -> dict[str, Any] | None:
        """What was verified when the release came, if its files are still those (by size and time, or by digest)."""
        record = read_record(self.record)
        full = self.settings.get("verify") == "full"
        try:
            for name, file in record["files"].items() if record else ():
                path = self.place / name
                if full or difference(self.place, name, file):
                    if not self._is(Wanted(name, file["sha256"], file["size"]), path):
                        return None
                    file["mtime_ns"] = path.stat().st_mtime_ns
        except OSError:
            return None
        return record

    def others(self) -> list[str]:
        """Other releases of this model, newest first."""
        records = [path for path in self.releases.glob("*.json") if path.stem != self.release]
        return [path.stem for path in sorted(records, key=lambda path: path.stat().st_mtime_ns, reverse=True)]

    def expendable(self) -> list[str]:
        """What goes when this release is active: all but the last `keep`, this one among them."""
        return self.others()[max(int(self.model.get("keep") or 3), 1) - 1 :]

    # --- doing ---

    def converge(self, apply: bool) -> dict[str, Any]:
        return converge_all([self], apply)[0]

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Every refusal ends with what stays active."""
        try:
            yield
        except ModelStoreError as error:
            active = self.active()
            stays = f"The release {active} of {self.model['name']} stays" if active else f"No release of {self.model['name']} is"
            raise ModelStoreError(f"{error} {stays} active.") from error

    def plan(self) -> Plan:
        """What is to be done; whoever carries it out holds the lock since before."""
        with self._refusing(), told(f"Reading what {self.source.describe()} and {self.home} hold"):
            record = self.recorded()
            active = self.active()
            files, digest = ([], record["manifest_sha256"]) if record and self._unchanged(record) else self.source.wanted()
            fetch = record is None or record["manifest_sha256"] != digest
            if record is not None and fetch:
                raise ModelStoreError(
                    f"The release {self.release} of {self.model['name']} is here with the manifest "
                    f"{record['manifest_sha256'][:12]}…, the source now has {digest[:12]}…: releases do not change. "
                    "Give the new files a release name of their own."
                )
            commands = []
            if fetch:
                for file in files:
                    refuse_name(file.path, bool(self.model.get("allow_pickle")))
                commands.append(f"fetch {len(files)} files from {self.source.describe()} to {self.place}")
            if active != self.release:
                commands.append(f"ln -sfn releases/{self.release} {self.current}")
            gone = self.expendable() if fetch or active != self.release else []
            commands += [f"rm -r {self.releases / name}" for name in gone]
            return Plan(record, active, files, digest, fetch, gone, commands)

    def carry_out(self, plan: Plan) -> None:
        with self._refusing():
            if plan.fetch:
                self._fetch(plan.files, plan.digest)
            elif plan.record and plan.record != read_record(self.record):
                with told(f"Noting the times of the files in {self.record}"):
                    self._write_record(plan.record, self.record.with_suffix(".new"), self.record)
            if plan.commands:
                with told(f"Activating the release {self.release} of {self.model['name']}"):
                    self._activate()
            for name in plan.gone:
                with told(f"Removing the release {name} of {self.model['name']}"):
                    with suppress(FileNotFoundError):
                        shutil.rmtree(self.releases / name)
                    (self.releases / f"{name}.json").unlink(missing_ok=True)

    def result(self, plan: Plan) -> dict[str, Any]:
        recorded = plan.record["bytes"] if plan.record else 0
        return {
            "name": self.model["name"],
            "release": self.release,
            "path": str(self.place),
            "changed": bool(plan.commands),
            "fetched": plan.fetch,
            "before": plan.active,
            "after": self.release,
            "bytes": sum(file.size or 0 for file in plan.files) if plan.fetch else recorded,
            "removed": plan.gone,
            "not_in_manifest": self.source.extra,
            "commands": plan.commands,
        }

    def _unchanged(self, record: dict[str, Any]) -> bool:
        """Whether the inputs are those of the recorded release, so that the source need not be asked again."""
        pin = self.model.get("manifest_sha256")
        return record["source_sha256"] == self.source.fingerprint() and (not pin or pin.lower() == record["manifest_sha256"])

    def volume(self) -> Path:
        """A directory of the file system that the model's releases are on."""
        place = self.home
        while not place.exists():
            place = place.parent
        return place

    def to_come(self, files: list[Wanted]) -> int:
        """The bytes still to be fetched: an earlier run may have left some."""
        count = 0
        for file in files:
            staged = self.staging / file.path
            count += max((file.size or 0) - (staged.stat().st_size if staged.is_file() else 0), 0)
        return count

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Alone on this model until done."""
        with ExitStack() as stack:
            with told(f"Taking the lock of {self.model['name']} in {self.home}"):
                for path in (self.home, self.releases):
                    if not path.is_dir():
                        self._directory(path)
                stream = stack.enter_context((self.home / ".lock").open("w"))
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ModelStoreError(
                        f"Another run is fetching {self.model['name']} on this host: wait until it is done."
                    ) from None
            yield

    def _directory(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._own(path, 0o750)

    def _own(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        if self.gid is not None:
            os.chown(path, 0, self.gid)

    def _fetch(self, files: list[Wanted], digest: str) -> None:
        what = f"the release {self.release} of {self.model['name']}"
        with told(f"Preparing {self.staging} for {what}"):
            for path in (self.home, self.releases, self.staging):
                self._directory(path)
            self._clear_staging(files)
        record: dict[str, Any] = {
            "model": self.model["name"],
            "release": self.release,
            "source": self.source.describe(),
            "source_sha256": self.source.fingerprint(),
            "manifest_sha256": digest,
            "fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "files": {},
        }
        for file in files:
            with told(f"Fetching {file.path} of {self.source.describe()} to {self.staging}"):
                record["files"][file.path] = self._fetch_file(file)
        record["bytes"] = sum(file["size"] for file in record["files"].values())
        with told(f"Putting {what}, which came from {self.source.describe()}, to {self.place}"):
            self._put(record)

    def _clear_staging(self, files: list[Wanted]) -> None:
        """Take away what an earlier run left for another list of files."""
        named = {file.path for file in files}
        folders = {str(parent) for file in files for parent in PurePosixPath(file.path).parents}
        for path in sorted(self.staging.rglob("*"), reverse=True):
            relative = path.relative_to(self.staging).as_posix()
            if not path.is_dir():
                if relative not in named:
                    path.unlink()
            elif relative not in folders:
                path.rmdir()

    def _fetch_file(self, file: Wanted) -> dict[str, Any]:
        """Fetch and verify one file; what is recorded of it."""
        target = self.staging / file.path
        for parent in reversed(target.relative_to(self.staging).parents[:-1]):
            self._directory(self.staging / parent)
        if not (target.is_file() and self._is(file, target)):
            self.source.fetch(file, target)
            self._verify(file, target)
        inspect(target, file.path, bool(self.model.get("allow_pickle")))
        self._own(target, 0o640)
        status = target.stat()
        return {"size": status.st_size, "sha256": file.sha256 or file_digest(target), "mtime_ns": status.st_mtime_ns}

    def _put(self, record: dict[str, Any]) -> None:
        """Release and record appear together; a failure puts everything back to where it was."""
        new, old = self.record.with_suffix(".new"), self.home / f".old-{self.release}"
        if old.exists():
            shutil.rmtree(old)
        moved: list[tuple[Path, Path]] = []
        try:
            self._write_record(record, new)
            # A release that is there already is not what was recorded: it cannot be in good use.
            for here, there in ((self.place, old), (self.staging, self.place), (new, self.record)):
                if here.exists():
                    os.replace(here, there)
                    moved.append((here, there))
        except OSError:
            for here, there in reversed(moved):
                os.replace(there, here)
            new.unlink(missing_ok=True)
            raise
        shutil.rmtree(old, ignore_errors=True)

    def _write_record(self, record: dict[str, Any], path: Path, finally_to: Path | None = None) -> None:
        path.write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
        self._own(path, 0o640)
        if finally_to:
            os.replace(path, finally_to)

    @staticmethod
    def _is(file: Wanted, path: Path) -> bool:
        size = path.stat().st_size
        if file.size is not None and size != file.size:
            return False
        if file.sha256:
            return file_digest(path) == file.sha256
        return file_digest(path, "sha1", f"blob {size}\0".encode()) == file.git_sha1

    def _verify(self, file: Wanted, path: Path) -> None:
        if self._is(file, path):
            return
        size = path.stat().st_size
        where = f"{file.path} of {self.source.describe()}"
        if file.size is not None and size < file.size:
            message = f"{where} is truncated: {size} of {file.size} bytes."
        else:
            found = file_digest(path)
            message = f"{where} was altered or truncated: its SHA-256 is {found}, {file.sha256 or file.git_sha1} is wanted."
        path.unlink()
        raise ModelStoreError(message)

    def _activate(self) -> None:
        temporary = self.home / ".current.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(f"releases/{self.release}")
        os.replace(temporary, self.current)
        os.utime(self.record)  # the last one active is the last one to go


def need_space(stores: list[ModelStore], plans: list[Plan]) -> None:
    """Refuse releases that do not fit beside each other, before the first of them is fetched."""
    volumes: dict[int, list[tuple[ModelStore, int]]] = {}
    for store, plan in zip(stores, plans):
        if plan.fetch:
            volumes.setdefault(store.volume().stat().st_dev, []).append((store, store.to_come(plan.files)))
    for needs in volumes.values():
        first = needs[0][0]
        reserve = int(first.settings.get("reserve_bytes") or 0)
        wanted = sum(need for _store, need in needs) + reserve
        free = shutil.disk_usage(first.volume()).free
        if free < wanted:
            names = ", ".join(f"{store.release} of {store.model['name']}" for store, _need in needs)
            what = f"The release {names} does not fit" if len(needs) == 1 else f"The releases {names} do not fit together"
            raise ModelStoreError(
                f"{what}: {gib(free)} free on the file system of {first.volume()}, {gib(wanted)} wanted "
                f"({gib(reserve)} of it is the reserve). Make space, or move model_store_root. What was active stays active."
            )


def converge_all(stores: list[ModelStore], apply: bool) -> list[dict[str, Any]]:
    """Bring each model to its release; all are looked at, and have their space, before the first is touched."""
    names = [store.model["name"] for store in stores]
    for name in names:
        if names.count(name) > 1:
            raise ModelStoreError(f"The model {name} is named more than once; one release of it can be active.")
    with ExitStack() as locks:
        if apply:
            for store in stores:
                locks.enter_context(store.lock())
        plans = [store.plan() for store in stores]
        with told("Looking for free disk space"):
            need_space(stores, plans)
        if apply:
            for store, plan in zip(stores, plans):
                store.carry_out(plan)
    return [store.result(plan) for store, plan in zip(stores, plans)]
