// Reads a Hugging Face config.json for format plugins, without silently ignoring fields.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace dsv3 {

/// Reads the fields of a config.json one by one and collects all errors.
class ConfigReader {
 public:
  explicit ConfigReader(const nlohmann::json& config) : config_(config) {}

  /// Returns the field's value. If it is missing or has the wrong type, records an error and
  /// returns 0. If `missing` is given, the field may be missing or null, and the result is then
  /// `missing`.
  int64_t integer(const std::string& name, std::optional<int64_t> missing = std::nullopt);
  double number(const std::string& name, std::optional<double> missing = std::nullopt);
  bool boolean(const std::string& name, std::optional<bool> missing = std::nullopt);
  /// Returns the field's value, whatever its type, or null if the field is missing.
  nlohmann::json value(const std::string& name);
  /// Records an error unless the field is missing, is null, or has one of the values in `allowed`,
  /// which are the only ones that dsv3 supports.
  void require(const std::string& name, const std::vector<nlohmann::json>& allowed);
  /// Marks the field as read, for fields that have no effect on the model.
  void ignore(const std::string& name) { seen_.insert(name); }
  /// Records an error.
  void mistake(const std::string& text) { mistakes_.push_back(text); }
  /// Throws dsv3::Error (ExitCode::usage) with all errors, including one for each field that was
  /// never read.
  void finish() const;

 private:
  template <class T>
  T get(const std::string& name, const char* type, bool (nlohmann::json::*is)() const noexcept,
        std::optional<T> missing);

  const nlohmann::json& config_;
  std::set<std::string> seen_;
  std::vector<std::string> mistakes_;
};

/// Value of `rope_type` or `type` for YaRN in config.json.
inline constexpr const char* kYarnType = "yarn";

/// RoPE parameters in config.json: `rope_theta` and `rope_scaling` up to Transformers 4,
/// `rope_parameters` since Transformers 5.
struct RopeParameters {
  double theta = 10000;
  bool yarn = false;  ///< whether the model uses YaRN; the fields below are YaRN's parameters
  double factor = 1, beta_fast = 32, beta_slow = 1;
  double mscale = 0, mscale_all_dim = 0;  ///< 0 = absent
  int64_t original_length = 0;
};

/// Reads the parameters in either form. `length` is max_position_embeddings, the default for YaRN's
/// original length.
RopeParameters read_rope(ConfigReader& reader, int64_t length);
/// Writes the form for Transformers 4, which every version of Transformers and every inference
/// engine can read.
void write_rope(nlohmann::json& config, const RopeParameters& rope);

}  // namespace dsv3
