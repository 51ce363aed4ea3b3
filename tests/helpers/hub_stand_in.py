"""A local stand-in of the Hugging Face Hub's HTTP API: what huggingface_hub asks when it reads and writes a model."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OWNER, TOKEN = "somebody", "hf_of_somebody"


@dataclass
class Repository:
    """A repository: its visibility, its files and the metadata of its card."""

    private: bool = True
    files: dict[str, bytes] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    commits: list[str] = field(default_factory=lambda: ["0" * 40])


@dataclass
class StandIn:
    """The Hub: {OWNER/NAME: repository}, whether the token may write, and owners that it may not write for."""

    address: str = ""
    role: str = "write"
    repositories: dict[str, Repository] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any, str | None]:
        """(status, JSON, the Hub's error code) of one request."""
        parts = path.strip("/").split("/")
        if parts == ["api", "whoami-v2"]:
            token = {"role": self.role, "displayName": "t"}
            return 200, {"name": OWNER, "type": "user", "orgs": [], "auth": {"accessToken": token}}, None
        if parts == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}, None
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        name = "/".join(parts[2:4])
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}, "RepoNotFound"
        repository, rest = self.repositories[name], parts[4:]
        if method == "GET":
            return 200, self._info(name, repository), None
        if rest[0] == "preupload":
            names = [one["path"] for one in json.loads(body)["files"]]
            files = [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in names]
            return 200, {"files": files}, None
        return self._commit(repository, name, [json.loads(line) for line in body.splitlines()])

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any, str | None]:
        owner = asked.get("organization") or OWNER
        if owner in self.foreign:
            return 403, {"error": "You don't have the rights to create a model under this namespace"}, None
        private = asked.get("private", asked.get("visibility") == "private")
        repository = Repository(private=private, files={".gitattributes": b""})
        self.repositories.setdefault(f"{owner}/{asked['name']}", repository)
        return 200, {"url": f"{self.address}/{owner}/{asked['name']}"}, None

    def _info(self, name: str, repository: Repository) -> dict[str, Any]:
        return {
            "id": name,
            "private": repository.private,
            "sha": repository.commits[-1],
            "tags": repository.card.get("tags", []),
            "cardData": repository.card,
            "siblings": [{"rfilename": file} for file in repository.files],
        }

    def _commit(self, repository: Repository, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any, str | None]:
        head = lines[0]["value"]
        if head.get("parentCommit") not in (None, repository.commits[-1]):
            return 412, {"error": "A commit has happened since"}, None
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        repository.commits.append(f"{len(repository.commits):040x}")
        return 200, {"commitUrl": f"{self.address}/{name}/commit/x", "commitOid": repository.commits[-1]}, None


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Serve an empty Hub on this machine while the block runs."""
    hub = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            if self.headers.get("Authorization") == f"Bearer {TOKEN}":
                status, content, code = hub.answer(self.command, path, body)
            else:
                status, content, code = 401, {"error": "Invalid username or password."}, None
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _serve  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
