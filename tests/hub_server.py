"""As much of the Hugging Face hub as it takes to fetch a data set: what it holds, and its files."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from lstmlab.config import PROJECT


class Hub(BaseHTTPRequestHandler):
    files: ClassVar[dict[str, bytes]]
    asked: ClassVar[list[str]] = []
    commit = "0" * 40

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if "/tree/" in self.path:
            below = self.path.partition("/tree/")[2].partition("?")[0].partition("/")[2]
            below = f"{below}/" if below else ""
            names = [name for name in self.files if name.startswith(below)]
            found: dict[str, str] = {}
            for name in names:
                folders = name.removeprefix(below).split("/")[:-1]
                found |= {below + "/".join(folders[: n + 1]): "directory" for n in range(len(folders))}
            found |= dict.fromkeys(names, "file")
            if "recursive=true" not in self.path.lower():
                found = {path: kind for path, kind in found.items() if "/" not in path.removeprefix(below)}
            entries = [
                {"type": kind, "path": path, "size": len(self.files.get(path, b"")), "oid": "0"}
                for path, kind in found.items()
            ]
            content = json.dumps(entries).encode()
        elif "/api/" in self.path:
            siblings = [{"rfilename": name} for name in self.files]
            content = json.dumps({"id": "some/where", "sha": self.commit, "siblings": siblings}).encode()
        else:
            name = self.path.partition("/resolve/")[2].partition("/")[2]
            if name not in self.files:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.end_headers()
                return
            content = self.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", hashlib.sha256(content).hexdigest())
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *args) -> None:
        pass


def run_with_hub(script: str, files: dict[str, bytes], cache: Path) -> tuple[str, list[str]]:
    """Run Python code in a process whose hub has these `files` in each data set; `cache` is empty.

    Returns what it prints and the paths that it asks the hub for.
    """
    Hub.files, Hub.asked = files, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(PROJECT / "src"),
    }
    run = [sys.executable, "-c", script]
    process = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=100)
    server.shutdown()
    server.server_close()
    assert process.returncode == 0, process.stderr
    return process.stdout, Hub.asked
