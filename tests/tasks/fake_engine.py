"""A small real server with the interface of vLLM's that is used; FAKE_ENGINE or ``--faults`` says what is wrong.

``fake_engine.py serve MODEL FLAGS...``, ``fake_engine.py load`` (the load generator), ``fake_engine.py probe --out F``.
Standard library only; it runs as the engine's processes do, under the supervisor.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = set(os.environ.get("FAKE_ENGINE", "").split(","))
if sys.argv[1].startswith("--faults="):
    FAULTS |= set(sys.argv.pop(1).removeprefix("--faults=").split(","))
SECTIONS = {
    "parallel_config": ("tensor_parallel_size", "data_parallel_size", "enable_expert_parallel"),
    "model_config": ("dtype", "quantization", "max_model_len", "enforce_eager", "seed"),
    "cache_config": (
        "cache_dtype",
        "block_size",
        "enable_prefix_caching",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "num_gpu_blocks_override",
        "kv_offloading_size",
    ),
    "scheduler_config": (
        "max_num_seqs",
        "max_num_batched_tokens",
        "enable_chunked_prefill",
        "long_prefill_token_threshold",
        "watermark",
        "policy",
    ),
    "load_config": ("load_format",),
}


def say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def parsed(flags):
    values, names = {}, iter(flags)
    for flag in names:
        name = flag.removeprefix("--")
        if name.startswith(("enable-", "enforce-")):
            values[name.replace("-", "_")] = True
        elif name.startswith("no-"):
            values[name.removeprefix("no-").replace("-", "_")] = False
        else:
            value = next(names)
            number = value.count(".") < 2 and value.replace(".", "").isdigit()
            values[name.replace("-", "_")] = json.loads(value) if number else value
    return values


def resolved(values):
    values = {"max_model_len": 2048, **values}
    values["dtype"] = {"auto": "torch.bfloat16", "half": "torch.float16"}[values["dtype"]]
    values |= {"cache_dtype": values.get("kv_cache_dtype", "auto"), "policy": values.get("scheduling_policy")}
    if "wrong_config" in FAULTS:
        values["max_num_seqs"] = 7
    config = {section: {name: values.get(name) for name in names} for section, names in SECTIONS.items()}
    return config | {"offload_config": {"uva": {"cpu_offload_gb": values.get("cpu_offload_gb", 0.0)}}}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, values):
        super().__init__((values["host"], values["port"]), Handler)
        self.values, self.born, self.steps, self.lock = values, time.monotonic(), 0, threading.Lock()
        self.write({"record": "engine", "schema_version": 1, "vllm_version": "0.32.0", "pid": os.getpid()})

    def write(self, record):
        if "no_trace" in FAULTS:
            return
        with Path(os.environ["SRFA_TRACE_PATH"]).open("ab", buffering=0) as trace:
            trace.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")

    def complete(self, body):
        begin = time.monotonic_ns()
        with self.lock:
            self.steps += 1
            step = {"record": "step", "step_id": self.steps, "t_schedule_start_ns": begin}
            self.write(step | {"t_output_ns": time.monotonic_ns()})
        return {"usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        if "never_ready" in FAULTS or (path == "/health" and time.monotonic() < self.server.born + 0.3):
            return self.answer({}, 503)
        served = [{"id": self.server.values["served_model_name"]}]
        info = {"vllm_config": resolved(self.server.values), "system_env": {"vllm_version": "0.32.0"}, "vllm_env": {}}
        known = {"/health": {}, "/v1/models": {"data": served}, "/server_info": info}
        return self.answer(known.get(path, {}), 200 if path in known else 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if self.path == "/reset_prefix_cache":
            return self.answer({"success": True}, 200)
        loaded = "x-load" in self.headers
        if loaded and "dies_in_load" in FAULTS:
            say("the engine core is lost: out of memory")
            os._exit(3)
        if loaded and ("errors" in FAULTS or f"errors_{self.headers['x-load']}" in FAULTS):
            return self.answer({"error": "planted"}, 500)
        return self.answer(self.server.complete(body), 200)

    def answer(self, document, status):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def serve(arguments):
    if "dies" in FAULTS:
        sys.exit("planted: no such attention backend")
    if "tree" in FAULTS:
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(300)"], start_new_session=True)
    if "deaf" in FAULTS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Server(parsed(arguments[1:])).serve_forever()


def send(arguments):
    body = {"prompt": [1] * arguments["random_input_len"], "max_tokens": arguments["random_output_len"]}
    request = urllib.request.Request(f"{arguments['base_url']}/v1/completions", json.dumps(body).encode())
    request.add_header("x-load", str(arguments["random_input_len"]))
    begin = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            usage = json.load(answer)["usage"]
        return {**usage, "error": "", "latency": time.monotonic() - begin}
    except (urllib.error.URLError, ConnectionError) as error:
        return {"prompt_tokens": 0, "completion_tokens": 0, "error": str(error), "latency": 0.0}


def run_load(arguments, result_path):
    begin = time.monotonic_ns()
    sent = [send(arguments) for _ in range(arguments["num_prompts"])]
    completed = sum(not answer["error"] for answer in sent)
    result = {
        "completed": completed,
        "input_lens": [answer["prompt_tokens"] for answer in sent],
        "output_lens": [answer["completion_tokens"] for answer in sent],
        "errors": [answer["error"] for answer in sent],
    }
    Path(result_path).write_text(json.dumps(result))
    window = {"t_start_ns": begin, "t_end_ns": time.monotonic_ns()}
    return {**window, "completed": completed, "failed": len(sent) - completed, "result_path": result_path}


def load():
    say("some noise first")
    say(json.dumps({"ready": True}))
    for line in sys.stdin:
        if "load_hangs" in FAULTS:
            time.sleep(300)
        if "load_dies" in FAULTS:
            sys.exit("planted: the client is broken")
        request = json.loads(line)
        say(json.dumps(run_load(request["args"], request["result_path"])))


def probe(arguments):
    if "probe_fails" in FAULTS:
        sys.exit("planted: no such instruction")
    figures = {"bf16_tflops": 0.1, "threads": os.environ.get("OMP_NUM_THREADS")}
    Path(arguments[1]).write_text(json.dumps(figures))


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    {"serve": lambda: serve(rest), "load": load, "probe": lambda: probe(rest)}[verb]()
