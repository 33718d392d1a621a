"""A small hub on this machine: a real server with the part of the hub's API that its library uses
to look and download.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

KINDS = {"models": "", "datasets": "datasets/"}
LARGE = (".safetensors", ".parquet", ".png")
"""Endings of files that the hub stores outside git, by their sha256."""


@dataclass
class Repository:
    """What the hub holds of one repository.

    Args:
        revisions: files by name, by the name of a branch or tag.
        token: only who sends this one may see it (private) or download from it (gated); None:
            everybody.
        is_gated: whether everybody may look at it, and nobody without the token download.
    """

    revisions: dict[str, Mapping[str, bytes]]
    token: str | None = None
    is_gated: bool = False

    def find(self, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        """Commit and files of a branch, a tag or a commit."""
        for name, files in self.revisions.items():
            if revision in (name, commit := commit_of(files)):
                return commit, files
        return None


def commit_of(files: Mapping[str, bytes]) -> str:
    """The commit of these files: 40 hexadecimal digits that depend on names and contents."""
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(f"{name} {len(files[name])} ".encode() + files[name])
    return digest.hexdigest()


def read_files(folder: Path, below: str = "") -> dict[str, bytes]:
    """The files of a folder as a repository has them, below a folder of the repository."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {below + file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@dataclass
class Failure:
    """What the hub answers to every request instead of what was asked for."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class FakeHub:
    """The server; use it as a context manager.

    `downloads` holds the files sent so far, as "owner/name/path", and `requests` all lines of
    requests.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.failure: Failure | None = None
        self.downloads: list[str] = []
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_POST(self) -> None:
                hub.answer(self)

            def do_PUT(self) -> None:
                hub.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(
        self, name: str, files: Mapping[str, bytes], kind: str = "models", **options: Any
    ) -> Repository:
        """Hold these files as the main branch of a new repository."""
        repository = Repository({"main": dict(files)}, **options)
        self.repositories[KINDS[kind] + name] = repository
        return repository

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Send what one request asks for."""
        self.requests.append(f"{request.command} {request.path}")
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if self.failure is not None:
            send(request, self.failure.status, self.failure.body, self.failure.headers)
            return
        address = urlsplit(request.path)
        self.answer_path(request, [unquote(part) for part in address.path[1:].split("/")], body)

    def answer_path(
        self, request: BaseHTTPRequestHandler, parts: list[str], content: bytes
    ) -> None:
        """Send what one request asks for.

        Args:
            parts: of its path.
            content: its body.
        """
        body = content.decode()
        if parts[0] == "api" and len(parts) > 3 and parts[1] in KINDS:
            self._answer_api(request, KINDS[parts[1]] + "/".join(parts[2:4]), parts[4:], body)
        else:
            where = parts.index("resolve") if "resolve" in parts else len(parts)
            name, rest = "/".join(parts[:where]), parts[where + 1 :]
            self._answer_file(request, name, rest[0] if rest else "main", "/".join(rest[1:]))

    def _answer_api(
        self, request: BaseHTTPRequestHandler, name: str, parts: list[str], body: str
    ) -> None:
        what, revision, *below = [*parts, "main"][:2] + parts[2:] if parts else ["", "main"]
        found = self._find(request, name, revision, downloads=what == "auth-check")
        if found is None:
            return
        commit, files = found
        if what == "tree":
            send_tree(request, files, "".join(f"{name}/" for name in below if name))
        elif what == "paths-info":
            wanted = parse_qs(body).get("paths", []) or json.loads(body or "{}").get("paths", [])
            rows = [entry_of(path, files[path]) for path in wanted if path in files]
            send_json(request, rows + [row for row in folders_of(files) if row["path"] in wanted])
        else:
            answer = {
                "id": name.removeprefix("datasets/"),
                "sha": commit,
                "siblings": [{"rfilename": path} for path in files],
            }
            repository = self.repositories[name]
            gates = {
                "gated": "auto" if repository.is_gated else False,
                "private": repository.token is not None,
            }
            send_json(request, answer | gates | {"tags": [], "downloads": 0, "likes": 0})

    def _answer_file(
        self, request: BaseHTTPRequestHandler, name: str, revision: str, path: str
    ) -> None:
        found = self._find(request, name, revision, downloads=True)
        if found is None:
            return
        commit, files = found
        if path not in files:
            send(request, 404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content, status = files[path], 200
        headers = {
            "ETag": f'"{etag_of(path, content)}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        if wanted := request.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            stop = min(int(last) + 1 if last else len(content), len(content))
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(content)}"
            content, status = content[int(first) : stop], 206
        if request.command == "GET":
            self.downloads.append(f"{name}/{path}")
        send(request, status, content, headers)

    def _find(
        self, request: BaseHTTPRequestHandler, name: str, revision: str, downloads: bool = False
    ) -> tuple[str, Mapping[str, bytes]] | None:
        """Commit and files, or None after an answer that refuses them, in the words of the real
        hub.
        """
        repository = self.repositories.get(name)
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        is_hidden = (
            repository is not None
            and repository.token not in (None, sent)
            and not repository.is_gated
        )
        if repository is None or is_hidden:
            status = 404 if sent else 401
            words = "Repository not found" if sent else "Invalid username or password."
            send(
                request, status, headers={"X-Error-Code": "RepoNotFound", "X-Error-Message": words}
            )
            return None
        if repository.is_gated and downloads and sent != repository.token:
            words = f"Access to model {name} is restricted."
            send(
                request,
                403 if sent else 401,
                headers={"X-Error-Code": "GatedRepo", "X-Error-Message": words},
            )
            return None
        found = repository.find(revision)
        if found is None:
            send(
                request,
                404,
                headers={
                    "X-Error-Code": "RevisionNotFound",
                    "X-Error-Message": f"Invalid rev id: {revision}",
                },
            )
        return found


def entry_of(path: str, content: bytes) -> dict[str, Any]:
    """A file as the hub's listings have it."""
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": hash_blob(content),
    }
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": etag_of(path, content), "size": len(content), "pointerSize": 130}
    return entry


def hash_blob(content: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag_of(path: str, content: bytes) -> str:
    """The hash by which the hub tells a file's contents apart."""
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else hash_blob(content)


def send_tree(request: BaseHTTPRequestHandler, files: Mapping[str, bytes], folder: str) -> None:
    """Answer with what is in a folder ("" or "name/"), and below it if that was asked for."""
    is_deep = "recursive=true" in request.path.lower()
    rows = [*(entry_of(path, content) for path, content in files.items()), *folders_of(files)]
    inside = [row for row in rows if row["path"].startswith(folder)]
    if folder and not inside:
        send(request, 404, headers={"X-Error-Code": "EntryNotFound"})
        return
    send_json(request, [row for row in inside if is_deep or "/" not in row["path"][len(folder) :]])


def folders_of(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """All folders as the hub's listings have them."""
    names = {parent for path in files for parent in map(str, Path(path).parents) if parent != "."}
    return [
        {
            "type": "directory",
            "path": name,
            "size": 0,
            "oid": hashlib.sha1(name.encode()).hexdigest(),
        }
        for name in sorted(names)
    ]


def send_json(request: BaseHTTPRequestHandler, answer: object) -> None:
    """Answer with JSON."""
    send(request, 200, json.dumps(answer).encode(), {"Content-Type": "application/json"})


def send(
    request: BaseHTTPRequestHandler,
    status: int,
    content: bytes = b"",
    headers: Mapping[str, str] = {},
) -> None:
    """Answer one request."""
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)
