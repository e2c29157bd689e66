from installation import BUILD, SOURCE, VENV, no_namespaces, prefix, run, third_party  # noqa: F401
