// Converts between experiments and ModelDescription, which represents a model for format plugins.
#pragma once

#include <set>

#include <dsv3/runtime/plugins.h>
#include <dsv3/sdk/format.h>

namespace dsv3 {

/// A parsed key of Experiment::conventions: "<kind>.<plugin>.<option>", followed by " (layers
/// 2-11)" if it applies only to some layers. All strings are empty if the key has a different form.
struct ConventionKey {
  std::string kind, plugin, option;
  size_t first_layer = 0, last_layer = SIZE_MAX;
  explicit ConventionKey(const std::string& key);
};

/// Fills `model.shapes` with the shapes of all parameters and buffers. Returns the buffers' names.
std::set<std::string> add_shapes(ModelDescription& model, const Experiment& experiment,
                                 Plugins& plugins);

/// Describes the experiment's model, with a value for every option. Embedding and head have `vocab`
/// rows.
ModelDescription describe_model(const Experiment& experiment, int64_t vocab, Plugins& plugins);

/// Whether `model` sets the option for `key`, a key in Experiment::conventions.
bool set_by_description(const ModelDescription& model, const std::string& key);
/// Checks an entry of conventions from a file: the key must be a convention of the model, and the
/// value one that its option accepts. Returns an error message, or "" if the entry is valid.
std::string convention_problem(const std::string& key, const std::string& value,
                               const ModelDescription& model, Plugins& plugins);
/// Sets the option for `key`, which must be valid. Does nothing if the option already has a value, if no component has
/// it, or for core keys such as "model.norm.place". Keys for some layers ("feed_forward.moe.score
/// (layers 2-11)") must come before those for all other layers.
void set_convention(ModelDescription& model, const std::string& key, const std::string& value,
                    Plugins& plugins);

/// Creates an experiment named `name` for `model`, from the template for imported models. It uses
/// the tokenizer.json at `tokenizer` unless that is empty.
ExperimentRequest imported_experiment(const ModelDescription& model, const std::string& name,
                                      const std::filesystem::path& tokenizer);

}  // namespace dsv3
