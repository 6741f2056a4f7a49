"""A model hub on this machine: as much of its protocol as a download needs, with one checkpoint in one commit."""

import hashlib
import http.server
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.serving import Quiet, serving

HUB_ID = "someone/siglip"
COMMIT = "0123456789" * 4


class FakeHub(http.server.ThreadingHTTPServer):
    """Serves `files`, by name, and tells the checksums of what they were in the beginning; `asked` are the paths."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(files)
        self.asked = list[str]()
        self._original = dict(files)

    @property
    def url(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str) -> tuple[bytes, dict[str, str]] | None:
        """Body and headers for the path of a request; None where there is nothing."""
        self.asked.append(path)
        api, (kind, _, rest) = path.startswith("/api/"), path.partition(HUB_ID)[2].strip("/").partition("/")
        if api and kind == "revision" and rest in ("main", COMMIT):
            return json.dumps({"id": HUB_ID, "sha": COMMIT}).encode(), {}
        if api and kind == "tree" and rest == COMMIT:
            return json.dumps([self._entry(name) for name in self._original]).encode(), {}
        commit, _, name = rest.partition("/")
        if kind == "resolve" and commit == COMMIT and name in self.files:
            etag = hashlib.sha256(self.files[name]).hexdigest()
            return self.files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        return None

    def _entry(self, name: str) -> dict[str, Any]:
        content = self._original[name]
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry = {"type": "file", "path": name, "size": len(content), "oid": git}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return entry


class _Handler(Quiet, http.server.BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        found = self.server.answer(self.path.partition("?")[0])
        body, headers = found or (b"", {})
        self.send_response(200 if found else 404)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()


@contextmanager
def fake_hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    """A hub for as long as the block lasts."""
    with serving(FakeHub(files)) as hub:
        yield hub
