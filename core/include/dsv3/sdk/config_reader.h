// Reads a Hugging Face config.json so that no field is ignored silently: what formats are made of.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace dsv3 {

/// Takes fields out of a config.json one by one and collects everything that is wrong with it.
class ConfigReader {
 public:
  explicit ConfigReader(const nlohmann::json& config) : config_(config) {}

  /// The field's value; a missing or mistyped one is a mistake and gives 0. With a default, the
  /// field may be missing or null.
  int64_t integer(const std::string& name, std::optional<int64_t> missing = std::nullopt);
  double number(const std::string& name, std::optional<double> missing = std::nullopt);
  bool boolean(const std::string& name, std::optional<bool> missing = std::nullopt);
  /// The field if it is there and not null, any type; else null.
  nlohmann::json value(const std::string& name);
  /// The field may be missing or null, but if it is there it must be one of `allowed`: the only
  /// values that dsv3 computes with.
  void require(const std::string& name, const std::vector<nlohmann::json>& allowed);
  /// The field says nothing that the others do not.
  void ignore(const std::string& name) { seen_.insert(name); }
  void mistake(const std::string& text) { mistakes_.push_back(text); }
  /// Throws dsv3::Error (ExitCode::usage) with all mistakes, fields that nobody took included.
  void finish() const;

 private:
  template <class T>
  T get(const std::string& name, const char* type, bool (nlohmann::json::*is)() const noexcept,
        std::optional<T> missing);

  const nlohmann::json& config_;
  std::set<std::string> seen_;
  std::vector<std::string> mistakes_;
};

/// config.json's word for YaRN, `rope_type` or `type`.
inline constexpr const char* kYarnType = "yarn";

/// RoPE as config.json has it: `rope_theta` with `rope_scaling` until transformers 4,
/// `rope_parameters` since 5.
struct RopeParameters {
  double theta = 10000;
  bool yarn = false;  ///< the rest is YaRN's
  double factor = 1, beta_fast = 32, beta_slow = 1;
  double mscale = 0, mscale_all_dim = 0;  ///< 0 = not there
  int64_t original_length = 0;
};

/// Takes either spelling. `length` is max_position_embeddings, YaRN's original length when it has
/// none of its own.
RopeParameters read_rope(ConfigReader& reader, int64_t length);
/// Adds the spelling of transformers 4, which every version and engine reads.
void write_rope(nlohmann::json& config, const RopeParameters& rope);

}  // namespace dsv3
