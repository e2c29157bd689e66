// Downloads a run, to resume it on another machine.
#pragma once

#include "api.h"

namespace mlflow {

/// Downloads the settings and the newest checkpoint of a run, as Tracker::download() describes.
/// Stores in `store` the last step of each metric on the server, as "received", because the run
/// repeats the steps after its checkpoint.
std::string download_run(Api& api, const std::string& id, const std::filesystem::path& folder,
                         dsv3::TrackerStore& store);

}  // namespace mlflow
