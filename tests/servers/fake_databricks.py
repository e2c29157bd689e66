"""A Databricks workspace as MLflow's and Databricks' Python clients see it, which rejects what they would not send.

It checks each request: a login on the workspace's endpoints and none on signed addresses, JSON bodies without unknown
fields (Python rejects unknown keyword arguments), and the workspace id.
"""

import time
import urllib.parse
import uuid

from fake_mlflow import FakeMlflow, Rejected

TOKEN = "canary-databricks-token-3391"
CLIENT = ("client-77", "canary-client-secret-8812")
WORKSPACE = "1234567890"
SIGNATURE = "canary-signature-4471"
ME = "ann@example.com"
TRACES = "/api/4.0/mlflow/traces/"


class FakeDatabricks(FakeMlflow):
    """`stores` gets the uploads by file name. `kind` is the cloud: AWS, GCP, AZURE or ADLS."""

    TYPES = {"AWS": "AWS_PRESIGNED_URL", "GCP": "GCP_SIGNED_URL", "AZURE": "AZURE_SAS_URI",
             "ADLS": "AZURE_ADLS_GEN2_SAS_URI"}

    def __init__(self, tls, kind="AWS", token_seconds=3600, fault=None):
        super().__init__(fault, tls)
        self.kind, self.token_seconds = kind, token_seconds
        self.folders = {"/Shared", f"/Users/{ME}"}
        self.tokens, self.problems, self.storage = {TOKEN: float("inf")}, [], None
        self.models, self.catalog, self.versions, self.aliases = {}, {}, {}, {}
        self.schemas, self.locations = [], {}
        self.storage_mode = "DEFAULT_STORAGE"

    def artifact_uri(self, experiment, run):
        return f"dbfs:/databricks/mlflow-tracking/{experiment}/{run}/artifacts"

    def reply(self, request):
        try:
            self.require_login(request)
        except Rejected as error:
            return request.answer(error.status, {"error_code": error.code, "message": error.message})
        try:
            super().reply(request)
        except (TypeError, ValueError, KeyError) as error:
            self.problems.append(f"{request.method} {request.path}: {error}")
            request.answer(400, {"error_code": "MALFORMED_REQUEST", "message": str(error)})

    def require_login(self, request):
        if request.path == "/oidc/v1/token":
            return
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or self.tokens.get(token, 0) < time.monotonic():
            raise Rejected(401, "UNAUTHENTICATED", "Credential was not sent or was of an unsupported type")
        if request.headers.get("x-databricks-org-id") != WORKSPACE:
            self.problems.append(f"{request.path} without the workspace id")

    def call(self, request):
        if request.path == "/oidc/v1/token":
            return self.new_token(request)
        if request.path == "/api/2.0/preview/scim/v2/Me":
            return {"userName": ME, "active": True}
        if request.path == "/api/2.0/workspace/get-status":
            if request.query["path"] not in self.folders:
                raise Rejected(404, "RESOURCE_DOES_NOT_EXIST", f"Path ({request.query['path']}) doesn't exist.")
            return {"object_type": "DIRECTORY", "path": request.query["path"]}
        if request.path == "/api/2.0/fs/create-upload-url":
            return self.upload_url(**request.json())
        if request.path.startswith("/api/2.0/fs/files/Models/") and request.method == "PUT":
            self.catalog[urllib.parse.unquote(request.path.removeprefix("/api/2.0/fs/files"))] = request.body
            return {}
        parts = request.path.split("/")
        if parts[4:5] == ["logged-models"] and parts[-1] == "credentials-for-upload":
            infos = self.signed("model " + parts[5], **request.json(), key="paths")
            return {"credentials": [{"credential_info": info} for info in infos]}
        if parts[4:5] == ["logged-models"] and request.method == "PATCH":
            self.models[parts[5]]["status"] = request.json()["status"]
            return {"model": {"info": self.models[parts[5]]}}
        if request.path == "/api/2.0/otel/v1/traces":
            self.receive_spans(request, request.headers["X-Databricks-UC-Table-Name"])
            return {}
        if request.path.startswith(TRACES):
            return self.trace_location(request.path.removeprefix(TRACES), **request.json())
        if "mlflow-artifacts" in request.path or request.path.startswith("/v1/"):
            raise Rejected(404, "ENDPOINT_NOT_FOUND")
        return super().call(request)

    def new_token(self, request):
        import base64
        expected = "Basic " + base64.b64encode(":".join(CLIENT).encode()).decode()
        if request.headers.get("Authorization") != expected:
            raise Rejected(401, "invalid_client", "Client authentication failed")
        form = dict(urllib.parse.parse_qsl(request.body.decode(), strict_parsing=True))
        if form != {"grant_type": "client_credentials", "scope": "all-apis"}:
            self.problems.append(f"token request {form}")
        token = "canary-oauth-" + uuid.uuid4().hex
        self.tokens[token] = time.monotonic() + self.token_seconds
        return {"access_token": token, "token_type": "Bearer", "expires_in": self.token_seconds}

    def trace_location(self, path, uc_schema=None, **body):
        """Tables for spans, their experiments and their runs."""
        if path == "location":
            if uc_schema in self.schemas:
                raise Rejected(409, "ALREADY_EXISTS")
            self.warehouse = body.get("sql_warehouse_id")
            self.schemas.append(uc_schema)
            return {"uc_schema": uc_schema}
        place, _, action = path.partition("/")
        if action == "link-location":
            self.locations[body["experiment_id"]] = f"{uc_schema['catalog_name']}.{uc_schema['schema_name']}"
        elif action == "link-to-run/batchCreate" and place == body["location_id"]:
            self.POST_traces_link_to_run(body["trace_ids"], body["run_id"])
        else:
            raise Rejected(404, "ENDPOINT_NOT_FOUND", path)
        return {}

    def POST_experiments_create(self, name):
        if not name.startswith("/"):
            raise Rejected(400, "INVALID_PARAMETER_VALUE", f"Got an invalid experiment name '{name}'.")
        if name.rpartition("/")[0] not in self.folders:
            raise Rejected(404, "RESOURCE_DOES_NOT_EXIST", "Workspace directory does not exist.")
        return super().POST_experiments_create(name)

    def POST_artifacts_credentials_for_write(self, run_id, path):
        self.run(run_id)
        return {"credential_infos": self.signed("run " + run_id, path=path)}

    def POST_logged_models(self, experiment_id, name, model_type, source_run_id, tags):
        model = "m-" + uuid.uuid4().hex
        self.models[model] = {"model_id": model, "status": "LOGGED_MODEL_PENDING", "experiment_id": experiment_id,
                              "artifact_uri": f"dbfs:/databricks/mlflow-tracking/{experiment_id}/logged_models/{model}"}
        return {"model": {"info": self.models[model]}}

    def POST_runs_outputs(self, run_id, models):
        self.run(run_id)["outputs"] = models
        return {}

    def POST_unity_catalog_registered_models_create(self, name):
        if name in self.versions:
            raise Rejected(400, "RESOURCE_ALREADY_EXISTS")
        if name.count(".") != 2:
            raise Rejected(400, "INVALID_PARAMETER_VALUE", "specify all three levels")
        self.versions[name] = []
        return {"registered_model": {"name": name}}

    def POST_unity_catalog_model_versions_create(self, name, source, run_id, model_id):
        self.run(run_id)
        self.versions[name].append({"model": model_id, "source": source, "status": "PENDING_REGISTRATION"})
        return {"model_version": {"name": name, "version": str(len(self.versions[name])),
                                  "status": "PENDING_REGISTRATION", "storage_location": "s3://bucket/models/1"}}

    def POST_unity_catalog_model_versions_generate_temporary_credentials(self, name, version, operation):
        if operation != "MODEL_VERSION_OPERATION_READ_WRITE":
            raise Rejected(400, "INVALID_PARAMETER_VALUE")
        return {"credentials": {"storage_mode": self.storage_mode, "aws_temp_credentials": {"session_token": SIGNATURE}}}

    def POST_unity_catalog_model_versions_finalize(self, name, version):
        self.versions[name][int(version) - 1]["status"] = "READY"
        return {}

    def POST_unity_catalog_registered_models_alias(self, name, alias, version):
        if self.versions[name][int(version) - 1]["status"] != "READY":
            self.problems.append("an alias of a version that is not ready")
        self.aliases[alias] = version
        return {}

    def upload_url(self, path):
        return {"url": f"{self.storage.url}/bucket/{urllib.parse.quote(path)}?sig={SIGNATURE}",
                "headers": [{"name": "x-signed", "value": "yes"}]}

    def signed(self, owner, key="path", **body):
        paths, = [body.pop(key)]
        if body:
            raise TypeError(f"unknown fields {body}")
        infos = []
        for path in paths:
            target = urllib.parse.quote(f"{owner}/{path}")
            infos.append({"path": path, "type": self.TYPES[self.kind], "headers": [{"name": "x-signed", "value": "yes"}],
                          "signed_uri": f"{self.storage.url}/bucket/{target}?sig={SIGNATURE}"})
        return infos


