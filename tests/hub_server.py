"""A hub on this machine: what `huggingface_hub` asks of huggingface.co, answered as that does.

Repositories have commits, branches, tags and files. Large files, by their endings, are kept apart: the address of one
leads to another host, which knows no tokens. A connection can be made to break halfway through a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from conftest import ROOT

LARGE = (".safetensors", ".bin", ".parquet", ".gz", ".zst")
ADDRESS = re.compile(
    r"/(?:api/(?P<api>model|dataset)s/(?P<id>[^/]+/[^/]+)(?:/(?P<what>revision|tree|refs)(?:/(?P<at>[^/]+))?)?"
    r"|(?P<files>datasets/)?(?P<of>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<name>.+)"
    r"|large/(?P<sha256>[0-9a-f]{64})/.+)"
)


@dataclass
class Repository:
    """A repository: commits with their files, and the branches and tags that name commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False

    def commit(self, files: Mapping[str, bytes], branch: str | None = "main", tag: str | None = None) -> str:
        """Add a commit, give it to a branch or a tag, and return its id."""
        key = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[key] = dict(files)
        if tag:
            self.tags[tag] = key
        elif branch:
            self.branches[branch] = key
        return key

    def find(self, revision: str) -> str | None:
        """Return the commit that a revision names."""
        named = {**self.branches, **self.tags}.get(revision, revision)
        return named if named in self.commits else None


class Hub:
    """The server; use it in a `with`.

    `requests` counts what was asked for, as `GET /path`; `with_token` holds those requests that came with one. Of a
    file named in `breaks` so many answers end halfway; those that begin beyond give nothing.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: Counter[str] = Counter()
        self.with_token: set[str] = set()
        self.accepted: set[str] = set()  # tokens of those who accepted the terms of gated repositories
        self.expired: set[str] = set()
        self.breaks: dict[str, float] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repository(self, name: str, kind: str = "model", **options: bool) -> Repository:
        """Return a new repository."""
        return self.repositories.setdefault((kind, name), Repository(**options))

    def downloads(self) -> list[str]:
        """Return the names of the files whose content was asked for, each as often as it was."""
        asked = (line.split("/") for line in self.requests.elements() if line.startswith("GET /"))
        found = [parts for parts in asked if "resolve" in parts or "large" in parts]
        return sorted(
            "/".join(parts[parts.index("resolve" if "resolve" in parts else "large") + 2 :]) for parts in found
        )


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with a body, or part of one."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer with the headers alone."""
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        # A range with an end is a part of a file, as its header: no download.
        is_part = re.fullmatch(r"bytes=\d+-\d+", self.headers.get("Range", "")) is not None
        line = f"{'PART' if is_part else self.command} {path}"
        self.hub.requests[line] += 1
        if self._token():
            self.hub.with_token.add(line)
        found = ADDRESS.fullmatch(urlsplit(self.path).path)
        asked = {key: unquote(value) for key, value in found.groupdict().items() if value} if found else {}
        if self._token() in self.hub.expired:
            message = "Invalid credentials in Authorization header"
            self._send(401, json.dumps({"error": message}).encode(), X_Error_Message=message)
        elif "sha256" in asked:
            self._send_large(asked["sha256"], path)
        elif "api" in asked:
            self._send_api(asked)
        elif "name" in asked:
            self._send_file(asked)
        else:
            self._send(404, b"no such page")

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _send(self, status: int, body: bytes = b"", **headers: object) -> None:
        """Send an answer; `X_Repo_Commit` is the header X-Repo-Commit."""
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str, **headers: object) -> None:
        self._send(
            status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message, **headers
        )

    def _repository(self, kind: str, name: str) -> Repository | None:
        """Return a repository; refuse one that is not there, as one that is private."""
        found = self.hub.repositories.get((kind, name))
        if found is None:
            self._refuse(404 if self._token() else 401, "RepoNotFound", "Repository not found")
        return found

    def _commit(self, repository: Repository, revision: str) -> str | None:
        """Return the commit of a revision; refuse one that is not there."""
        commit = repository.find(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _send_api(self, asked: dict[str, str]) -> None:
        """Answer what is asked of a repository, gated or not."""
        repository = self._repository(asked["api"], asked["id"])
        if repository is None:
            return
        if asked.get("what") == "refs":
            answer = {"branches": _refs("heads", repository.branches), "tags": _refs("tags", repository.tags)}
            self._send_json({**answer, "converts": []})
        elif commit := self._commit(repository, asked.get("at", "main")):
            files = repository.commits[commit]
            if asked.get("what") == "tree":
                self._send_json([_entry(name, content) for name, content in sorted(files.items())])
            else:
                siblings = [_sibling(name, content) for name, content in files.items()]
                self._send_json({"id": asked["id"], "sha": commit, "siblings": siblings, "gated": repository.is_gated})

    def _send_json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), Content_Type="application/json")

    def _send_file(self, asked: dict[str, str]) -> None:
        """Answer with a small file, or with where a large one is."""
        repository = self._repository("dataset" if "files" in asked else "model", asked["of"])
        if repository is None:
            return
        if repository.is_gated and self._token() not in self.hub.accepted:
            self._refuse(403 if self._token() else 401, "GatedRepo", "Access to this repository is restricted.")
        elif commit := self._commit(repository, asked["rev"]):
            content = repository.commits[commit].get(asked["name"])
            if content is None:
                self._refuse(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit)
            elif asked["name"].endswith(LARGE):
                key = hashlib.sha256(content).hexdigest()
                where = f"http://localhost:{self.hub.port}/large/{key}/{asked['name']}"
                linked = {"X_Linked_Size": len(content), "X_Linked_Etag": f'"{key}"'}
                self._send(302, Location=where, X_Repo_Commit=commit, **linked)
            else:
                self._send(200, content, ETag=f'"{_git_id(content)}"', X_Repo_Commit=commit)

    def _send_large(self, key: str, path: str) -> None:
        """Answer with a large file from a byte on, or break off in its middle."""
        contents = (
            one for repo in self.hub.repositories.values() for files in repo.commits.values() for one in files.values()
        )
        content = next(one for one in contents if hashlib.sha256(one).hexdigest() == key)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-"))
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if asked[2]:  # part of a file, as its header
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            self.wfile.write(content[first : last + 1])
            return
        end, name = len(content), path.rsplit("/", 1)[1]
        if self.command == "GET" and self.hub.breaks.get(name, 0) > 0:
            self.hub.breaks[name] -= 1
            end, self.close_connection = end // 2, True
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[first:end])


def _refs(kind: str, named: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit} for name, commit in named.items()]


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, object]:
    """Return what a tree says of a file."""
    large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    entry = {"type": "file", "path": name, "size": len(content), "oid": _git_id(content)}
    return {**entry, "lfs": large} if name.endswith(LARGE) else entry


def _sibling(name: str, content: bytes) -> dict[str, object]:
    """Return what the description of a repository says of a file."""
    large = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    sibling = {"rfilename": name, "size": len(content), "blobId": _git_id(content)}
    return {**sibling, "lfs": large} if name.endswith(LARGE) else sibling


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def environment(hub: Hub, folder: Path, **more: str) -> dict[str, str]:
    """Return an environment in which the hub is this one, and its cache is empty at first."""
    of_hub = {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower() and name != "HF_TOKEN"}
    return {**kept, "PYTHONPATH": str(ROOT), **of_hub, **more}
