// Between an experiment and a ModelDescription, which is what formats see of a model.
#pragma once

#include <string>

#include <dsv3/runtime/experiment.h>
#include <dsv3/runtime/plugins.h>
#include <dsv3/sdk/format.h>

namespace dsv3 {

/// The experiment's model, every option with its value; `vocab` rows of embedding and head.
ModelDescription describe_model(const Experiment& experiment, int64_t vocab, Plugins& plugins);

/// The section `model` of an experiment as YAML, with the options that `model` has.
std::string model_yaml(const ModelDescription& model);

/// Whether `model` gives a value to the option behind a convention's key (Experiment::conventions).
bool set_by_description(const ModelDescription& model, const std::string& key);
/// Gives the option behind a convention's key a value, unless it has one or no component has it.
/// Keys of the core ("model.norm.place") are left alone. Of one plugin's keys, those of some layers
/// ("feed_forward.moe.score (layers 2-11)") must come first.
void set_convention(ModelDescription& model, const std::string& key, const std::string& value,
                    Plugins& plugins);

/// A whole experiment called `name` around `model`, from the template of imported models. It reads
/// `tokenizer` (a tokenizer.json) when that is not empty.
std::string imported_experiment(const ModelDescription& model, const std::string& name,
                                const std::string& tokenizer);

}  // namespace dsv3
