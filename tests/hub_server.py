"""A Hugging Face Hub in miniature on this machine: the calls that creating, uploading and downloading a model make."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_right"
COMMIT = hashlib.sha1(b"commit").hexdigest()


class Hub(ThreadingHTTPServer):
    """Takes TOKEN alone, unless it is public.

    Attributes:
        files: the content of each repository's files by their names.
        mood: "fine", "broken" (answers 500) or "silent" (does not answer).
        asked: method and path of every request.
    """

    daemon_threads = True

    def __init__(self, mood: str, public: bool):
        super().__init__(("127.0.0.1", 0), _Request)
        self.mood, self.public = mood, public
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub(mood: str = "fine", public: bool = False) -> Iterator[Hub]:
    with Hub(mood, public) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.closing.set()
            hub.shutdown()


class _Request(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, *arguments) -> None:
        pass

    def _answer(self, answer) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        if self.server.mood == "silent":
            self.server.closing.wait()
        elif self.server.mood == "broken":
            self._send(500, {"error": "out of order"})
        elif not self.server.public and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid username or password."})
        else:
            answer(self.path.partition("?")[0].strip("/").split("/"), body)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _get(self, path: list[str], _: bytes) -> None:
        match path:
            case ["api", "whoami-v2"]:
                self._send(200, {"type": "user", "name": "ada", "orgs": [], "auth": {"type": "access_token"}})
            case ["api", "models", _, _, "revision", revision] if revision not in (COMMIT, "main"):
                self._send(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
            case ["api", "models", user, name, *rest] if f"{user}/{name}" in self.server.files:
                files = self.server.files[f"{user}/{name}"]
                tree = [
                    {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for file, content in files.items()
                ]
                info = {"id": f"{user}/{name}", "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
                self._send(200, tree if rest[:1] == ["tree"] else info)
            case [user, name, "resolve", _, file] if file in self.server.files.get(f"{user}/{name}", {}):
                content = self.server.files[f"{user}/{name}"][file]
                etag = hashlib.sha1(content).hexdigest()
                self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
            case ["api", "models", *_]:
                self._send(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
            case _:
                self._send(404, {"error": "not found"})

    def _post(self, path: list[str], body: bytes) -> None:
        match path:
            case ["api", "validate-yaml"]:
                self._send(200, {"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                wanted = json.loads(body)
                name = f"{wanted.get('organization') or 'ada'}/{wanted['name']}"
                known = name in self.server.files
                self.server.files.setdefault(name, {})
                self._send(409 if known else 200, {"url": f"{self.server.url}/{name}", "name": name})
            case ["api", "models", _, _, "preupload", _]:
                files = [file["path"] for file in json.loads(body)["files"]]
                plain = [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
                self._send(200, {"files": plain})
            case ["api", "models", user, name, "commit", _]:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        self.server.files[f"{user}/{name}"][line["value"]["path"]] = content
                    elif line["key"] == "deletedFile":
                        del self.server.files[f"{user}/{name}"][line["value"]["path"]]
                url = f"{self.server.url}/{user}/{name}/commit/{COMMIT}"
                self._send(200, {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
            case _:
                self._send(404, {"error": "not found"})

    def _send(self, status: int, content: dict | list | bytes, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if body is content else "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
