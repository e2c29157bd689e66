from mlflow_server import mlflow_server  # noqa: F401
