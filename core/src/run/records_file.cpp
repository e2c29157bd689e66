#include <array>

#include <dsv3/runtime/printable.h>
#include <dsv3/runtime/records_file.h>
#include <dsv3/sdk/error.h>

#include "support/host.h"

namespace dsv3 {

namespace record {
namespace {

/// Calls `f(key, field)` for each field of a record.
template <class F>
void fields(Parameters& r, const F& f) {
  f("values", r.values);
}
template <class F>
void fields(Tags& r, const F& f) {
  f("values", r.values);
}
template <class F>
void fields(Dataset& r, const F& f) {
  f("context", r.context), f("name", r.name), f("digest", r.digest), f("source", r.source);
}
template <class F>
void fields(File& r, const F& f) {
  f("path", r.path);
}
template <class F>
void fields(Checkpoint& r, const F& f) {
  f("path", r.path), f("metrics", r.metrics), f("dataset", r.dataset), f("digest", r.digest);
}
template <class F>
void fields(CheckpointRemoved& r, const F& f) {
  f("path", r.path);
}
template <class F>
void fields(Samples& r, const F& f) {
  f("samples", r.samples);
}
template <class F>
void fields(Span& r, const F& f) {
  f("trace", r.trace), f("id", r.id), f("parent", r.parent), f("name", r.name);
  f("start", r.start), f("end", r.end), f("attributes", r.attributes);
}
template <class F>
void fields(State& r, const F& f) {
  f("name", r.name);
}

}  // namespace
}  // namespace record

namespace {

using record::fields;

/// In the order of the alternatives of Record::Content.
constexpr std::array kTypes{"parameters",         "tags",    "dataset", "file", "checkpoint",
                            "checkpoint_removed", "samples", "span",    "state"};
static_assert(kTypes.size() == std::variant_size_v<Record::Content>);

Json to_json(const std::string& text) {
  return without_secrets(text);
}
Json to_json(double number) {
  return number_to_json(number);
}
template <class V>
Json to_json(const std::map<std::string, V>& values) {
  Json object = Json::object();
  for (const auto& [key, value] : values) object[key] = to_json(value);
  return object;
}
Json to_json(const std::vector<record::Sample>& samples) {
  Json list = Json::array();
  for (const record::Sample& sample : samples)
    list.push_back({{"prompt", to_json(sample.prompt)}, {"text", to_json(sample.text)}});
  return list;
}

void from_json(const Json& json, std::string& text) {
  text = json.get<std::string>();
}
void from_json(const Json& json, double& number) {
  number = number_from_json(json);
}
template <class V>
void from_json(const Json& json, std::map<std::string, V>& values) {
  for (const auto& [key, value] : json.items()) from_json(value, values[key]);
}
void from_json(const Json& json, std::vector<record::Sample>& samples) {
  for (const Json& sample : json)
    samples.push_back(
        {sample.at("prompt").get<std::string>(), sample.at("text").get<std::string>()});
}

/// Returns a record with empty content of this type.
template <size_t I = 0>
Record::Content content_of(const std::string& type) {
  if constexpr (I < kTypes.size()) {
    if (type == kTypes[I]) return Record::Content(std::in_place_index<I>);
    return content_of<I + 1>(type);
  } else {
    throw Error("unknown type of record '" + type + "'");
  }
}

bool is_record(std::string_view line) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  return json.is_object() && json.contains("type");
}

}  // namespace

std::string record_line(const Record& record) {
  nlohmann::ordered_json line{
      {"type", kTypes.at(record.content.index())}, {"step", record.step}, {"time", record.time}};
  Record copy = record;
  std::visit(
      [&](auto& content) {
        fields(content, [&](const char* key, auto& field) { line[key] = to_json(field); });
      },
      copy.content);
  return line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Record parse_record(const std::string& line, int64_t id) {
  const std::string place = "events.jsonl:" + std::to_string(id + 1);
  const Json json = parse_json(line, place);
  try {
    Record record{.id = id,
                  .step = json.at("step").get<int64_t>(),
                  .time = json.at("time").get<double>(),
                  .content = content_of(json.at("type").get<std::string>())};
    std::visit(
        [&](auto& content) {
          // An earlier version of dsv3 may not have written all fields.
          fields(content, [&](const char* key, auto& field) {
            if (json.contains(key)) from_json(json[key], field);
          });
        },
        record.content);
    return record;
  } catch (const std::exception& error) {
    throw Error(place + ": not a record of dsv3: " + error.what());
  }
}

RecordsFile::RecordsFile(std::filesystem::path path)
    : file_(std::move(path), is_record, [this](std::string_view lines) { read_steps(lines); }) {}

void RecordsFile::read_steps(std::string_view lines) {
  opened_sample_ = opened_checkpoint_ = -1;
  while (!lines.empty()) {
    const std::string_view line = lines.substr(0, lines.find('\n') + 1);
    lines.remove_prefix(line.size());
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) continue;
    const int64_t step = json["step"];
    if (json.value("type", "") == "samples") opened_sample_ = std::max(opened_sample_, step);
    if (json.value("type", "") == "checkpoint")
      opened_checkpoint_ = std::max(opened_checkpoint_, step);
  }
}

bool RecordsFile::repeats(const Record& record) const {
  if (std::holds_alternative<record::Samples>(record.content)) return record.step <= opened_sample_;
  return std::holds_alternative<record::Checkpoint>(record.content) &&
         record.step <= opened_checkpoint_;
}

std::optional<Record> RecordsFile::append(int64_t step, Record::Content content, double time) {
  Record record{
      .step = step, .time = time > 0 ? time : wall_seconds(), .content = std::move(content)};
  const std::scoped_lock lock(mutex_);
  file_.check();
  if (repeats(record)) return std::nullopt;
  record.id = file_.append(record_line(record));
  return record;
}

bool RecordsFile::has_checkpoint(int64_t step) const {
  const std::scoped_lock lock(mutex_);
  return step <= opened_checkpoint_;
}

void RecordsFile::clear() {
  const std::scoped_lock lock(mutex_);
  file_.clear();
}

}  // namespace dsv3
