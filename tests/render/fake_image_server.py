"""A server process that speaks the images protocol, well or badly: for test_image_server.py.

python fake_image_server.py MODE KEY    prints its port. An image is noise of the request's seed,
tinted by its prompt, so that a test can tell what was asked for. GET /seen: what was asked.
"""

import base64
import io
import json
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

mode, key = sys.argv[1], sys.argv[2]
lock = threading.Lock()
bodies: list[dict] = []
tries: dict[str, int] = {}
flying = most = 0


def image(body: dict) -> bytes:
    width, height = map(int, body["size"].split("x"))
    seed = [body.get("seed", time.time_ns()), zlib.crc32(body["prompt"].encode())]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/seen":
            self.answer(200, {"most": most, "bodies": bodies})
        elif mode == "no-list":
            self.answer(404, {"error": {"message": "no such page"}})
        else:
            self.answer(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    def do_POST(self) -> None:
        global flying, most
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            bodies.append(body)
            tries[body["prompt"]] = tries.get(body["prompt"], 0) + 1
            number = tries[body["prompt"]]
            flying += 1
            most = max(most, flying)
        time.sleep(5 if mode == "slow" else 0.1)
        with lock:
            flying -= 1
        data = base64.b64encode(image(body)).decode()
        if key != "-" and self.headers["Authorization"] != f"Bearer {key}":
            self.answer(401, {"error": {"message": "wrong " + self.headers["Authorization"]}})
        elif self.path != "/v1/images/generations":
            self.answer(404, {"error": {"message": f"no such page {self.path}"}})
        elif body["model"] != "tiny":
            self.answer(404, {"error": {"message": f"no model {body['model']}"}})
        elif mode == "busy" and number < 3:
            self.answer(429 if number == 1 else 503, {"error": {"message": "busy"}})
        elif mode == "echo":
            self.answer(400, {"error": {"message": "bad " + self.headers["Authorization"]}})
        elif mode == "prudish" and "gun" in body["prompt"]:
            error = {"message": "your request was rejected", "code": "moderation_blocked"}
            self.answer(400, {"error": error})
        elif mode == "strict" and (extra := set(body) - {"model", "prompt", "n", "size"}):
            self.answer(400, {"error": {"message": f"unknown parameters {sorted(extra)}"}})
        elif mode == "link":
            self.answer(200, {"created": 0, "data": [{"url": "http://127.0.0.1/1.png"}]})
        elif mode == "garbage":
            self.answer(200, {"surprise": True})
        elif mode == "truncated" and "bad" in body["prompt"]:
            self.answer(200, {"created": 0, "data": [{"b64_json": data[: len(data) // 8 * 4]}]})
        elif mode == "not-base64" and "bad" in body["prompt"]:
            self.answer(200, {"created": 0, "data": [{"b64_json": "?" + data}]})
        else:
            self.answer(200, {"created": 0, "data": [{"b64_json": data}]})

    def answer(self, status: int, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
