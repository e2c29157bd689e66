// Promises of formats of Hugging Face models.
#include <algorithm>
#include <map>
#include <set>

#include <ATen/core/Tensor.h>
#include <c10/util/accumulate.h>

#include <dsv3/sdk/format.h>
#include <dsv3/support/json.h>

#include "conformance/suite.h"
#include "format/folder.h"

namespace dsv3::conformance {
namespace {

std::vector<Json> examples_of(const Format& format) {
  const std::vector<Json> examples = format.examples();
  require(!examples.empty(), "it gives no examples, so nothing can be checked");
  return examples;
}

Json own_fields(Json config) {
  for (auto field = config.begin(); field != config.end();)
    field = is_common_field(field.key()) ? config.erase(field) : std::next(field);
  return config;
}

void require_same(const ModelDescription& a, const ModelDescription& b, const std::string& when) {
  require(a.hidden == b.hidden && a.layers == b.layers && a.vocab == b.vocab &&
              a.tied_head == b.tied_head && a.norm_eps == b.norm_eps &&
              a.norm_place == b.norm_place && a.init_std == b.init_std &&
              a.mtp_depth == b.mtp_depth && a.mtp_concat == b.mtp_concat &&
              a.sequence == b.sequence,
          "sizes of the model change " + when);
  require(a.attention == b.attention, "attention changes " + when);
  require(a.feed_forward == b.feed_forward, "feed_forward changes " + when);
  require(a.position == b.position, "position changes " + when);
}

void check_round_trip(const Subject& subject) {
  const auto format = make<Format>(subject);
  for (const Json& example : examples_of(*format)) {
    const ModelDescription model = format->describe(example);
    require(int64_t(model.attention.size()) == model.layers &&
                int64_t(model.feed_forward.size()) == model.layers,
            "describe() does not give a component for each layer");
    const std::vector<std::string> obstacles = format->obstacles(model);
    require(obstacles.empty(), "it reads a model that it says it cannot write: " +
                                   (obstacles.empty() ? "" : obstacles.front()));
    const Json config = format->config(model, {1, 2});
    require(config.value("model_type", "") == subject.component.name,
            "config() writes another model_type than the plugin's name");
    require(config.contains("architectures"), "config() writes no \"architectures\"");
    require_same(format->describe(own_fields(config)), model, "when it is written and read again");
  }
}

// A field that nobody reads would be a model that is not what its file says.
void check_strictness(const Subject& subject) {
  const auto format = make<Format>(subject);
  const auto refused = [&](const Json& config) {
    try {
      format->describe(config);
    } catch (const Error&) {
      return true;
    }
    return false;
  };
  for (const Json& example : examples_of(*format)) {
    Json unknown = example;
    unknown["clip_qkv_of_the_future"] = 8;
    require(refused(unknown), "describe() ignores a field that it does not know");
    for (const auto& [name, value] : example.items()) {
      Json mistyped = example;
      mistyped[name] = Json::array({value});
      require(refused(mistyped), "describe() takes a list for \"" + name + "\"");
    }
  }
}

int64_t rows_of(const TensorPlace& place) {
  if (place.shape.size() < 2) return 1;
  return c10::multiply_integers(place.shape.begin(), place.shape.end() - 1);
}

void check_places(const Subject& subject) {
  const auto format = make<Format>(subject);
  for (const Json& example : examples_of(*format)) {
    std::set<std::string> names;
    std::map<std::string, std::vector<bool>> filled;
    std::map<std::string, int64_t> columns;
    for (const TensorPlace& place : format->tensors(format->describe(example))) {
      require(names.insert(place.name).second, "two tensors are named '" + place.name + "'");
      const int64_t rows = rows_of(place);
      require(place.rows.empty() || int64_t(place.rows.size()) == rows,
              "'" + place.name + "' has " + std::to_string(rows) + " rows and places for " +
                  std::to_string(place.rows.size()));
      const int64_t width = place.shape.empty() ? 1 : place.shape.back();
      require(columns.emplace(place.source, width).first->second == width,
              "'" + place.name + "' has other columns than the rest of '" + place.source + "'");
      if (place.copy) continue;
      std::vector<bool>& there = filled[place.source];
      for (int64_t row = 0; row < rows; ++row) {
        const size_t at = size_t(place.first_row + (place.rows.empty() ? row : place.rows[row]));
        if (at >= there.size()) there.resize(at + 1);
        require(!there[at], "'" + place.name + "' fills row " + std::to_string(at) + " of '" +
                                place.source + "' again");
        there[at] = true;
      }
    }
    for (const auto& [source, there] : filled)
      require(std::find(there.begin(), there.end(), false) == there.end(),
              "rows of '" + source + "' are stored nowhere");
  }
}

void check_memory(const Subject& subject) {
  require_steady_memory([&] {
    const auto format = make<Format>(subject);
    format->tensors(format->describe(format->examples().front()));
  });
}

}  // namespace

std::vector<Check> format_checks() {
  return {{"round_trip", "writes what it reads", check_round_trip},
          {"strictness", "refuses fields it does not know", check_strictness},
          {"places", "stores every value of a model once", check_places},
          {"memory", "gives its memory back", check_memory}};
}

}  // namespace dsv3::conformance
