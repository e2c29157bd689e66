"""A Databricks workspace as MLflow's and Databricks' Python clients see it, which rejects what they would not send.

It checks each request: a login on the workspace's endpoints and none on signed addresses, JSON bodies without unknown
fields (Python rejects unknown keyword arguments), and the workspace id.
"""

import base64
import time
import urllib.parse
import uuid
import xml.etree.ElementTree

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
        if parts[4:5] == ["logged-models"] and parts[-1] in ("credentials-for-upload", "credentials-for-download"):
            infos = self.signed("model " + parts[5], **request.json(), key="paths")
            return {"credentials": [{"credential_info": info} for info in infos]}
        if parts[4:5] == ["logged-models"] and parts[-1] == "directories":
            return self.listed("model " + parts[5], **request.query)
        if parts[4:5] == ["logged-models"] and len(parts) == 6:
            if request.method == "PATCH":
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

    POST_artifacts_credentials_for_read = POST_artifacts_credentials_for_write

    def GET_artifacts_list(self, run_id, path="", page_token=None):
        self.run(run_id)
        return self.listed("run " + run_id, path, page_token)

    def listed(self, owner, path="", page_token=None):
        """One folder of the store, two entries a page."""
        prefix = f"{owner}/{path}/" if path else owner + "/"
        names = [name.removeprefix(prefix) for name in list(self.storage.files) if name.startswith(prefix)]
        entries = sorted({name.partition("/")[0]: "/" in name for name in names}.items())
        first = int(page_token or 0)
        files = [{"path": f"{path}/{name}" if path else name, "is_dir": is_dir}
                 for name, is_dir in entries[first:first + 2]]
        return {"files": files} | ({"next_page_token": str(first + 2)} if first + 2 < len(entries) else {})

    def owner_of(self, run_id):
        """MLflow's client sends the id of a logged model as that of a run."""
        return ("model " if run_id in self.models else "run ") + run_id

    def part_of_upload(self, owner, path, upload_id, **query):
        info, = self.signed(owner, path=[path])
        query = urllib.parse.urlencode({"uploadId": upload_id} | query)
        return info | {"signed_uri": f"{info['signed_uri']}&{query}"}

    def POST_artifacts_create_multipart_upload(self, run_id, path, num_parts):
        if self.kind != "AWS":
            raise Rejected(400, "INVALID_PARAMETER_VALUE", "only AWS has multipart uploads")
        owner, upload = self.owner_of(run_id), uuid.uuid4().hex
        self.storage.uploads[upload] = {}
        return {"upload_id": upload, "abort_credential_info": self.part_of_upload(owner, path, upload),
                "upload_credential_infos": [self.part_of_upload(owner, path, upload, partNumber=number + 1)
                                            for number in range(num_parts)]}

    def GET_artifacts_get_presigned_upload_part_url(self, run_id, path, upload_id, part_number):
        info = self.part_of_upload(self.owner_of(run_id), path, upload_id, partNumber=part_number, renewed="yes")
        return {"upload_credential_info": info}

    def POST_artifacts_complete_multipart_upload(self, run_id, path, upload_id, part_etags):
        parts = self.storage.uploads.pop(upload_id)
        if part_etags != [{"part_number": n, "etag": f'"{len(parts[n])}"'} for n in sorted(parts)]:
            raise Rejected(400, "INVALID_PARAMETER_VALUE", f"the parts are not {part_etags}")
        self.storage.files[f"{self.owner_of(run_id)}/{path}"] = b"".join(parts[number] for number in sorted(parts))
        return {}

    def POST_logged_models(self, experiment_id, name, model_type, source_run_id, tags):
        model = "m-" + uuid.uuid4().hex
        self.models[model] = {"model_id": model, "name": name, "status": "LOGGED_MODEL_PENDING", "experiment_id": experiment_id,
                              "artifact_uri": f"dbfs:/databricks/mlflow-tracking/{experiment_id}/logged_models/{model}"}
        return {"model": {"info": self.models[model]}}

    def POST_runs_outputs(self, run_id, models):
        self.run(run_id)["outputs"] += models
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
    """A cloud's object store: accepts signed requests, and no login.

    `largest` is the size of the largest request. Requests for which `expired` is true are answered as if their address
    had expired.
    """

    SMALLEST_PART = 5 << 20

    def __init__(self, tls, kind):
        super().__init__(tls=tls)
        self.kind, self.problems = kind, []
        self.largest, self.expired = 1 << 40, lambda request: False
        self.uploads = {}  # parts of uploads that have begun, by number or block

    def reply(self, request):
        headers = {name.lower(): value for name, value in request.headers.items()}
        path = urllib.parse.unquote(request.path).removeprefix("/bucket/")
        problems = []
        if "authorization" in headers or "x-databricks-org-id" in headers:
            problems.append("a login was sent to the store")
        if headers.get("x-signed") != "yes" or request.query.pop("sig", "") != SIGNATURE:
            problems.append("not signed")
        if len(request.body) > self.largest:
            problems.append(f"{len(request.body)} bytes in one request")
        with self.lock:
            if self.expired(request):
                return request.answer(403, f"<Error>{SIGNATURE} has expired</Error>", "application/xml")
            try:
                content, answer = b"", {}
                if request.method == "GET":
                    content = self.files[path]
                else:
                    answer = getattr(self, "store_" + self.kind)(request, path, headers) or {}
            except (AssertionError, KeyError, ValueError) as error:
                problems.append(f"{request.method} {request.query}: {error!r}")
            self.problems += [f"{path}: {problem}" for problem in problems]
        if problems:
            request.answer(403, f"<Error>{SIGNATURE}</Error>", "application/xml")
        else:
            request.answer(200, content, "application/xml", **answer)

    def store_GCP(self, request, path, headers):
        assert request.method == "PUT" and not request.query and "x-ms-blob-type" not in headers
        self.files[path] = request.body

    def store_AWS(self, request, path, headers):
        upload = request.query.pop("uploadId", "")
        if not upload:
            return self.store_GCP(request, path, headers)
        if request.method == "DELETE":
            self.uploads.pop(upload)
            return {}
        request.query.pop("renewed", "")
        number = int(request.query.pop("partNumber"))
        assert request.method == "PUT" and not request.query
        earlier = self.uploads[upload].get(number - 1)
        assert earlier is None or len(earlier) >= self.SMALLEST_PART
        self.uploads[upload][number] = request.body
        return {"ETag": f'"{len(request.body)}"'}

    def store_AZURE(self, request, path, headers):
        action = request.query.pop("comp", "")
        assert request.method == "PUT" and (headers.get("x-ms-blob-type") == "BlockBlob") != (action == "blocklist")
        blocks = self.uploads.setdefault(path, {})
        if action == "block":
            block = request.query.pop("blockid")
            assert len(base64.b64decode(block, validate=True)) == 6
            blocks[block] = request.body
        elif action == "blocklist":
            names = [entry.text for entry in xml.etree.ElementTree.fromstring(request.body).findall("Uncommitted")]
            self.files[path] = b"".join(blocks[name] for name in names)
            del self.uploads[path]
        else:
            del self.uploads[path]
            self.files[path] = request.body
        assert not request.query

    def store_ADLS(self, request, path, headers):
        assert "x-ms-blob-type" not in headers
        if request.query.get("resource") == "file":
            assert request.method == "PUT"
            self.uploads[path] = b""
            return
        assert request.method == "PATCH" and int(request.query["position"]) == len(self.uploads[path])
        if request.query["action"] == "append":
            assert request.body
            self.uploads[path] += request.body
        else:
            assert request.query["action"] == "flush"
            self.files[path] = self.uploads.pop(path)
