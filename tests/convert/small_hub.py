"""A small hub on loopback: what huggingface_hub asks for when it fetches a repository, over real HTTP."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLD_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


@dataclass
class SmallHub:
    """`repositories` maps org/name to commits by revision and folders by commit. Change the flags while it runs.

    `breaks` maps a file name to the number of times that its download breaks off half-way. `requests` lists
    "METHOD path" and `ranges` the Range headers, in the order in which they came.
    """

    revisions: dict[str, dict[str, str]] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = ""
    failing: bool = False
    breaks: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fetched(self) -> set[str]:
        """The names of the files whose content was asked for."""
        return {path.rsplit("/", 1)[1] for path in self.requests if path.startswith("GET ") and "/resolve/" in path}


@contextmanager
def serve(hub: SmallHub) -> Iterator[SmallHub]:
    handler = type("Handler", (HubHandler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class HubHandler(BaseHTTPRequestHandler):
    """Answers /api/models/... (what is there) and /org/name/resolve/... (the files)."""

    protocol_version = "HTTP/1.1"
    hub: SmallHub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.failing:
            return self.refuse(500, "")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            return self.describe(match[1], match[2] or "revision", match[3] or "main")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.send_file(match[1], match[2], match[3])
        return self.refuse(404, "")

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def commit_of(self, repository: str, revision: str) -> str | None:
        """The commit, or None when an error was answered."""
        revisions = self.hub.revisions.get(repository)
        if revisions is None:
            self.refuse(401, "RepoNotFound")
            return None
        commit = revisions.get(revision, revision if revision in revisions.values() else None)
        if commit is None:
            self.refuse(404, "RevisionNotFound")
        return commit

    def describe(self, repository: str, what: str, revision: str) -> None:
        commit = self.commit_of(repository, revision)
        if commit is None:
            return
        files = sorted(path for path in self.hub.folders[commit].iterdir() if path.is_file())
        body: object = {
            "_id": "1", "id": repository, "modelId": repository, "sha": commit, "private": False,
            "gated": repository in self.hub.gated, "tags": [], "downloads": 0, "likes": 0,
            "siblings": [{"rfilename": path.name} for path in files],
        }  # fmt: skip
        if what == "tree":
            body = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": etag(path)} for path in files
            ]
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def send_file(self, repository: str, revision: str, name: str) -> None:
        commit = self.commit_of(repository, revision)
        if commit is None:
            return None
        authorised = self.hub.token and self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if repository in self.hub.gated and not authorised:
            return self.refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        path = self.hub.folders[commit] / name
        if not path.is_file():
            return self.refuse(404, "EntryNotFound")
        content, start = path.read_bytes(), 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            self.hub.ranges.append(self.headers["Range"])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag(path)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        if self.hub.breaks.get(name, 0):
            self.hub.breaks[name] -= 1
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.wfile.flush()
            self.close_connection = True
            return self.connection.shutdown(2)
        self.wfile.write(content[start:])
        return None

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def environment(hub: SmallHub, tmp_path: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS"))}
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        kept.pop(proxy, None)
    return kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf-home"), "HF_HUB_DISABLE_TELEMETRY": "1"} | more