class FakeStorage(FakeMlflow):
    """A cloud's object store: accepts signed uploads, and no login."""

    def __init__(self, tls, kind):
        super().__init__(tls=tls)
        self.kind, self.problems = kind, []

    def reply(self, request):
        headers = {name.lower(): value for name, value in request.headers.items()}
        action = request.query.get("action", request.query.get("resource", ""))
        problems = []
        if "authorization" in headers or "x-databricks-org-id" in headers:
            problems.append("a login was sent to the store")
        if headers.get("x-signed") != "yes" or request.query.get("sig") != SIGNATURE:
            problems.append("not signed")
        if (headers.get("x-ms-blob-type") == "BlockBlob") != (self.kind == "AZURE"):
            problems.append("x-ms-blob-type")
        if self.kind == "ADLS":
            steps = {"file": "PUT", "append": "PATCH", "flush": "PATCH"}
            if steps.get(action) != request.method:
                problems.append(f"{request.method} {action}")
        elif request.method != "PUT" or set(request.query) != {"sig"}:
            problems.append(request.method)
        path = urllib.parse.unquote(request.path).removeprefix("/bucket/")
        with self.lock:
            self.problems += [f"{path}: {problem}" for problem in problems]
            if action == "flush":
                if len(self.files[path]) != int(request.query["position"]):
                    self.problems.append(f"{path}: flushed at {request.query['position']}")
            else:
                self.files[path] = request.body
        request.answer(403 if problems else 201, f"<Error>{SIGNATURE}</Error>", "application/xml")
