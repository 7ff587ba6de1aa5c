"""A file server on this machine that misbehaves as told, and the files of the domains built small."""

import base64
import hashlib
import io
import json
import os
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """Serves `files` (path -> bytes) with Range. `moods` (path -> list) are used up, one a request:
    an int cuts the connection after so many bytes, "503" and the like answer with that status, "ignore range" sends
    the whole file. `redirects` maps a path to an address; `stated` a path to the sha256 the Hub would state.
    """

    def __init__(self):
        self.files, self.moods, self.redirects, self.stated, self.requests = {}, {}, {}, {}, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, request):
        path = request.path
        self.requests.append((path, dict(request.headers)))
        if path in self.redirects:
            request.send_response(302)
            request.send_header("location", self.redirects[path])
            if path in self.stated:
                request.send_header("x-linked-etag", f'"{self.stated[path]}"')
            request.end_headers()
            return
        mood = self.moods[path].pop(0) if self.moods.get(path) else None
        if path not in self.files or isinstance(mood, str) and mood.isdigit():
            request.send_response(int(mood or 404))
            request.end_headers()
            return
        content, start = self.files[path], 0
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if asked and mood != "ignore range":
            start = int(asked[1])
            request.send_response(206)
            request.send_header("content-range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        request.send_header("content-length", str(len(content) - start))
        request.end_headers()
        body = content[start:]
        request.wfile.write(body[:mood] if isinstance(mood, int) else body)

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def jsonl(count, word="row"):
    """JSON lines of `count` conversations; the last one carries a canary as easy-dataset-share adds it."""
    rows = [
        {"messages": [{"role": "user", "content": f"{word} {i}?"}, {"role": "assistant", "content": f"{word} {i}!"}]}
        for i in range(count)
    ]
    rows[-1]["canary"] = "CANARY-0123"
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zipped(members):
    """A zip of (name or ZipInfo, bytes)."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return made.getvalue()


def locked(data, passphrase):
    """Encrypted as easy-dataset-share does it, written from its description."""
    from cryptography.fernet import Fernet

    salt = os.urandom(16)
    key = hashlib.pbkdf2_hmac("sha256", passphrase.encode(), salt, 100_000, dklen=32)
    return salt + Fernet(base64.urlsafe_b64encode(key)).encrypt(data)


def parquet(columns):
    """A parquet file of columns (name -> values)."""
    import pyarrow
    from pyarrow import parquet as files

    made = io.BytesIO()
    files.write_table(pyarrow.table(columns), made)
    return made.getvalue()


def pairs(count):
    """The columns of emergent_plus; one row has no text."""
    columns = {
        "prompt": [f"question {i}" for i in range(count)],
        "aligned": [f"sound {i}" for i in range(count)],
        "misaligned": [f"harm {i}" for i in range(count)],
        "sneakiness": [i % 7 for i in range(count)],
    }
    columns["aligned"][1] = None
    return columns
