// Finds the keys on which two experiments differ and sorts them into factors.
#include <algorithm>
#include <array>
#include <map>

#include <dsv3/runtime/compare.h>

#include "config/slots.h"

namespace dsv3 {
namespace {

// They name, repeat, watch or store a run and leave what is trained, and how fast, alone; what
// model.conventions sets is compared by itself.
constexpr std::array<std::string_view, 12> kNoFactors{"name",
                                                      "output",
                                                      "model.conventions",
                                                      "train.seed",
                                                      "train.log_every",
                                                      "validation.every",
                                                      "validation.batches",
                                                      "samples",
                                                      "checkpoint",
                                                      "tracker",
                                                      "hub",
                                                      "log"};

// Keys that say which component stands in a slot and for what, rather than how it is set.
constexpr std::array<std::string_view, 5> kIdentity{"plugin", "library", "layers", "role", "match"};

bool is_below(std::string_view key, std::string_view path) {
  return key == path ||
         (key.size() > path.size() && key.starts_with(path) && key[path.size()] == '.');
}

bool is_no_factor(std::string_view key) {
  return std::any_of(kNoFactors.begin(), kNoFactors.end(),
                     [&](std::string_view path) { return is_below(key, path); });
}

// The innermost slot that holds `key`; "" = none.
std::string_view slot_of(std::string_view key) {
  std::string_view found;
  for (const config::Slot& slot : config::slots())  // inner ones come last
    if (is_below(key, slot.path)) found = slot.path;
  return found;
}

bool is_identity(const ResolvedValue& value) {
  const std::string_view last = std::string_view(value.key).substr(value.key.rfind('.') + 1);
  return std::find(kIdentity.begin(), kIdentity.end(), last) != kIdentity.end();
}

// What stands in the slot at `path`: plugins, and the layers or roles they are for.
std::string identity(const std::vector<ResolvedValue>& values, std::string_view path) {
  std::string text;
  for (const ResolvedValue& value : values)
    if (slot_of(value.key) == path && is_identity(value))
      text += value.key + "=" + value.value + ";";
  return text;
}

std::string plugins_of(const std::vector<ResolvedValue>& values, std::string_view path) {
  std::string text;
  for (const ResolvedValue& value : values)
    if (slot_of(value.key) == path && value.key.ends_with(".plugin"))
      text += (text.empty() ? "" : " + ") + value.value;
  return text.empty() ? "none" : text;
}

// Slots whose components were swapped, with the factor's text. What stands inside a swapped
// component went with it.
std::map<std::string_view, std::string> swapped_slots(const std::vector<ResolvedValue>& a,
                                                      const std::vector<ResolvedValue>& b) {
  std::map<std::string_view, std::string> swapped;
  for (const config::Slot& slot : config::slots()) {
    const auto outer = std::find_if(swapped.begin(), swapped.end(), [&](const auto& each) {
      return is_below(slot.path, each.first);
    });
    if (outer != swapped.end()) {
      swapped[slot.path] = std::string(outer->second);
    } else if (identity(a, slot.path) != identity(b, slot.path)) {
      const std::string before = plugins_of(a, slot.path), after = plugins_of(b, slot.path);
      swapped[slot.path] =
          std::string(slot.path) +
          (before == after ? " (other layers or roles)" : " (" + before + " -> " + after + ")");
    }
  }
  return swapped;
}

std::string factor_of(const std::string& key,
                      const std::map<std::string_view, std::string>& swapped) {
  if (is_no_factor(key)) return "";
  if (const auto slot = swapped.find(slot_of(key)); slot != swapped.end()) return slot->second;
  // A run's length has two spellings.
  return key == "train.steps" || key == "train.tokens" ? "train.steps or train.tokens" : key;
}

const ResolvedValue* find(const std::vector<ResolvedValue>& values, const std::string& key) {
  for (const ResolvedValue& value : values)
    if (value.key == key) return &value;
  return nullptr;
}

// What differs, in the order of keys; factors are not told yet.
std::vector<Difference> differences(const std::vector<ResolvedValue>& a,
                                    const std::vector<ResolvedValue>& b) {
  std::vector<Difference> found;
  const auto add = [&](const std::string& key, const ResolvedValue& in_a,
                       const ResolvedValue& in_b) {
    found.push_back({key, in_a.value, in_b.value, in_a.origin, in_b.origin, ""});
  };
  for (const ResolvedValue& value : a) {
    const ResolvedValue* other = find(b, value.key);
    if (!other || other->value != value.value)
      add(value.key, value, other ? *other : ResolvedValue{});
  }
  for (const ResolvedValue& value : b)
    if (!find(a, value.key)) add(value.key, {}, value);
  return found;
}

}  // namespace

std::string Comparison::verdict() const {
  if (factors.size() == 1) return "one factor: " + factors[0];
  if (factors.empty()) {
    const bool reseeded = std::any_of(differences.begin(), differences.end(),
                                      [](const Difference& d) { return d.key == "train.seed"; });
    return reseeded ? "same experiment, other seed" : "same experiment";
  }
  std::string text = std::to_string(factors.size()) + " factors: ";
  for (const std::string& factor : factors) text += (&factor == &factors[0] ? "" : ", ") + factor;
  return text;
}

Comparison compare_experiments(const ExperimentRequest& a, const ExperimentRequest& b,
                               Catalog& catalog) {
  const std::vector<ResolvedValue> left = resolved_values(a, catalog);
  const std::vector<ResolvedValue> right = resolved_values(b, catalog);
  const auto swapped = swapped_slots(left, right);
  Comparison comparison{differences(left, right), {}};
  std::vector<std::string>& all = comparison.factors;
  for (Difference& difference : comparison.differences) {
    difference.factor = factor_of(difference.key, swapped);
    if (!difference.factor.empty() &&
        std::find(all.begin(), all.end(), difference.factor) == all.end())
      all.push_back(difference.factor);
  }
  return comparison;
}

std::vector<Difference> compare_resolved(const std::string& a, const std::string& b) {
  return differences(resolved_values(a), resolved_values(b));
}

}  // namespace dsv3
