// Finds the settings that differ between two experiments and groups them into factors, such as a
// different optimizer.
#include <algorithm>
#include <map>

#include <dsv3/runtime/compare.h>
#include <dsv3/runtime/suggest.h>

#include "config/layers.h"
#include "config/schemas.h"
#include "config/values.h"

namespace dsv3 {
namespace {

using Values = std::vector<ResolvedValue>;

// Keys for a run's name, seed, monitoring and storage, which do not count as factors.
constexpr std::string_view kNoFactors[]{"name",
                                        "output",
                                        "train.seed",
                                        "train.log_every",
                                        "train.trace_every",
                                        "validation.every",
                                        "validation.batches",
                                        "samples",
                                        "checkpoint",
                                        "tags",
                                        "tracker",
                                        "hub",
                                        "log"};

// Keys that select a component and its layers or roles, as opposed to its options.
constexpr std::string_view kIdentity[]{"plugin", "library", "layers", "role", "match"};

bool is_below(std::string_view key, std::string_view path) {
  return key == path ||
         (key.size() > path.size() && key.starts_with(path) && key[path.size()] == '.');
}

bool is_no_factor(std::string_view key) {
  return std::ranges::any_of(kNoFactors,
                             [&](std::string_view path) { return is_below(key, path); });
}

// Returns the path of the innermost component that contains `key`, e.g. "model.attention"; "" =
// none.
std::string_view slot_of(std::string_view key) {
  std::string_view found;
  for (const config::Slot& slot : config::slots())  // outer slots come first
    if (is_below(key, slot.path)) found = slot.path;
  return found;
}

bool is_identity(const ResolvedValue& value) {
  return std::ranges::count(kIdentity, config::split_last(value.path).second);
}

// Lists the plugins configured at `path` and their layers or roles.
std::string identity(const Values& values, std::string_view path) {
  std::string text;
  for (const ResolvedValue& value : values)
    if (slot_of(value.path) == path && is_identity(value))
      text += value.path + "=" + value.yaml() + ";";
  return text;
}

std::string plugins_of(const Values& values, std::string_view path) {
  std::string text;
  for (const ResolvedValue& value : values)
    if (slot_of(value.path) == path && value.path.ends_with(".plugin"))
      text += (text.empty() ? "" : " + ") + value.yaml();
  return text.empty() ? "none" : text;
}

// Maps the path of each component that differs to a description of the factor. Components nested in
// it belong to the same factor.
std::map<std::string_view, std::string> changed_slots(const Values& a, const Values& b) {
  std::map<std::string_view, std::string> changed;
  for (const config::Slot& slot : config::slots()) {
    const auto outer = std::find_if(changed.begin(), changed.end(), [&](const auto& entry) {
      return is_below(slot.path, entry.first);
    });
    if (outer != changed.end()) {
      changed[slot.path] = std::string(outer->second);
    } else if (identity(a, slot.path) != identity(b, slot.path)) {
      const std::string before = plugins_of(a, slot.path), after = plugins_of(b, slot.path);
      changed[slot.path] =
          std::string(slot.path) +
          (before == after ? " (different layers or roles)" : " (" + before + " -> " + after + ")");
    }
  }
  return changed;
}

// Names components in a list by their plugins, so that each is compared with the component of the
// same plugin in another list: "optimizer.0.lr" becomes "optimizer.adamw.lr", as does
// "optimizer.lr" of a single component. A second component with the plugin becomes "adamw#2".
void name_components(Values& values, std::string_view slot) {
  const auto element_of = [&](const std::string& path) {  // "0" for "optimizer.0.lr"
    const std::string rest = path.substr(slot.size() + 1);
    const std::string part = rest.substr(0, rest.find('.'));
    return config::is_index(part) ? part : "";
  };
  const auto is_inside = [&](const std::string& path) {
    return path != slot && is_below(path, slot);
  };
  std::map<std::string, std::string> names;  // by element
  std::map<std::string, int> counts;         // by plugin
  for (const ResolvedValue& value : values)
    if (is_inside(value.path) && value.path.ends_with(".plugin")) {
      const int count = ++counts[value.yaml()];
      names[element_of(value.path)] =
          value.yaml() + (count > 1 ? "#" + std::to_string(count) : std::string());
    }
  for (ResolvedValue& value : values) {
    if (!is_inside(value.path)) continue;
    const std::string element = element_of(value.path);
    const size_t replaced = element.empty() ? 0 : element.size() + 1;
    value.path.replace(slot.size() + 1, replaced, names[element] + ".");
  }
}

bool is_list(const Values& values, std::string_view slot) {
  const std::string second = std::string(slot) + ".1.";
  return std::ranges::any_of(
      values, [&](const ResolvedValue& value) { return value.path.starts_with(second); });
}

// Assigns differing keys to factors.
class Factors {
 public:
  /// Renames the components in changed lists of `left` and `right`.
  Factors(Resolved& left, Resolved& right)
      : left_(left), right_(right), changed_(changed_slots(left.values, right.values)) {
    for (const auto& [slot, text] : changed_) {
      if (!is_list(left.values, slot) && !is_list(right.values, slot)) continue;
      name_components(left.values, slot);
      name_components(right.values, slot);
    }
  }

