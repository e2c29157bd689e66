#include "train/run_state.h"

#include <c10/util/StringUtil.h>

#include <dsv3/sdk/error.h>
#include <dsv3/support/sha256.h>

namespace dsv3 {

std::string hash_of_documents(Json initial_state) {
  if (initial_state.is_object())
    for (const char* key : {"seed", "selection"}) initial_state.erase(key);
  return sha256(initial_state.dump());
}

Json RunState::to_json() const {
  return {{"data", data},
          {"updates", updates},
          {"init_hash", init_hash},
          {"data_hash", data_hash},
          {"callbacks", callbacks},
          {"stopped", stopped},
          {"cut_short", cut_short},
          {"unrecorded", unrecorded},
          {"validation_hash", validation_hash},
          {"skipped_in_row", skipped_in_row}};
}

RunState RunState::from_json(const Json& manifest) {
  const Json& state = manifest.at("state");
  RunState read{.step = manifest.at("step").get<int64_t>(),
                .tokens = manifest.at("tokens").get<int64_t>(),
                .updates = state.at("updates").get<int64_t>(),
                .data = state.at("data"),
                .init_hash = state.at("init_hash").get<std::string>(),
                .data_hash = state.at("data_hash").get<std::string>(),
                .skipped_in_row = state.value("skipped_in_row", int64_t{0}),
                .validation_hash = state.value("validation_hash", ""),
                .callbacks = state.value("callbacks", Json::array()),
                .stopped = state.value("stopped", ""),
                .cut_short = state.value("cut_short", ""),
                .unrecorded = state.value("unrecorded", Json::array())};
  if (read.updates < 0 || read.updates > read.step)
    throw Error(c10::str("the manifest says that ", read.updates, " of ", read.step,
                         " steps updated the parameters; use another checkpoint"),
                ExitCode::checkpoint);
  return read;
}

}  // namespace dsv3
