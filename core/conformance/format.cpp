// Conformance checks for Hugging Face model formats.
#include <cmath>
#include <map>
#include <set>
#include <tuple>

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

std::vector<Json> examples_of(const Format& format) {
  const std::vector<Json> examples = format.examples();
  require(!examples.empty(), "examples() is empty, so nothing can be checked");
  return examples;
}

void require_same(const ModelDescription& a, const ModelDescription& b) {
  const auto sizes = [](const ModelDescription& m) {
    return std::tie(m.hidden, m.layers, m.vocab, m.tied_head, m.norm_eps, m.norm_place, m.init_std,
                    m.mtp_depth, m.mtp_concat, m.sequence);
  };
  const char* change = " differs after writing and reading a model";
  require(sizes(a) == sizes(b), "the model's size", change);
  require(a.attention == b.attention, "attention", change);
  require(a.feed_forward == b.feed_forward, "feed_forward", change);
  require(a.position == b.position, "position", change);
}

int64_t rows_of(const TensorPlace& place) {
  if (place.shape.size() < 2) return 1;
  return c10::multiply_integers(place.shape.begin(), place.shape.end() - 1);
}

at::Tensor rows_in(const TensorPlace& place) {
  const at::Tensor index = row_index(place);
  return index.defined() ? index : at::arange(place.first_row, place.first_row + rows_of(place));
}

/// A model built from an experiment, with its description.
struct Built {
  Built(const ModelDescription& requested, Plugins& plugins)
      : experiment(experiment_of(requested, "example", {}, {}, plugins)),
        model(experiment, requested.vocab, factory_of(experiment, plugins), at::kCPU),
        description(describe_model(experiment, requested.vocab, plugins)) {
    model.initialise(1);
    const auto add = [&](const std::string& name, const at::Tensor& tensor) {
      values[name] = tensor.detach().view({-1, tensor.dim() == 0 ? 1 : tensor.size(-1)});
    };
    for (const Parameter& parameter : model.store().parameters())
      add(parameter.name, parameter.tensor);
    for (const Buffer& buffer : model.store().buffers()) add(buffer.name, buffer.tensor);
  }

  /// Throws a Violation unless the tensors in `places` store each value of every parameter and
  /// buffer exactly once, and nothing else.
  void require_whole(const std::vector<TensorPlace>& places) const {
    std::map<std::string, int64_t> stored;
    for (const TensorPlace& place : places) {
      require(values.contains(place.source), "'", place.name, "' is stored in '", place.source,
              "', but the model has no such parameter or buffer");
      const at::Tensor& rows = values.at(place.source);
      require(
          place.shape.back() == rows.size(1) && rows_in(place).max().item<int64_t>() < rows.size(0),
          "'", place.name, "' does not fit into '", place.source, "'");
      if (!place.copy) stored[place.source] += rows_of(place);
    }
    for (const auto& [name, rows] : values)
      require(stored[name] == rows.size(0), "rows of '", name, "' are not stored");
  }

  Experiment experiment;
  Model model;
  ModelDescription description;
  /// All parameters and buffers, viewed as [rows, columns].
  std::map<std::string, at::Tensor> values;
};

/// Exports a model and imports it again as the core does, but only in memory.
void require_way_back(const Format& format, const ModelDescription& requested, Plugins& plugins,
                      const std::string& when) {
  Built before(requested, plugins);
  if (!format.obstacles(before.description).empty()) return;
  const std::vector<TensorPlace> written = format.tensors(before.description);
  before.require_whole(written);
  std::map<std::string, at::Tensor> stored;
  for (const TensorPlace& place : written)
    if (place.written)
      stored[place.name] = before.values.at(place.source).index_select(0, rows_in(place));

  const Json config = format.config(before.description, {1, 2});
  Built after(format.describe(without_common_fields(config)), plugins);
  for (const auto& [name, values] : after.values) values.fill_(std::nan(""));
  const std::vector<TensorPlace> places = format.tensors(after.description);
  after.require_whole(places);
  for (const TensorPlace& place : places) {
    if (place.copy) continue;
    require(stored.contains(place.name), "the format reads '", place.name,
            "' but does not write it");
    after.values.at(place.source).index_copy_(0, rows_in(place), stored.at(place.name));
  }
  const auto logits = [](Built& built) {
    const at::Tensor tokens = at::arange(24).mul(7).remainder(built.model.vocab()).view({2, 12});
    const at::Tensor main = built.model.logits(tokens).flatten();
    if (built.experiment.mtp.depth == 0) return main;
    return at::cat({main, built.model.mtp_logits(tokens).flatten()});
  };
  require(at::allclose(logits(after), logits(before), 1e-4, 1e-6, /*equal_nan=*/true),
          "logits differ after writing and reading a model, ", when);
}

