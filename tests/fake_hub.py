"""A small model hub on 127.0.0.1: repositories are made, committed to, and downloaded from."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_" + "x" * 34
COMMIT = "0" * 40


@dataclass
class Hub:
    """What was sent: repository, with its kind in front, -> name -> bytes."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)  # names, a list for each commit
    forbidden: bool = False  # answer 403 to every commit


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def answer(self, status: int, body: object = None, **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, {"error": "Invalid token"})
            if self.path == "/api/repos/create":
                about = json.loads(sent)
                kind = about.get("type") or "model"
                name = f"{about.get('organization', 'user')}/{about['name']}"
                hub.repositories.setdefault(f"{kind}s/{name}", {})
                hub.private[f"{kind}s/{name}"] = bool(
                    about.get("private") or about.get("visibility") == "private"
                )
                return self.answer(200, {"url": f"{hub.address}/{name}"})
            path = re.fullmatch(r"/api/(models|datasets)/(.+)/(preupload|commit)/main.*", self.path)
            assert path, self.path
            files = hub.repositories[f"{path[1]}/{path[2]}"]
            if path[3] == "preupload":
                names = [file["path"] for file in json.loads(sent)["files"]]
                modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
                return self.answer(200, {"files": modes})
            if hub.forbidden:
                return self.answer(403, {"error": "not yours"})
            lines = [json.loads(line) for line in sent.splitlines()]
            values = [line["value"] for line in lines if line["key"] == "file"]
            files.update({v["path"]: base64.b64decode(v["content"]) for v in values})
            hub.commits.append([v["path"] for v in values])
            url = f"{hub.address}/{path[2]}/commit/{COMMIT}"
            return self.answer(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})

        def do_GET(self) -> None:
            if self.path.startswith("/api/"):
                return self.answer(401, {"error": "Invalid token"})
            path = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/([^?]+).*", self.path)
            if path is None:
                return self.answer(200)
            files = hub.repositories.get(f"models/{path[1]}")
            if files is None:
                return self.answer(404, X_Error_Code="RepoNotFound")
            if (data := files.get(unquote(path[2]))) is None:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            return self.answer(200, data, ETag=etag, X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

    return Handler


@contextmanager
def serve() -> Iterator[Hub]:
    """Serve a hub while the block runs."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()