  /// Returns "" for a key that does not count as a factor.
  std::string of(const std::string& key) const {
    if (is_no_factor(key)) return "";
    const std::string_view slot = slot_of(key);
    const auto found = changed_.find(slot);
    if (found != changed_.end() && !is_option_of_both(key, found->second)) return found->second;
    if (slot == "optimizer" && key.ends_with(".name")) return "";  // of a group, for metrics
    // Both of these keys set the length of a run, so they count as one factor.
    return key == "train.steps" || key == "train.tokens" ? "train.steps or train.tokens" : key;
  }

 private:
  // Whether `key` is an option of a plugin that both experiments have in a changed slot.
  bool is_option_of_both(const std::string& key, const std::string& change) const {
    const auto [component, option] = config::split_last(key);
    const bool nested = !change.starts_with(slot_of(key));  // the outer component has changed
    if (nested || std::ranges::count(kIdentity, option)) return false;
    const ResolvedValue *a = left_.find(component + ".plugin"),
                        *b = right_.find(component + ".plugin");
    return a && b && a->yaml() == b->yaml();
  }

  const Resolved &left_, &right_;
  std::map<std::string_view, std::string> changed_;
};

// Gives a single component and a list with one component the same paths, because the two are
// equivalent.
Resolved comparable(Resolved resolved) {
  for (const config::Slot& slot : config::slots()) {
    const std::string list = std::string(slot.path) + ".";
    if (is_list(resolved.values, slot.path)) continue;
    for (ResolvedValue& value : resolved.values)
      if (value.path.starts_with(list + "0.")) value.path.erase(slot.path.size(), 2);
  }
  return resolved;
}

std::vector<Difference> differing(const Resolved& a, const Resolved& b) {
  std::vector<Difference> found;
  const auto add = [&](const std::string& key, const ResolvedValue* in_a,
                       const ResolvedValue* in_b) {
    const auto yaml = [](const ResolvedValue* value) { return value ? value->yaml() : ""; };
    const auto origin = [](const ResolvedValue* value) {
      return value ? value->origin.full_text() : "";
    };
    if (yaml(in_a) != yaml(in_b) || !in_a || !in_b)
      found.push_back({key, yaml(in_a), yaml(in_b), origin(in_a), origin(in_b), ""});
  };
  for (const ResolvedValue& value : a.values) add(value.path, &value, b.find(value.path));
  for (const ResolvedValue& value : b.values)
    if (!a.find(value.path)) add(value.path, nullptr, &value);
  return found;
}

// Appends the values below `node`, which is at `path`, without converting them to their options'
// types.
void collect(const config::Node& node, const std::string& path, Values& out) {
  if (node.is_map()) {
    for (const config::Entry& entry : node.entries)
      collect(entry.value, config::join(path, entry.key), out);
  } else if (node.is_list() && config::slot_at(path) && !node.items.empty()) {
    for (size_t i = 0; i < node.items.size(); ++i)
      collect(node.items[i], config::join(path, std::to_string(i)), out);
  } else {
    const auto yaml = [](const config::Node& scalar) {
      return scalar.quoted ? config::quoted_yaml(scalar.text) : scalar.text;
    };
    std::vector<std::string> items;
    for (const config::Node& item : node.items) items.push_back(yaml(item));
    out.push_back(
        {path, node.text, {}, node.is_list() ? "[" + comma_list(items) + "]" : yaml(node)});
  }
}

}  // namespace

std::string Comparison::verdict() const {
  if (factors.size() == 1) return "one factor: " + factors[0];
  if (factors.empty()) {
    const bool reseeded = std::any_of(differences.begin(), differences.end(),
                                      [](const Difference& d) { return d.key == "train.seed"; });
    return reseeded ? "same experiment, different seed" : "same experiment";
  }
  return std::to_string(factors.size()) + " factors: " + comma_list(factors);
}

Comparison compare_experiments(const Experiment& a, const Experiment& b) {
  Resolved left = comparable(a.resolved), right = comparable(b.resolved);
  const Factors assigned(left, right);
  Comparison comparison{differing(left, right), {}};
  std::vector<std::string>& factors = comparison.factors;
  for (Difference& difference : comparison.differences) {
    difference.factor = assigned.of(difference.key);
    if (!difference.factor.empty() &&
        std::find(factors.begin(), factors.end(), difference.factor) == factors.end())
      factors.push_back(difference.factor);
  }
  return comparison;
}

std::vector<Difference> differences(const Resolved& a, const Resolved& b) {
  return differing(comparable(a), comparable(b));
}

Resolved read_resolved(const std::string& yaml) {
  config::Diagnostics diagnostics;
  const int source = diagnostics.add_source("resolved experiment", yaml, false);
  const std::optional<config::Node> tree = config::parse(diagnostics, source);
  diagnostics.throw_if_any();
  Resolved resolved;
  if (tree) collect(*tree, "", resolved.values);
  // Drop a key from older versions. Other keys already contain its effect.
  std::erase_if(resolved.values,
                [](const ResolvedValue& value) { return value.path == "model.conventions"; });
  return resolved;
}

std::string difference_lines(const Resolved& a, const Resolved& b, const std::string& in_a,
                             const std::string& in_b, const std::string& section) {
  const auto shown = [](const std::string& value) { return value.empty() ? "absent" : value; };
  std::string text;
  for (const Difference& difference : differences(a, b))
    if (section.empty() || difference.key.starts_with(section + "."))
      text += "\n  " + difference.key + ": " + shown(difference.a) + " " + in_a + ", " +
              shown(difference.b) + " " + in_b;
  return text;
}

}  // namespace dsv3
