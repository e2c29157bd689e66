#include "train/libraries.h"

#include <filesystem>
#include <set>

namespace dsv3 {
namespace {

std::vector<const ComponentSpec*> components_of(const Experiment& experiment) {
  std::vector<const ComponentSpec*> specs{&experiment.position, &experiment.schedule,
                                          &experiment.strategy, &experiment.data,
                                          &experiment.tokenizer};
  for (const auto* layers : {&experiment.attention, &experiment.feed_forward})
    for (const LayerRange& range : *layers) specs.push_back(&range.component);
  for (const OptimizerGroup& group : experiment.optimizer) specs.push_back(&group.component);
  for (const ComponentSpec& tracker : experiment.tracker) specs.push_back(&tracker);
  return specs;
}

}  // namespace

std::vector<LoadedLibrary> libraries_of(const Experiment& experiment, const Plugins& plugins) {
  std::set<std::filesystem::path> used;
  for (const ComponentSpec* spec : components_of(experiment)) {
    std::filesystem::path path = spec->library;
    if (path.empty())
      if (const PluginEntry* entry = plugins.find_entry(spec->kind, spec->plugin))
        path = entry->library;
    if (!path.empty()) used.insert(std::filesystem::weakly_canonical(path));
  }
  std::vector<LoadedLibrary> libraries;
  for (LoadedLibrary& library : loaded_libraries())
    if (used.contains(library.path)) libraries.push_back(std::move(library));
  return libraries;
}

}  // namespace dsv3
