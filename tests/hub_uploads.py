"""The part of the hub's API that its library uses to upload: a `FakeHub` that can be written to."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from hub_server import KINDS, LARGE, FakeHub, Repository, commit_of, hash_blob, send, send_json

WRITER = "hf_writer"
"""The only token that may write."""


class UploadHub(FakeHub):
    """A hub that takes uploads from whoever sends the token `WRITER`.

    `objects` holds the large files sent so far, by their sha256, `uploads` their sha256 in the
    order in which they came, and `commits` the names of the files of each commit. `on_request` is
    called with each request's line before it is answered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.commits: list[list[str]] = []
        self.on_request: Callable[[str], object] = lambda line: None

    def answer_path(
        self, request: BaseHTTPRequestHandler, parts: list[str], content: bytes
    ) -> None:
        self.on_request(f"{request.command} {request.path}")
        if parts[:1] == ["objects"]:  # its address is a secret of its own, without a token
            if hashlib.sha256(content).hexdigest() != parts[1]:  # whoever sent it was killed
                send(request, 400)
                return
            self.objects[parts[1]] = content
            self.uploads.append(parts[1])
            send(request, 200)
        elif parts[:2] == ["api", "validate-yaml"]:
            send_json(request, {"errors": [], "warnings": []})
        elif parts[:3] == ["api", "repos", "create"]:
            self._create(request, json.loads(content))
        elif parts[-3:] == ["lfs", "objects", "batch"] and self._may_write(request):
            send_json(request, self._batch(json.loads(content)))
        elif parts[0] == "api" and parts[4:5] == ["preupload"] and self._may_write(request):
            send_json(request, self._modes(self._files(parts), json.loads(content)))
        elif parts[0] == "api" and parts[4:5] == ["branch"] and self._may_write(request):
            repository = self._repository(parts)
            repository.revisions.setdefault(parts[5], dict(repository.revisions["main"]))
            send_json(request, {})
        elif parts[0] == "api" and parts[4:5] == ["commit"] and self._may_write(request):
            self._commit(request, parts, content)
        else:
            super().answer_path(request, parts, content)

    def _repository(self, parts: list[str]) -> Repository:
        return self.repositories[KINDS[parts[1]] + "/".join(parts[2:4])]

    def _files(self, parts: list[str]) -> dict[str, bytes]:
        return dict(self._repository(parts).revisions[parts[5]])

    def _may_write(self, request: BaseHTTPRequestHandler) -> bool:
        """Whether the token may write; if it may not, that has been answered."""
        if request.headers.get("Authorization") == f"Bearer {WRITER}":
            return True
        words = "You don't have the rights to create a resource under this namespace"
        send(request, 403, headers={"X-Error-Message": words})
        return False

    def _create(self, request: BaseHTTPRequestHandler, wanted: dict[str, Any]) -> None:
        if not self._may_write(request):
            return
        name = f"{wanted['organization']}/{wanted['name']}"
        where = KINDS[f"{wanted['type']}s"] + name
        is_private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        if where in self.repositories:
            send(request, 409, json.dumps({"url": f"{self.endpoint}/{where}"}).encode())
            return
        self.repositories[where] = Repository(
            {"main": {".gitattributes": b"*.safetensors filter=lfs\n"}},
            token=WRITER if is_private else None,
        )
        send_json(request, {"url": f"{self.endpoint}/{where}", "id": name})

    def _batch(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Where to send each large file; nowhere what is there already."""
        rows: list[dict[str, Any]] = []
        for one in wanted["objects"]:
            row = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.objects:
                row["actions"] = {"upload": {"href": f"{self.endpoint}/objects/{one['oid']}"}}
            rows.append(row)
        return {"transfer": "basic", "objects": rows}

    def _modes(self, files: dict[str, bytes], wanted: dict[str, Any]) -> dict[str, Any]:
        rows = []
        for one in wanted["files"]:
            path = one["path"]
            mode = "lfs" if path.endswith(LARGE) else "regular"
            oid = hash_blob(files[path]) if path in files and mode == "regular" else None
            rows.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": rows}

    def _commit(
        self,
        request: BaseHTTPRequestHandler,
        parts: list[str],
        content: bytes,
    ) -> None:
        repository, branch = self._repository(parts), parts[5]
        lines = [json.loads(line) for line in content.splitlines()]
        before = repository.revisions[branch]
        parent = lines[0]["value"].get("parentCommit", commit_of(before))
        if parent != commit_of(before):
            words = f"A commit has happened since. Please refresh and try again: {parent}"
            send(request, 412, headers={"X-Error-Message": words})
            return
        files = dict(before)
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
            else:
                assert kind == "deletedFile", kind
                del files[value["path"]]
        repository.revisions[commit_of(before)] = before
        repository.revisions[branch] = files
        self.commits.append([line["value"]["path"] for line in lines[1:]])
        commit = commit_of(files)
        page = f"{self.endpoint}/{'/'.join(parts[1:4])}"
        answer = {"commitOid": commit, "commitUrl": f"{page}/commit/{commit}"}
        send_json(request, {"success": True, **answer})