/// A model's components, by kind and plugin.
using Components = std::map<std::pair<Kind, std::string>, std::vector<ComponentDescription*>>;

Components components_of(ModelDescription& model) {
  Components all;
  for (ComponentDescription& layer : model.attention)
    all[{Kind::attention, layer.plugin}].push_back(&layer);
  for (ComponentDescription& layer : model.feed_forward)
    all[{Kind::feed_forward, layer.plugin}].push_back(&layer);
  all[{Kind::position, model.position.plugin}].push_back(&model.position);
  return all;
}

/// Calls `use` with `model` and with its variants. Each variant sets one option in which
/// implementations differ to one of its choices.
void vary(ModelDescription model, Plugins& plugins,
          const std::function<void(const ModelDescription&, const std::string&)>& use) {
  use(model, "as in examples()");
  for (const auto& [plugin, components] : components_of(model)) {
    ComponentSpec spec;
    std::tie(spec.kind, spec.plugin) = plugin;
    for (const OptionSpec& option : plugins.find(spec).schema->options)
      if (option.convention)
        for (const std::string& choice : option.choices) {
          ModelDescription other = model;
          const Components others = components_of(other);
          for (ComponentDescription* component : others.at(plugin))
            component->options[option.key] = choice;
          use(other, c10::str("with ", kind_name(spec.kind), " ", spec.plugin, "'s ", option.key,
                              ": ", choice));
        }
  }
}

}  // namespace

void format_checks(const AddCheck& check) {
  check("round_trip", "round-trips model descriptions", [](const Subject& subject) {
    const auto format = construct<Format>(subject);
    for (const Json& example : examples_of(*format)) {
      const ModelDescription model = format->describe(example);
      require(int64_t(model.attention.size()) == model.layers &&
                  int64_t(model.feed_forward.size()) == model.layers,
              "describe() does not return a component for each layer");
      const std::vector<std::string> obstacles = format->obstacles(model);
      require(obstacles.empty(),
              "describe() returns a model that obstacles() rejects: ", obstacles);
      const Json config = format->config(model, {1, 2});
      require(config.value("model_type", "") == subject.component.name,
              "config() writes a model_type that is not the plugin's name");
      require(config.contains("architectures"),
              "config() does not write the field \"architectures\"");
      require_same(format->describe(without_common_fields(config)), model);
    }
  });
  // If a field were ignored, the imported model could differ from the model in the file.
  check("strictness", "rejects unknown fields and wrong types", [](const Subject& subject) {
    const auto format = construct<Format>(subject);
    const auto rejects = [&](const Json& config) {
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
      require(rejects(unknown), "describe() ignores an unknown field");
      for (const auto& [name, value] : example.items()) {
        Json mistyped = example;
        mistyped[name] = Json::array({value});
        require(rejects(mistyped), "describe() accepts a list for field \"", name, "\"");
      }
    }
  });
  check("places", "stores every value of a model exactly once", [](const Subject& subject) {
    const auto format = construct<Format>(subject);
    for (const Json& example : examples_of(*format)) {
      std::set<std::string> names;
      std::map<std::string, std::vector<at::Tensor>> stored_rows;
      std::map<std::string, int64_t> columns;
      for (const TensorPlace& place : format->tensors(format->describe(example))) {
        require(names.insert(place.name).second, "two tensors are named '", place.name, "'");
        const int64_t rows = rows_of(place);
        require(place.rows.empty() || int64_t(place.rows.size()) == rows, "'", place.name, "' has ",
                rows, " rows, but ", place.rows.size(), " row indices");
        const int64_t width = place.shape.empty() ? 1 : place.shape.back();
        require(columns.emplace(place.source, width).first->second == width, "'", place.name,
                "' has a different number of columns than the rest of '", place.source, "'");
        if (!place.copy) stored_rows[place.source].push_back(rows_in(place));
      }
      for (const auto& [source, rows] : stored_rows) {
        const at::Tensor all = std::get<0>(at::cat(rows).sort());
        require(at::equal(all, at::arange(all.numel())), "not every row of '", source,
                "' is stored exactly once");
      }
    }
  });
  // A format may permute weights for its own layout, for example for RoPE pairing, but the model's
  // outputs must stay the same.
  check("way_back", "preserves a model's outputs", [](const Subject& subject) {
    const auto format = construct<Format>(subject);
    Plugins plugins(subject.levels);
    for (const Json& example : examples_of(*format))
      vary(format->describe(example), plugins, [&](const auto& model, const std::string& when) {
        require_way_back(*format, model, plugins, when);
      });
  });
  check("memory", "frees its memory", [](const Subject& subject) {
    require_steady_memory([&] {
      const auto format = construct<Format>(subject);
      format->tensors(format->describe(format->examples().front()));
    });
  });
}

}  // namespace dsv3::conformance
