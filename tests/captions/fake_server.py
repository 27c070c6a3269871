"""A server process that speaks the completions protocol, well or badly: for test_server_engine.py.

python fake_server.py MODE    prints its port; MODE: good | busy | broken | garbage | html | slow
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

mode = sys.argv[1]
lock = threading.Lock()
seen: dict[str, int] = {}
flying = most = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/most":
            self.answer(200, {"most": most})
        elif mode == "html":
            self.answer(200, "<html>hello</html>", "text/html")
        else:
            self.answer(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    def do_POST(self) -> None:
        global flying, most
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = asked["prompt"] if "prompt" in asked else asked["messages"][0]["content"]
        with lock:
            seen[prompt] = seen.get(prompt, 0) + 1
            tries = seen[prompt]
            flying += 1
            most = max(most, flying)
        time.sleep(5 if mode == "slow" else 0.02)
        with lock:
            flying -= 1
        if mode == "busy" and tries < 3:
            self.answer(429 if tries == 1 else 503, {"error": {"message": "busy"}})
        elif mode == "broken":
            self.answer(400, {"error": {"message": "context too long"}})
        elif mode == "garbage":
            self.answer(200, {"surprise": True})
        elif asked["model"] != "tiny":
            self.answer(404, {"error": {"message": f"no model {asked['model']}"}})
        else:
            last = prompt.rsplit("\n", 1)[-1].split(" =>")[0]
            text = f" A {last}, seed {asked['seed']}, {asked['max_tokens']} tokens."
            part = (
                {"text": text}
                if "prompt" in asked
                else {"message": {"role": "assistant", "content": text}}
            )
            whole = {"id": "1", "object": "text_completion", "created": 0, "model": "tiny"}
            stop = {"index": 0, "finish_reason": "stop", "logprobs": None}
            self.answer(200, {**whole, "choices": [{**stop, **part}]})

    def answer(self, status: int, body: object, kind: str = "application/json") -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
