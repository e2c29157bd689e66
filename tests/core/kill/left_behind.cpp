#include "core/kill/left_behind.h"

#include <algorithm>
#include <map>
#include <sstream>

#include <dsv3/runtime/checkpoint.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>

namespace fs = dsv3::fs;
using dsv3::Json;

namespace {

std::vector<std::string> lines_of(const std::filesystem::path& path) {
  std::istringstream text(fs::read(path));
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

bool depends_on_time(const std::string& key) {
  return key == "time" || key.starts_with("throughput/") || key.starts_with("data/") ||
         key.starts_with("memory/") || key.starts_with("system/");
}

/// Values keyed by (line number in metrics.jsonl, metric name), as the csv tracker stores them.
using Values = std::map<std::pair<std::string, std::string>, double>;

Values values_in_journal(const std::filesystem::path& run) {
  Values values;
  const auto lines = lines_of(run / "metrics.jsonl");
  for (size_t id = 0; id < lines.size(); ++id) {
    const Json row = Json::parse(lines[id]);
    for (const auto& [key, value] : row.items())
      if (key != "step" && key != "tokens" && key != "time")
        values[{std::to_string(id), key}] = dsv3::number_from_json(value);
  }
  return values;
}

}  // namespace

LeftBehind::LeftBehind(const std::filesystem::path& run) {
  for (const std::string& line : lines_of(run / "metrics.jsonl")) {
    const Json row = Json::parse(line);
    Json stable = Json::object();
    for (const auto& [key, value] : row.items())
      if (!depends_on_time(key)) stable[key] = value;
    metrics.push_back(stable.dump());
  }
  for (const auto& entry : std::filesystem::directory_iterator(run / "checkpoints"))
    checkpoints.push_back(entry.path().filename().string());
  std::sort(checkpoints.begin(), checkpoints.end());
  std::map<std::string, std::string> texts;
  for (const auto& entry : std::filesystem::directory_iterator(run / "samples"))
    texts[entry.path().filename().string()] = fs::read(entry.path());
  for (const auto& [name, text] : texts) samples += name + ":\n" + text;
  if (auto newest = dsv3::CheckpointStore(run / "checkpoints", 0).newest()) {
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(newest->folder))
      if (entry.path().extension() == ".safetensors")
        files[entry.path().filename().string()] = fs::read(entry.path());
    for (const auto& [name, bytes] : files) tensors += name + ":\n" + bytes;
    state = newest->manifest.at("state").dump();
  }
  const Json all = dsv3::read_json(run / "status.json");
  for (const char* key : {"state", "exit_code", "step"}) status += all.at(key).dump() + " ";
  const Json origin = dsv3::read_json(run / "provenance.json");
  for (const char* key : {"init_hash", "data_hash"}) hashes += origin.at(key).dump() + " ";
}

std::string LeftBehind::difference(const LeftBehind& other) const {
  if (metrics.size() != other.metrics.size())
    return "metrics.jsonl has " + std::to_string(metrics.size()) + " lines, not " +
           std::to_string(other.metrics.size());
  for (size_t i = 0; i < metrics.size(); ++i)
    if (metrics[i] != other.metrics[i])
      return "metrics.jsonl line " + std::to_string(i + 1) + ":\n" + metrics[i] + "\n" +
             other.metrics[i];
  if (checkpoints != other.checkpoints) return "the checkpoints differ";
  if (samples != other.samples) return "samples:\n" + samples + "\n" + other.samples;
  if (tensors.empty() || tensors != other.tensors) return "the newest checkpoint's tensors differ";
  if (state != other.state) return "state of the newest checkpoint:\n" + state + "\n" + other.state;
  if (status != other.status) return "status.json: " + status + ", not " + other.status;
  if (hashes != other.hashes) return "provenance.json: " + hashes + ", not " + other.hashes;
  return "";
}

std::string fault_in(const std::filesystem::path& run) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(run))
    if (entry.path().filename().string().find(".tmp-") != std::string::npos)
      return "left over: " + entry.path().string();
  Values delivered;
  for (const std::string& line : lines_of(run / "metrics.csv")) {
    std::istringstream row(line);
    std::vector<std::string> cells;
    for (std::string cell; std::getline(row, cell, ',');) cells.push_back(cell);
    if (cells.size() != 6) return "metrics.csv has a torn row: " + line;
    if (cells[0] == "id") continue;
    if (!delivered.try_emplace({cells[0], cells[4]}, std::stod(cells[5])).second)
      return "metrics.csv contains " + cells[4] + " of metrics.jsonl line " + cells[0] + " twice";
  }
  return delivered == values_in_journal(run)
             ? ""
             : "the values in metrics.csv differ from those in metrics.jsonl";
}
