#include <algorithm>

#include <dsv3/sdk/config_reader.h>
#include <dsv3/sdk/error.h>

namespace dsv3 {

using Json = nlohmann::json;

template <class T>
T ConfigReader::get(const std::string& name, const char* type, bool (Json::*is)() const noexcept,
                    std::optional<T> missing) {
  const Json found = value(name);
  if (found.is_null() && missing) return *missing;
  if (found.is_null())
    mistake("\"" + name + "\" is missing");
  else if (!(found.*is)())
    mistake("\"" + name + "\" must be " + type + ", but is " + found.dump());
  else
    return found.get<T>();
  return T{};
}

int64_t ConfigReader::integer(const std::string& name, std::optional<int64_t> missing) {
  return get<int64_t>(name, "an integer", &Json::is_number_integer, missing);
}
double ConfigReader::number(const std::string& name, std::optional<double> missing) {
  return get<double>(name, "a number", &Json::is_number, missing);
}
bool ConfigReader::boolean(const std::string& name, std::optional<bool> missing) {
  return get<bool>(name, "true or false", &Json::is_boolean, missing);
}

Json ConfigReader::value(const std::string& name) {
  seen_.insert(name);
  const auto found = config_.find(name);
  return found == config_.end() ? Json() : *found;
}

void ConfigReader::require(const std::string& name, const std::vector<Json>& allowed) {
  const Json found = value(name);
  if (found.is_null() || std::find(allowed.begin(), allowed.end(), found) != allowed.end()) return;
  std::string text;
  for (const Json& one : allowed) text += (text.empty() ? "" : " or ") + one.dump();
  mistake("\"" + name + "\" is " + found.dump() + ", but dsv3 supports only " + text);
}

void ConfigReader::finish() const {
  std::vector<std::string> lines = mistakes_;
  for (const auto& [name, value] : config_.items())
    if (!seen_.contains(name))
      lines.push_back("\"" + name + "\" (" + value.dump().substr(0, 60) +
                      "): unknown field; the model may need it, so it cannot be imported safely");
  if (lines.empty()) return;
  std::string text = "the model cannot be read:";
  for (const std::string& line : lines) text += "\n  " + line;
  throw Error(text, ExitCode::usage);
}

namespace {

/// Reads a number from a map. Returns `missing` if the key is absent or null.
double number_of(const Json& map, const char* key, double missing, ConfigReader& reader) {
  const auto found = map.find(key);
  if (found == map.end() || found->is_null()) return missing;
  if (found->is_number()) return found->get<double>();
  reader.mistake(std::string("\"") + key + "\" in the RoPE parameters must be a number, but is " +
                 found->dump());
  return missing;
}

void read_yarn(const Json& map, int64_t length, RopeParameters& rope, ConfigReader& reader) {
  rope.yarn = true;
  rope.factor = number_of(map, "factor", 0, reader);
  if (rope.factor < 1) reader.mistake("the YaRN parameters need a \"factor\" of at least 1");
  rope.beta_fast = number_of(map, "beta_fast", 32, reader);
  rope.beta_slow = number_of(map, "beta_slow", 1, reader);
  rope.mscale = number_of(map, "mscale", 0, reader);
  rope.mscale_all_dim = number_of(map, "mscale_all_dim", 0, reader);
  const double original =
      number_of(map, "original_max_position_embeddings", double(length), reader);
  if (original >= 1 && original <= double(1 << 30))
    rope.original_length = static_cast<int64_t>(original);
  else
    reader.mistake("\"original_max_position_embeddings\" must be between 1 and 1073741824");
  if (map.contains("truncate") && map["truncate"] != true)
    reader.mistake(
        "\"truncate\" in the RoPE parameters must be true; dsv3 does not support other values");
  if (map.contains("attention_factor") && !map["attention_factor"].is_null())
    reader.mistake(
        "\"attention_factor\" in the RoPE parameters is not supported; dsv3 computes it "
        "from mscale and factor");
}

}  // namespace

RopeParameters read_rope(ConfigReader& reader, int64_t length) {
  RopeParameters rope;
  const double theta = reader.number("rope_theta", 0);
  Json map = reader.value("rope_parameters"), scaling = reader.value("rope_scaling");
  if (map.is_null())
    map = scaling;
  else if (!scaling.is_null())
    reader.mistake("\"rope_parameters\" and \"rope_scaling\" are both set; remove one");
  if (map.is_null()) map = Json::object();
  if (!map.is_object()) {
    reader.mistake("the RoPE parameters must be a map, but are " + map.dump());
    return rope;
  }
  rope.theta = number_of(map, "rope_theta", theta > 0 ? theta : 10000, reader);
  if (theta > 0 && theta != rope.theta)
    reader.mistake("\"rope_theta\" is set twice with different values");
  const Json type = map.value("rope_type", map.value("type", Json("default")));
  std::set<std::string> known{"rope_type", "type", "rope_theta"};
  if (type == kYarnType) {
    read_yarn(map, length, rope, reader);
    known.insert({"factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
                  "original_max_position_embeddings", "truncate", "attention_factor"});
  } else if (type != "default") {
    reader.mistake("unsupported RoPE type " + type.dump() + "; use \"default\" or " +
                   Json(kYarnType).dump());
    return rope;
  }
  for (const auto& [key, value] : map.items())
    if (!known.contains(key))
      reader.mistake("unknown key \"" + key + "\" in the RoPE parameters for type " + type.dump());
  return rope;
}

void write_rope(Json& config, const RopeParameters& rope) {
  config["rope_theta"] = rope.theta;
  config["rope_scaling"] = nullptr;
  if (!rope.yarn) return;
  Json scaling{{"type", kYarnType},
               {"factor", rope.factor},
               {"beta_fast", rope.beta_fast},
               {"beta_slow", rope.beta_slow},
               {"original_max_position_embeddings", rope.original_length}};
  if (rope.mscale != 0) scaling["mscale"] = rope.mscale;
  if (rope.mscale_all_dim != 0) scaling["mscale_all_dim"] = rope.mscale_all_dim;
  config["rope_scaling"] = scaling;
}

}  // namespace dsv3
