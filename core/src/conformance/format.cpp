// Promises of formats of Hugging Face models.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>

#include <ATen/ATen.h>
#include <c10/util/accumulate.h>

#include <dsv3/runtime/model.h>
#include <dsv3/sdk/format.h>
#include <dsv3/support/json.h>

#include "conformance/suite.h"
#include "format/description.h"
#include "format/folder.h"

namespace dsv3::conformance {
namespace {

using Choices = std::vector<std::string>;

std::vector<Json> examples_of(const Format& format) {
  const std::vector<Json> examples = format.examples();
  require(!examples.empty(), "it gives no examples, so nothing can be checked");
  return examples;
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
    require_same(format->describe(without_common_fields(config)), model,
                 "when it is written and read again");
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

/// Every parameter and buffer as [rows, columns], sharing the model's memory.
using Values = std::map<std::string, at::Tensor>;

Values values_of(const Model& model) {
  Values values;
  const auto add = [&](const std::string& name, const at::Tensor& tensor) {
    values[name] = tensor.detach().view({-1, tensor.dim() == 0 ? 1 : tensor.size(-1)});
  };
  for (const Parameter& parameter : model.store().parameters())
    add(parameter.name, parameter.tensor);
  for (const Buffer& buffer : model.store().buffers()) add(buffer.name, buffer.tensor);
  return values;
}

at::Tensor rows_in(const TensorPlace& place) {
  const at::Tensor index = row_index(place);
  return index.defined() ? index : at::arange(place.first_row, place.first_row + rows_of(place));
}

/// A model with its description, as an experiment builds it.
struct Built {
  Built(const ModelDescription& asked, Plugins& plugins)
      : experiment(experiment_of(asked, "example", {}, {}, plugins)),
        model(experiment, asked.vocab, plugins, at::kCPU),
        description(describe_model(experiment, asked.vocab, plugins)),
        values(values_of(model)) {
    model.initialise(1);
  }

  /// Throws Violation unless `places` hold every value once, and nothing else.
  void require_whole(const std::vector<TensorPlace>& places) const {
    std::map<std::string, int64_t> held;
    for (const TensorPlace& place : places) {
      const auto found = values.find(place.source);
      require(found != values.end(), "'" + place.name + "' is stored in '" + place.source +
                                         "', which the model does not have");
      require(place.shape.back() == found->second.size(1) &&
                  rows_in(place).max().item<int64_t>() < found->second.size(0),
              "'" + place.name + "' does not fit into '" + place.source + "'");
      if (!place.copy) held[place.source] += rows_of(place);
    }
    for (const auto& [name, rows] : values)
      require(held[name] == rows.size(0), "rows of '" + name + "' are stored nowhere");
  }

  Experiment experiment;
  Model model;
  ModelDescription description;
  Values values;
};

at::Tensor tokens_of(const Built& built) {
  return at::arange(24).mul(7).remainder(built.model.vocab()).view({2, 12});
}

void require_same_logits(Built& a, Built& b, const std::string& when) {
  const at::Tensor tokens = tokens_of(a);
  std::vector<at::Tensor> all{a.model.logits(tokens), b.model.logits(tokens)};
  if (a.experiment.mtp.depth > 0) {
    all.push_back(a.model.mtp_logits(tokens));
    all.push_back(b.model.mtp_logits(tokens));
  }
  for (size_t i = 0; i < all.size(); i += 2)
    require(at::allclose(all[i], all[i + 1], 1e-4, 1e-6, /*equal_nan=*/true),
            "a model computes something else after it was written and read, " + when);
}

/// Writes a model and reads it back as the core does, but in memory.
void require_way_back(const Format& format, const ModelDescription& asked, Plugins& plugins,
                      const std::string& when) {
  Built before(asked, plugins);
  if (!format.obstacles(before.description).empty()) return;
  const std::vector<TensorPlace> written = format.tensors(before.description);
  before.require_whole(written);
  std::map<std::string, at::Tensor> stored;
  for (const TensorPlace& place : written)
    if (place.written)
      stored[place.name] = before.values.at(place.source).index_select(0, rows_in(place));

  ModelDescription read =
      format.describe(without_common_fields(format.config(before.description, {1, 2})));
  Built after(read, plugins);
  for (const auto& [name, values] : after.values) values.fill_(std::nan(""));
  const std::vector<TensorPlace> places = format.tensors(after.description);
  after.require_whole(places);
  for (const TensorPlace& place : places) {
    if (place.copy) continue;
    require(stored.contains(place.name), "it reads '" + place.name + "' but does not write it");
    after.values.at(place.source).index_copy_(0, rows_in(place), stored.at(place.name));
  }
  require_same_logits(before, after, when);
}

/// `model` with another choice for each option of its components that is a convention.
void vary(const ModelDescription& model, Plugins& plugins,
          const std::function<void(const ModelDescription&, const std::string&)>& use) {
  const auto vary_component = [&](Kind kind, const std::string& plugin, auto change) {
    ComponentSpec spec;
    spec.kind = kind;
    spec.plugin = plugin;
    for (const OptionSpec& option : plugins.find(spec).schema->options)
      for (const std::string& choice : option.convention ? option.choices : Choices()) {
        ModelDescription other = model;
        change(other, option.key, choice);
        use(other, std::string("with ") + kind_name(kind) + " " + plugin + "'s " + option.key +
                       ": " + choice);
      }
  };
  const auto in_layers = [&](Kind kind, std::vector<ComponentDescription> ModelDescription::*list) {
    std::set<std::string> names;
    for (const ComponentDescription& each : model.*list) names.insert(each.plugin);
    for (const std::string& name : names)
      vary_component(kind, name, [&](ModelDescription& other, const std::string& key, auto choice) {
        for (ComponentDescription& each : other.*list)
          if (each.plugin == name) each.options[key] = choice;
      });
  };
  in_layers(Kind::attention, &ModelDescription::attention);
  in_layers(Kind::feed_forward, &ModelDescription::feed_forward);
  vary_component(Kind::position, model.position.plugin,
                 [](ModelDescription& other, const std::string& key, auto choice) {
                   other.position.options[key] = choice;
                 });
}

// What a format cannot express under one convention, it lays down anew under its own, such as
// features in another order: the model must compute the same.
void check_way_back(const Subject& subject) {
  const auto format = make<Format>(subject);
  Plugins plugins(subject.levels);
  for (const Json& example : examples_of(*format)) {
    const ModelDescription model = format->describe(example);
    require_way_back(*format, model, plugins, "as an example has it");
    vary(model, plugins, [&](const ModelDescription& other, const std::string& when) {
      require_way_back(*format, other, plugins, when);
    });
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
          {"way_back", "leaves what a model computes as it is", check_way_back},
          {"memory", "gives its memory back", check_memory}};
}

}  // namespace dsv3::conformance
