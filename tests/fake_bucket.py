"""A bucket on this host, gs://bucket/…, for the tests of paths that aren't files.

Files go through fsspec, in the place of gcsfs and, within `with_s3`, of s3fs; TensorStore, with
which Orbax writes arrays to gs://, has a client of its own and talks to a server on loopback. All
see one folder.
"""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry


class ClientError(Exception):
    """What the clients of buckets raise beside OSError; its text has several lines, as theirs."""


class BucketFileSystem(DirFileSystem):
    """gs://NAME/… as a folder NAME under `root`."""

    protocol = ("gcs", "gs")
    cachable = False
    root = ""

    def __init__(self, **_):
        super().__init__(path=self.root, fs=LocalFileSystem(auto_mkdir=True))

    @staticmethod
    def fault(call: str, path: str) -> None:
        """Called first, with "info", "isdir", "find" or a mode of `open`, for tests to raise in."""

    @staticmethod
    def version(file: Path) -> dict[str, object]:
        """What the description of a file says about its version."""
        changed = datetime.fromtimestamp(file.stat().st_mtime, UTC)
        return {"generation": _generation(file), "mtime": changed}

    @classmethod
    def _strip_protocol(cls, path):
        return path.rpartition("://")[2].rstrip("/")

    def _join(self, path):
        if isinstance(path, str):
            path = self._strip_protocol(path)
        return super()._join(path)

    def _described(self, name: str, info: dict) -> dict:
        described = {"name": name, "size": info["size"], "type": info["type"]}
        if info["type"] == "file":
            described |= self.version(Path(self._join(name)))
        return described

    def open(self, path, mode="rb", **options):
        self.fault(mode, path)
        bucket = self._strip_protocol(path).partition("/")[0]
        if not self.fs.isdir(super()._join(bucket)):  # only `makedirs` makes it, as of the clients
            raise FileNotFoundError("The specified bucket does not exist")
        return super().open(path, mode=mode, **options)

    def isdir(self, path):
        self.fault("isdir", path)
        return super().isdir(path)

    def info(self, path, **_):
        self.fault("info", path)
        return self._described(self._strip_protocol(path), super().info(path))

    def find(self, path, *, detail=False, **_):
        self.fault("find", path)
        found = super().find(path, detail=True)
        return {n: self._described(n, i) for n, i in found.items()} if detail else list(found)


class S3FileSystem(BucketFileSystem):
    """s3://NAME/… as the same folder, described as s3fs does it: times in seconds, no mtime."""

    protocol = ("s3",)

    @staticmethod
    def version(file: Path) -> dict[str, object]:
        """What the description of a file says about its version."""
        changed = datetime.fromtimestamp(int(file.stat().st_mtime), UTC)
        digest = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        return {"LastModified": changed, "ETag": f'"{digest}"'}


@contextlib.contextmanager
def with_s3() -> Iterator[None]:
    """Inside, s3:// has a client too; elsewhere it has none, as in an installation without [s3]."""
    backend.fsspec_backend._get_filesystem.cache_clear()
    try:
        with mock.patch.dict(_registry, {"s3": S3FileSystem}):
            yield
    finally:
        backend.fsspec_backend._get_filesystem.cache_clear()


class _Objects(http.server.BaseHTTPRequestHandler):
    """As much of the JSON API of Cloud Storage as TensorStore uses."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each small answer waits for 40 ms
    root: Path
    lock = threading.Lock()

    def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _request(self) -> tuple[Path, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        _, _, rest = url.path.partition("/b/")
        bucket, _, name = rest.partition("/o")
        name = urllib.parse.unquote(name.lstrip("/")) or query.get("name", "")
        return self.root / bucket / name, query

    def _refused(self, path: Path, query: dict[str, str]) -> bool:
        """Whether the condition on what is there now fails."""
        wanted = query.get("ifGenerationMatch")
        return wanted is not None and wanted != _generation(path)

    def do_GET(self) -> None:
        path, query = self._request()
        if "/o/" not in urllib.parse.urlsplit(self.path).path:
            self._list(path, query)
            return
        with self.lock:
            if not path.is_file():
                self._answer(404)
                return
            generation, body = _generation(path), path.read_bytes()
        if query.get("ifGenerationNotMatch") == generation:
            self._answer(304, x_goog_generation=generation)
        elif self._refused(path, query):
            self._answer(412)
        elif wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(body), len(body))
            where = f"bytes {start}-{stop - 1}/{len(body)}"
            self._answer(206, body[start:stop], x_goog_generation=generation, Content_Range=where)
        else:
            self._answer(200, body, x_goog_generation=generation)

    def _list(self, folder: Path, query: dict[str, str]) -> None:
        prefix = query.get("prefix", "")
        names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        items = [{"name": n, "size": "0"} for n in sorted(names) if n.startswith(prefix)]
        self._answer(200, json.dumps({"items": items}).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        path, query = self._request()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.lock:
            if self._refused(path, query):
                self._answer(412)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
            answer = {"name": path.name, "generation": _generation(path)}
        self._answer(200, json.dumps(answer).encode(), Content_Type="application/json")

    def do_DELETE(self) -> None:
        path, query = self._request()
        with self.lock:
            if self._refused(path, query):
                self._answer(412)
                return
            path.unlink(missing_ok=True)
        self._answer(204)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _generation(path: Path) -> str:
    """The number of the object's version, "0" if there is none."""
    return str(path.stat().st_mtime_ns) if path.is_file() else "0"


def serve(root: Path) -> http.server.ThreadingHTTPServer:
    """Start a server of the buckets under `root`, on a free port of loopback."""
    handler = type("Handler", (_Objects,), {"root": root})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
