"""A Hub on loopback: models in folders, as the Hugging Face client sees them."""

import hashlib
import http.server
import json
import threading
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(http.server.BaseHTTPRequestHandler):
    """Answers /OWNER/NAME/resolve/REVISION/FILE with what lies in `root`/OWNER/NAME/FILE."""

    root: Path
    hidden: frozenset[str] = frozenset()  # models that ask for a token

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        parts = self.path.strip("/").split("?")[0].split("/")
        if len(parts) != 5 or parts[2] != "resolve":
            self._refuse(404, "RepoNotFound")
            return
        model, revision, name = "/".join(parts[:2]), parts[3], parts[4]
        file = self.root / model / name
        if model in self.hidden:
            self._refuse(403, "GatedRepo")
        elif not file.parent.is_dir():
            self._refuse(401, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif not file.is_file():
            self._refuse(404, "EntryNotFound")
        else:
            self._send(file.read_bytes(), name, body=body)

    def _send(self, data: bytes, name: str, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        if name.endswith(".json"):
            digest = hashlib.sha1(b"blob %d\0" % len(data) + data)
            self.send_header("ETag", f'"{digest.hexdigest()}"')
        else:
            digest = hashlib.sha256(data)
            self.send_header("X-Linked-ETag", f'"{digest.hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _refuse(self, code: int, reason: str) -> None:
        text = json.dumps({"error": reason}).encode()
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("X-Error-Message", reason)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def serve(root: Path, *, hidden: frozenset[str] = frozenset()) -> http.server.ThreadingHTTPServer:
    """Start it on a free port of loopback."""
    handler = type("Handler", (_Hub,), {"root": root, "hidden": hidden})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
