// Values in the answers of a server, which are checked before anything uses them.
#pragma once

#include <string>

#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>

namespace mlflow {

using dsv3::Json;

/// An answer that MLflow does not give. The message quotes nothing of it.
class BadAnswer : public dsv3::Error {
 public:
  explicit BadAnswer(const std::string& what)
      : Error("the server's answer is not that of MLflow: " + what) {}
};

/// The object at `key`. Throws BadAnswer if there is none.
const Json& object_in(const Json& answer, const char* key);
/// The array at `key`; empty if the key is missing or null. Throws BadAnswer for another type.
Json array_in(const Json& answer, const char* key);
/// The text at `key`; "" if the key is missing or null. Throws BadAnswer for another type.
std::string text_in(const Json& answer, const char* key);
/// The id at `key`. It is safe in URLs, paths and logs: up to 128 letters, digits, `_` and `-`.
/// Throws BadAnswer for anything else.
std::string id_in(const Json& answer, const char* key);

/// The path below /mlflow-artifacts/artifacts/ of an artifact URI such as
/// mlflow-artifacts:/1/ID/artifacts. Empty for other stores, which clients write to themselves.
/// Throws BadAnswer for a path with `..` or other parts that servers do not create.
std::string artifact_path(const std::string& uri);

}  // namespace mlflow
