"""A small MLflow server that can misbehave: it stores what it receives, unless `fault` answers instead."""

import contextlib
import http.server
import json
import socket
import ssl
import subprocess
import threading
import urllib.parse
import uuid

API = "/api/2.0/mlflow/"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"


class Rejected(Exception):
    """An answer with an MLflow error."""

    def __init__(self, status, code, message=""):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message or code


class Request:
    def __init__(self, handler):
        self.method, self.headers = handler.command, dict(handler.headers.items())
        url = urllib.parse.urlsplit(handler.path)
        self.path, self.query = url.path, dict(urllib.parse.parse_qsl(url.query))
        self.body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.client = handler

    def json(self):
        if self.headers.get("Content-Type") != "application/json":
            raise Rejected(400, "BAD_REQUEST", "Content-Type is not application/json")
        return json.loads(self.body)

    def answer(self, status, body, content_type="application/json", **headers):
        if not isinstance(body, bytes):
            body = (body if isinstance(body, str) else json.dumps(body)).encode()
        handler = self.client
        handler.send_response(status)
        headers = {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)


class FakeMlflow:
    """`fault(request)` may answer a request and returns whether it did. `requests` has all requests."""

    def __init__(self, fault=None, tls=None):
        self.fault, self.requests = fault, []
        self.experiments, self.runs, self.files = {}, {}, {}
        self.spans, self.linked = [], {}
        self.lock, self.ended = threading.Lock(), threading.Event()
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self):
                # Clients that abort, and faults that close the connection.
                with contextlib.suppress(ConnectionError, ssl.SSLError, ValueError, OSError):
                    super().handle_one_request()
                    return
                self.close_connection = True

            def serve(self):
                request = Request(self)
                with fake.lock:
                    fake.requests.append(request)
                if not (fake.fault and fake.fault(request)):
                    fake.reply(request)

            do_GET = do_POST = do_PUT = do_PATCH = do_HEAD = do_DELETE = serve

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_port
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self):
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()

    def reply(self, request):
        try:
            with self.lock:
                content = self.call(request)
            request.answer(200, content)
        except Rejected as error:
            request.answer(error.status, {"error_code": error.code, "message": error.message})

    def call(self, request):
        """Return the answer to a request."""
        if request.path.startswith(ARTIFACTS) and request.method == "PUT":
            self.files[urllib.parse.unquote(request.path.removeprefix(ARTIFACTS))] = request.body
            return {}
        if request.path == "/v1/traces" and request.method == "POST":
            self.receive_spans(request, request.headers["x-mlflow-experiment-id"])
            return {}
        name = request.path.removeprefix(API).replace("/", "_").replace("-", "_")
        endpoint = getattr(self, f"{request.method}_{name}", None)
        if endpoint is None:
            raise Rejected(404, "ENDPOINT_NOT_FOUND", request.path)
        return endpoint(**(request.query if request.method == "GET" else request.json()))

    def receive_spans(self, request, place):
        """Decode spans as OpenTelemetry's own library does. Without it, the request only has to be acceptable."""
        if request.headers.get("Content-Type") != "application/x-protobuf":
            raise Rejected(400, "BAD_REQUEST", "Content-Type is not application/x-protobuf")
        with contextlib.suppress(ImportError):
            from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
            spans = ExportTraceServiceRequest.FromString(request.body).resource_spans[0].scope_spans[0].spans
            self.spans += [(place, span.name, span.trace_id.hex()) for span in spans]

    def POST_traces_link_to_run(self, trace_ids, run_id):
        self.run(run_id)
        self.linked |= {trace: run_id for trace in trace_ids}
        return {}

    def new_experiment(self, name):
        self.experiments[name] = str(len(self.experiments) + 1)
        return self.experiments[name]

    def GET_experiments_get_by_name(self, experiment_name):
        if experiment_name not in self.experiments:
            raise Rejected(404, "RESOURCE_DOES_NOT_EXIST")
        return {"experiment": {"experiment_id": self.experiments[experiment_name], "name": experiment_name,
                               "lifecycle_stage": "active"}}

    def GET_experiments_get(self, experiment_id):
        for name, known in self.experiments.items():
            if known == experiment_id:
                return self.GET_experiments_get_by_name(name)
        raise Rejected(404, "RESOURCE_DOES_NOT_EXIST", f"No Experiment with id={experiment_id} exists")

    def POST_experiments_create(self, name):
        if name in self.experiments:
            raise Rejected(400, "RESOURCE_ALREADY_EXISTS")
        return {"experiment_id": self.new_experiment(name)}

    def artifact_uri(self, experiment, run):
        return f"mlflow-artifacts:/{experiment}/{run}/artifacts"

    def POST_runs_create(self, experiment_id, run_name, start_time, tags):
        run = uuid.uuid4().hex
        self.runs[run] = {"info": {"run_id": run, "experiment_id": experiment_id, "run_name": run_name,
                                   "start_time": start_time, "status": "RUNNING", "lifecycle_stage": "active",
                                   "artifact_uri": self.artifact_uri(experiment_id, run)},
                          "tags": {tag["key"]: tag["value"] for tag in tags}, "params": {}, "metrics": [], "inputs": [],
                          "outputs": []}
        return self.GET_runs_get(run)

    def run(self, run_id):
        if run_id not in self.runs:
            raise Rejected(404, "RESOURCE_DOES_NOT_EXIST", f"Run with id={run_id} not found")
        return self.runs[run_id]

    def GET_runs_get(self, run_id):
        run = self.run(run_id)
        data = {key: [{"key": name, "value": value} for name, value in run[key].items()] for key in ("tags", "params")}
        last = {point["key"]: point for point in sorted(run["metrics"], key=lambda point: point["step"])}
        return {"run": {"info": run["info"], "data": data | {"metrics": list(last.values())},
                        "outputs": {"model_outputs": run["outputs"]}}}

    def POST_runs_search(self, experiment_ids, filter, run_view_type, max_results):
        uid = filter.removeprefix("tags.`dsv3.run_uid` = '").removesuffix("'")
        return {"runs": [self.GET_runs_get(id)["run"] for id, run in self.runs.items()
                         if run["info"]["experiment_id"] in experiment_ids and run["tags"]["dsv3.run_uid"] == uid]}

    def POST_runs_update(self, run_id, status, end_time=None):
        self.run(run_id)["info"] |= {"status": status} | ({"end_time": end_time} if end_time else {})
        return {"run_info": self.run(run_id)["info"]}

    def POST_runs_log_batch(self, run_id, metrics=(), params=(), tags=()):
        run = self.run(run_id)
        # MLflow stores equal points once.
        run["metrics"] += [point for point in metrics if point not in run["metrics"]]
        run["params"] |= {entry["key"]: entry["value"] for entry in params}
        run["tags"] |= {entry["key"]: entry["value"] for entry in tags}
        return {}

    def POST_runs_log_inputs(self, run_id, datasets):
        self.run(run_id)["inputs"] += datasets
        return {}


def make_certificate(folder, name="server", subject="IP:127.0.0.1,DNS:localhost", days=1, issuer=None):
    """Write a certificate and its key, signed by `issuer` or else by itself. Return (certificate, key)."""
    certificate, key, request = (folder / f"{name}{suffix}" for suffix in (".pem", ".key", ".csr"))
    extensions = folder / f"{name}.ext"
    extensions.write_text(f"subjectAltName={subject}\nbasicConstraints=CA:{'FALSE' if issuer else 'TRUE'}\n")

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
    openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
            "-keyout", key, "-out", request)
    signer = ["-CA", issuer[0], "-CAkey", issuer[1], "-CAcreateserial"] if issuer else ["-signkey", key]
    openssl("x509", "-req", "-in", request, "-out", certificate, "-days", days, "-extfile", extensions, *signer)
    return certificate, key


def tls_context(certificate, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


class ClosingServer:
    """Closes each connection when the client has sent something, as a load balancer without servers does."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self.listener.getsockname()[1]}"
        self.requests = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                with client, contextlib.suppress(OSError):
                    client.recv(1 << 16)

    def close(self):
        self.listener.close()
