"""A small HTTP server that speaks the streaming completions protocol, one word a token; it can be told to fail."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class CompletionsServer(ThreadingHTTPServer):
    """Serves on a free loopback port until closed.

    ``seen`` holds what each request sent: its id, prompt words and ``max_tokens``. Every ``fail_every``-th request (1:
    all of them) is answered with status 500.
    """

    daemon_threads = True

    def __init__(self, fail_every=0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen, self.fail_every, self.lock = [], fail_every, threading.Lock()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.thread.join()
        self.server_close()

    def note(self, request_id, body):
        with self.lock:
            words = len(body["prompt"].split())
            self.seen.append({"id": request_id, "prompt_tokens": words, "max_tokens": body["max_tokens"]})
            return self.fail_every and len(self.seen) % self.fail_every == 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.plain(404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions":
            return self.plain(404)
        if self.server.note(self.headers.get("x-request-id"), body):
            return self.plain(500)
        return self.stream(body)

    def plain(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def stream(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for token in range(body["max_tokens"]):
            self.event({"choices": [{"index": 0, "text": f"t{token} "}]})
        prompt_tokens = len(body["prompt"].split())
        self.event({"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": body["max_tokens"]}})
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, document):
        self.chunk(b"data: " + json.dumps(document).encode() + b"\n\n")

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def log_message(self, *_):
        pass
