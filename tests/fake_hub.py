"""A Hub on loopback: models in folders, as the Hugging Face client sees and writes them."""

import base64
import hashlib
import http.server
import json
import threading
from pathlib import Path

TOKEN = "hf_" + "x" * 34
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(http.server.BaseHTTPRequestHandler):
    """Answers /OWNER/NAME/resolve/REVISION/FILE with what lies in `root`/OWNER/NAME/FILE.

    Takes commits of those who have the token `TOKEN`, as the Hub does: a model is created, large
    files are sent by Git LFS, and then all files appear at once.
    """

    root: Path
    hidden: frozenset[str] = frozenset()  # models that ask for a token
    received: list[tuple[str, bytes]]  # path and content of each request that writes
    large: dict[str, bytes]  # files that were sent by Git LFS, by SHA-256

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

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.received.append((self.path, body))
        if self.path.startswith("/api/validate-yaml"):
            self._answer_json({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "Unauthorized")
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            exists = (self.root / name).is_dir()
            (self.root / name).mkdir(parents=True, exist_ok=True)
            document = {"url": f"{self._url()}/{name}", "name": name, "id": "0"}
            self._answer_json(document, 409 if exists else 200)
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = {True: "lfs", False: "regular"}
            self._answer_json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": modes[file["path"].endswith(".safetensors")],
                            "shouldIgnore": False,
                        }
                        for file in files
                    ]
                }
            )
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            links = [
                one | {"actions": {"upload": {"href": f"{self._url()}/lfs/{one['oid']}"}}}
                for one in objects
            ]
            self._answer_json({"transfer": "basic", "objects": links})
        elif "/commit/" in self.path:
            self._commit(self.path.split("/api/models/")[1].split("/commit/")[0], body)
        else:
            self._refuse(404, "NotFound")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.received.append((self.path, body))
        self.large[self.path.rpartition("/")[2]] = body
        self._answer_json({})

    def _commit(self, model: str, body: bytes) -> None:
        """Write the files of a commit: lines of JSON."""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                (self.root / model / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile":
                (self.root / model / value["path"]).write_bytes(self.large[value["oid"]])
        self._answer_json(
            {
                "success": True,
                "commitUrl": f"{self._url()}/{model}/commit/{COMMIT}",
                "commitOid": COMMIT,
            }
        )

    def _url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def _answer_json(self, document: object, code: int = 200) -> None:
        text = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

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
    handler = type(
        "Handler", (_Hub,), {"root": root, "hidden": hidden, "received": [], "large": {}}
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
