#include "train/run_state.h"

namespace dsv3 {

Json RunState::to_json() const {
  return {{"data", data},           {"updates", updates},      {"init_hash", init_hash},
          {"data_hash", data_hash}, {"callbacks", callbacks},  {"stopped", stopped},
          {"cut_short", cut_short}, {"unrecorded", unrecorded}};
}

RunState RunState::from_json(const Json& manifest) {
  const Json& state = manifest.at("state");
  return {.step = manifest.at("step").get<int64_t>(),
          .tokens = manifest.at("tokens").get<int64_t>(),
          .updates = state.at("updates").get<int64_t>(),
          .data = state.at("data"),
          .init_hash = state.at("init_hash").get<std::string>(),
          .data_hash = state.at("data_hash").get<std::string>(),
          .callbacks = state.value("callbacks", Json::array()),
          .stopped = state.value("stopped", ""),
          .cut_short = state.value("cut_short", ""),
          .unrecorded = state.value("unrecorded", Json::array())};
}

}  // namespace dsv3
