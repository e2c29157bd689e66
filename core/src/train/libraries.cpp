#include "train/libraries.h"

#include <filesystem>
#include <set>

namespace dsv3 {

std::vector<LoadedLibrary> libraries_of(const Experiment& experiment, const Plugins& plugins) {
  std::set<std::filesystem::path> used;
  const auto add = [&](const ComponentSpec& spec) {
    std::filesystem::path path = spec.library;
    if (path.empty())
      if (const PluginEntry* entry = plugins.find_entry(spec.kind, spec.plugin))
        path = entry->library;
    if (!path.empty()) used.insert(std::filesystem::weakly_canonical(path));
  };
  for (const ComponentSpec* spec : {&experiment.position, &experiment.schedule,
                                    &experiment.strategy, &experiment.data, &experiment.tokenizer})
    add(*spec);
  for (const auto* layers : {&experiment.attention, &experiment.feed_forward})
    for (const LayerRange& range : *layers) add(range.component);
  for (const OptimizerGroup& group : experiment.optimizer) add(group.component);
  for (const ComponentSpec& tracker : experiment.tracker) add(tracker);
  std::vector<LoadedLibrary> libraries = loaded_libraries();
  std::erase_if(libraries,
                [&](const LoadedLibrary& library) { return !used.contains(library.path); });
  return libraries;
}

}  // namespace dsv3
