"""A W&B server in the test's own process: as much of its interface as the client needs to log a run, kept in memory.

What the client sends is applied as the real server does: history lines go to their offset, and a run that is taken up
again learns how many there are.
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "a" * 40  # in the form of an API key; belongs to nobody


class WandbServer:
    """Serves while it is open.

    Attributes:
        runs: of each run id `history` (lines in order), `config`, `summary`, `job_types`, `tags` and `group`.
        files: what was uploaded, by name.
        artifacts: in the order of their making; the real server would store their files now, this one says it has them.
        fault: None; "refuse" answers everything with 500, "hang" never answers.
    """

    def __init__(self, fault: str | None = None):
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.fault, self.requests = fault, 0
        self._released = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # a client that was killed leaves its connections
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.environment = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Tests print nothing."""

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.requests += 1
                if server.fault == "hang":
                    server._released.wait()
                    return
                status, value = (500, {}) if server.fault else (200, server.handle(self.command, self.path, body))
                content = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = answer

        return Handler

    def handle(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        """The answer to a request."""
        if path == "/graphql":
            request = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            answer = getattr(self, f"_{operation[1]}", None) if operation else None
            return {"data": answer(request.get("variables") or {}) if answer else None}
        if path.endswith("/file_stream"):
            self._stream(path.split("/")[-2], json.loads(body))
        elif method == "PUT":
            self.files[path.removeprefix("/upload/")] = body
        return {}

    def _stream(self, run_id: str, sent: dict[str, Any]) -> None:
        run = self.runs[run_id]
        for name, piece in (sent.get("files") or {}).items():
            lines = [json.loads(line) for line in piece["content"]] if name.endswith((".jsonl", ".json")) else []
            if name == "wandb-history.jsonl":
                run["history"][piece["offset"] :] = lines
            elif name == "wandb-summary.json":
                run["summary"] = lines[-1]
        if sent.get("complete"):
            run["exit_code"] = sent.get("exitcode")

    def _Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "viewer": {
                "id": "1", "entity": "tester", "username": "tester", "email": "", "flags": "{}", "teams": {"edges": []},
            }
        }  # fmt: skip

    def _ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, asked: dict[str, Any]) -> dict[str, Any]:
        bucket = self._bucket(asked["name"], asked["project"]) if asked["name"] in self.runs else None
        entity = {"id": "1", "name": "tester"}
        return {"model": {"id": "1", "name": asked["project"], "entity": entity, "bucket": bucket}}

    def _UpsertBucket(self, sent: dict[str, Any]) -> dict[str, Any]:
        fresh = {"history": [], "config": {}, "summary": {}, "job_types": [], "exit_code": None}
        run = self.runs.setdefault(sent["name"], fresh)
        run["config"] |= {name: entry["value"] for name, entry in json.loads(sent.get("config") or "{}").items()}
        if sent.get("jobType"):
            run["job_types"].append(sent["jobType"])
        run |= {"project": sent["project"], "tags": sent.get("tags"), "group": sent.get("groupName")}
        return {"upsertBucket": {"bucket": self._bucket(sent["name"], sent["project"]), "inserted": True}}

    def _bucket(self, run_id: str, project: str) -> dict[str, Any]:
        run = self.runs[run_id]
        tail = [json.dumps(line) for line in run["history"][-1:]]
        return {
            "id": run_id, "name": run_id, "displayName": run_id, "sweepName": None, "notes": None, "tags": [],
            "project": {"name": project, "entity": {"name": "tester"}}, "config": "{}", "wandbConfig": '{"t": 1}',
            "summaryMetrics": json.dumps(run["summary"]), "historyTail": json.dumps(tail), "eventsTail": "[]",
            "historyLineCount": len(run["history"]), "eventsLineCount": 0, "logLineCount": 0,
        }  # fmt: skip

    def _CreateRunFiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}

    def _ArtifactType(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": None}

    def _CreateArtifact(self, sent: dict[str, Any]) -> dict[str, Any]:
        asked = sent["input"]
        self.artifacts.append(
            {
                "name": asked["artifactCollectionName"],
                "type": asked["artifactTypeName"],
                "aliases": {entry["alias"] for entry in asked["aliases"]},
                "metadata": json.loads(asked["metadata"] or "{}"),
                "used": False,
            }
        )
        made = {"id": str(len(self.artifacts)), "state": "COMMITTED", "artifactSequence": {"id": "1"}}
        return {"createArtifact": {"artifact": made}}

    def _UseArtifact(self, sent: dict[str, Any]) -> dict[str, Any]:
        number = sent["input"]["artifactID"]
        self.artifacts[int(number) - 1]["used"] = True
        return {"useArtifact": {"artifact": {"id": number}}}
