#include "run/run_info.h"

#include <fmt/format.h>
#include <random>

#include "support/host.h"

namespace dsv3 {
namespace {

std::string text_in(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

std::optional<GitState> git_in(const Json& provenance) {
  const auto git = provenance.find("git");
  if (git == provenance.end() || !git->is_object()) return std::nullopt;
  return GitState{.commit = text_in(*git, "commit"),
                  .branch = text_in(*git, "branch"),
                  .remote = text_in(*git, "remote"),
                  .dirty = git->contains("dirty") && (*git)["dirty"] == true};
}

std::optional<BranchSource> branch_source_in(const Json& provenance) {
  const auto source = provenance.find("branched_from");
  if (source == provenance.end() || !source->is_object()) return std::nullopt;
  const auto step = source->find("step");
  return BranchSource{
      .uid = text_in(*source, "uid"),
      .name = std::filesystem::path(text_in(*source, "run")).filename().string(),
      .step = step != source->end() && step->is_number_integer() ? step->get<int64_t>() : 0};
}

/// A string as it is, because YAML's quotes mean nothing to a tracker.
std::string text_of(const ResolvedValue& value) {
  const auto* text = std::get_if<std::string>(&value.value);
  return text && value.written.empty() ? *text : value.yaml();
}

}  // namespace

std::string new_run_uid() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

RunInfo run_info(const std::filesystem::path& folder, const Experiment& experiment, bool resumed) {
  const Json provenance = read_provenance(folder);
  RunInfo info{.name = folder.filename().string(),
               .folder = folder.string(),
               .experiment = experiment.name,
               .config = experiment.resolved.yaml(),
               .resumed = resumed,
               .uid = text_in(provenance, "uid"),
               .start_time = seconds_of(text_in(provenance, "time")).value_or(0),
               .source = text_in(provenance, "experiment"),
               .tags = experiment.tags,
               .git = git_in(provenance),
               .branched_from = branch_source_in(provenance)};
  for (const ResolvedValue& value : experiment.resolved.values)
    if (!value.path.starts_with("tags.")) info.parameters.emplace(value.path, text_of(value));
  return info;
}

}  // namespace dsv3
