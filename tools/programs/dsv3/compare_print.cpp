// Prints the result of `dsv3 compare`.
#include <algorithm>
#include <array>
#include <cmath>
#include <fmt/format.h>

#include <dsv3/runtime/printable.h>
#include <dsv3/runtime/quantities.h>

#include "common/table.h"
#include "compare.h"

namespace {

// "A" to "Z", then "A1" to "Z1" and so on.
std::string letter(size_t index) {
  return std::string(1, char('A' + index % 26)) + (index < 26 ? "" : std::to_string(index / 26));
}

// A column of recorded metrics.
struct Measure {
  const char* title;
  const char* metric;
  double Recorded::*value;
};

constexpr std::array kMeasures{Measure{"last val/loss", "val/loss", &Recorded::last},
                               Measure{"best val/loss", "val/loss", &Recorded::best},
                               Measure{"last train/loss", "train/loss", &Recorded::last},
                               Measure{"last step", "step", &Recorded::last}};

std::optional<double> value_of(const Item& item, const Measure& measure) {
  const auto metric = item.metrics.find(measure.metric);
  if (metric == item.metrics.end()) return std::nullopt;
  return metric->second.*measure.value;
}

// What the group's runs recorded.
std::vector<double> values_of(const Group& group, const Measure& measure) {
  std::vector<double> values;
  for (const Item* item : group)
    if (const std::optional<double> value = value_of(*item, measure)) values.push_back(*value);
  return values;
}

// The mean and the sample standard deviation, which is NaN for a single value.
std::pair<double, double> statistics(const std::vector<double>& values) {
  double sum = 0, squares = 0;
  for (const double value : values) sum += value;
  const double mean = sum / double(values.size());
  for (const double value : values) squares += (value - mean) * (value - mean);
  return {mean, std::sqrt(squares / double(values.size() - 1))};
}

std::string statistics_text(const std::vector<double>& values, size_t runs) {
  if (values.empty()) return "-";
  const auto [mean, deviation] = statistics(values);
  const std::string text = values.size() == 1 ? fmt::format("{:.5g}", mean)
                                              : fmt::format("{:.5g} +- {:.2g}", mean, deviation);
  return values.size() == runs ? text : text + fmt::format(" ({} of {} runs)", values.size(), runs);
}

dsv3::Json as_json(const Item& first, const Item& other) {
  const dsv3::Comparison comparison = comparison_of(first, other);
  const auto side = [](const std::string& value, const std::string& origin) {
    return origin.empty() ? dsv3::Json(nullptr) : dsv3::Json{{"value", value}, {"origin", origin}};
  };
  dsv3::Json out{{"verdict", comparison.verdict()},
                 {"one_factor", comparison.factors.size() == 1},
                 {"factors", comparison.factors},
                 {"changed_plugins", changed_plugins(first, other)},
                 {"differences", dsv3::Json::array()}};
  for (const dsv3::Difference& d : comparison.differences)
    out["differences"].push_back(
        {{"key", d.key},
         {"a", side(d.a, d.a_origin)},
         {"b", side(d.b, d.b_origin)},
         {"factor", d.factor.empty() ? dsv3::Json() : dsv3::Json(d.factor)}});
  return out;
}

dsv3::Json as_json(const Group& group) {
  const auto known = [](const std::optional<double>& value) {
    return value ? dsv3::Json(*value) : dsv3::Json();
  };
  const Costs& costs = group[0]->costs;
  dsv3::Json out{{"items", dsv3::Json::array()},
                 {"seeds", dsv3::Json::array()},
                 {"parameters", known(costs.parameters)},
                 {"active_parameters", known(costs.active)},
                 {"flops_per_token", known(costs.flops_per_token)},
                 {"tokens", costs.tokens},
                 {"metrics", dsv3::Json::object()},
                 {"best", dsv3::Json::object()}};
  for (const Item* item : group) {
    out["items"].push_back(item->path);
    out["seeds"].push_back(item->experiment.train.seed);
  }
  for (const Measure& measure : kMeasures)
    if (const std::vector<double> values = values_of(group, measure); !values.empty()) {
      const auto [mean, deviation] = statistics(values);
      dsv3::Json& shown = measure.value == &Recorded::best ? out["best"][measure.metric]
                                                           : out["metrics"][measure.metric];
      shown = {{"mean", dsv3::number_to_json(mean)}, {"count", values.size()}};
      if (values.size() > 1) shown["sd"] = dsv3::number_to_json(deviation);
    }
  return out;
}

// How one of the formats for people writes tables and lines.
struct Style {
  std::string (*table)(const std::vector<Row>&);
  const char* before_verdict;
  const char* after_verdict;
};

constexpr Style kText{text_table, "", ""}, kMarkdown{markdown_table, "**", "**"};

// What each group costs and reached.
std::string groups_table(const std::vector<Group>& groups, const Style& style) {
  const auto count = [](const std::optional<double>& value) {
    return value ? dsv3::format_count(*value) : "unknown";
  };
  std::vector<Row> rows{{"", "seeds", "parameters", "active", "FLOPs/token", "tokens"}};
  for (size_t i = 0; i < groups.size(); ++i) {
    const Costs& costs = groups[i][0]->costs;
    std::string seeds;
    for (const Item* item : groups[i])
      seeds += (seeds.empty() ? "" : ", ") + std::to_string(item->experiment.train.seed);
    const auto flops = costs.flops_per_token;
    rows.push_back({letter(i), seeds, count(costs.parameters), count(costs.active),
                    flops ? dsv3::format_flops(*flops) : "unknown",
                    dsv3::format_count(costs.tokens)});
  }
  for (const Measure& measure : kMeasures) {
    const auto recorded = [&](const Group& group) { return !values_of(group, measure).empty(); };
    if (std::ranges::none_of(groups, recorded)) continue;
    rows[0].push_back(measure.title);
    for (size_t i = 0; i < groups.size(); ++i)
      rows[i + 1].push_back(statistics_text(values_of(groups[i], measure), groups[i].size()));
  }
  return style.table(rows) + "\n";
}

std::string differences_table(const dsv3::Comparison& comparison, const std::string& a,
                              const std::string& b, const Style& style) {
  std::vector<Row> rows{{"key", a, b, "origin of " + a, "origin of " + b}};
  const auto shown = [](const std::string& text) { return text.empty() ? "-" : text; };
  for (const dsv3::Difference& d : comparison.differences)
    rows.push_back({(d.factor.empty() ? "(" + d.key + ")" : d.key), shown(d.a), shown(d.b),
                    shown(d.a_origin), shown(d.b_origin)});
  return rows.size() == 1 ? "" : style.table(rows) + "\n";
}

// The items that are compared with the first one: the first of each other group or, if there is
// only one group, its last item.
std::vector<const Item*> others(const std::vector<Group>& groups) {
  if (groups.size() == 1) return {groups[0].back()};
  std::vector<const Item*> items;
  for (size_t i = 1; i < groups.size(); ++i) items.push_back(groups[i][0]);
  return items;
}

std::string items_list(const std::vector<Group>& groups, const Style& style) {
  if (style.table == markdown_table) {
    std::vector<Row> rows{{"", "experiment"}};
    for (size_t i = 0; i < groups.size(); ++i)
      for (const Item* item : groups[i]) rows.push_back({letter(i), item->path});
    return markdown_table(rows) + "\n";
  }
  std::string text;
  for (size_t i = 0; i < groups.size(); ++i)
    for (const Item* item : groups[i])
      text += letter(i) + "  " + dsv3::printable_line(item->path) + "\n";
  return text + "\n";
}

std::string for_people(const std::vector<Group>& groups, const Style& style) {
  std::string text = items_list(groups, style) + groups_table(groups, style);
  const Item& first = *groups[0][0];
  const std::vector<const Item*> compared = others(groups);
  for (size_t i = 0; i < compared.size(); ++i) {
    const dsv3::Comparison comparison = comparison_of(first, *compared[i]);
    const std::string name = groups.size() == 1 ? "last" : letter(i + 1);
    text += differences_table(comparison, groups.size() == 1 ? "first" : "A", name, style);
    text += (compared.size() == 1 ? "" : "A and " + name + ": ") + style.before_verdict +
            dsv3::printable_line(comparison.verdict()) + style.after_verdict + "\n";
    if (style.table == markdown_table) text += "\n";
  }
  for (const Group& group : groups)
    for (const Item* item : group)
      for (const std::string& plugin : changed_plugins(first, *item))
        text += dsv3::printable_line("note: " + first.path + " and " + item->path +
                                     " used different builds of plugin '" + plugin + "'") +
                "\n";
  return text;
}

std::string as_json_text(const std::vector<Group>& groups) {
  dsv3::Json out{{"groups", dsv3::Json::array()}, {"comparisons", dsv3::Json::array()}};
  for (const Group& group : groups) out["groups"].push_back(as_json(group));
  for (const Item* other : others(groups))
    out["comparisons"].push_back(as_json(*groups[0][0], *other));
  return out.dump(2, ' ', false, dsv3::Json::error_handler_t::replace) + "\n";
}

// The settings on which groups differ, with the value of each group.
std::vector<std::pair<std::string, std::vector<std::string>>> differing_settings(
    const std::vector<Group>& groups) {
  std::vector<std::pair<std::string, std::vector<std::string>>> settings;
  for (size_t i = 1; i < groups.size(); ++i)
    for (const dsv3::Difference& d : comparison_of(*groups[0][0], *groups[i][0]).differences) {
      if (d.factor.empty()) continue;
      auto found = std::ranges::find_if(
          settings, [&](const auto& setting) { return setting.first == d.key; });
      if (found == settings.end())
        found = settings.insert(found, {d.key, std::vector<std::string>(groups.size(), d.a)});
      found->second[i] = d.b;
    }
  return settings;
}

std::string as_csv(const std::vector<Group>& groups) {
  const auto number = [](const std::optional<double>& value) {
    return value ? fmt::format("{}", *value) : "";
  };
  const auto settings = differing_settings(groups);
  std::vector<Row> rows{{"group", "experiment", "seed", "parameters", "active_parameters",
                         "flops_per_token", "tokens"}};
  for (const Measure& measure : kMeasures) rows[0].push_back(measure.title);
  for (const auto& [key, values] : settings) rows[0].push_back(key);
  for (size_t i = 0; i < groups.size(); ++i)
    for (const Item* item : groups[i]) {
      const Costs& costs = item->costs;
      rows.push_back({letter(i), item->path, std::to_string(item->experiment.train.seed),
                      number(costs.parameters), number(costs.active), number(costs.flops_per_token),
                      number(costs.tokens)});
      for (const Measure& measure : kMeasures)
        rows.back().push_back(number(value_of(*item, measure)));
      for (const auto& [key, values] : settings) rows.back().push_back(values[i]);
    }
  return csv_table(rows);
}

}  // namespace

std::string compared_as(const std::string& format, const std::vector<Group>& groups) {
  if (format == "json") return as_json_text(groups);
  if (format == "csv") return as_csv(groups);
  return for_people(groups, format == "markdown" ? kMarkdown : kText);
}
