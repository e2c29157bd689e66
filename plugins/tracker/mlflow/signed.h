// Transfers between a workspace's storage and this machine. Databricks signs an address for each.
#pragma once

#include "api.h"

namespace mlflow {

/// Requests an address from the workspace and uploads `request`'s body or file to it. `path` is
/// runs/ID/FILE or models/ID/FILE. The workspace's credential is not sent to that address. Large
/// files are sent in parts, except to Google Cloud, which needs none.
void put_signed(Api& api, dsv3::http::Request request, const std::string& path);

/// The same for a file in Unity Catalog's own storage: /Models/CATALOG/SCHEMA/MODEL/VERSION/FILE.
/// The storage limits a file to 5 GB.
void put_presigned(Api& api, dsv3::http::Request request, const std::string& path);

/// Downloads what put_signed() has uploaded, to `request`'s sink.
void get_signed(Api& api, dsv3::http::Request request, const std::string& path);

}  // namespace mlflow
