"""A small hub of our own on 127.0.0.1."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_zebraZebraZebraZebraZebraZebra"


@dataclass
class Hub:
    """The parts of the hub's HTTP interface that a push uses."""

    url: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0
    takes_commits: bool = True
    takes_repositories: bool = True

    def answer(self, path: str, body: bytes, token: str) -> tuple[int, Any]:
        """Status and JSON."""
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if path.endswith("/commit/main"):
            return self.commit(path, body)
        return (200, {"errors": [], "warnings": []}) if path == "/api/validate-yaml" else (404, {"error": path})

    def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        if not self.takes_repositories:
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        known = name in self.repositories
        self.repositories.setdefault(name, asked)
        return (409 if known else 200), {"url": f"{self.url}/{name}", "id": name}

    def commit(self, path: str, body: bytes) -> tuple[int, Any]:
        if not self.takes_commits:
            return 403, {"error": "Your storage is full"}
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        self.commits += 1
        name = path.removeprefix("/api/models/").removeprefix("/api/").removesuffix("/commit/main")
        return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.url}/{name}/commit/{'0' * 40}"}


@contextmanager
def served() -> Iterator[Hub]:
    """A running one."""
    made = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content = made.answer(self.path.partition("?")[0], body, self.headers.get("Authorization", ""))
            answer = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
