#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/runtime/conformance.h>

#include "config/values.h"
#include "conformance/suite.h"
#include "plugin/library.h"

namespace dsv3::conformance {
namespace {

using Json = nlohmann::json;

// One line a message: a process that dies loses at most the line it was writing.
void send(int report, const Json& message) {
  const std::string line = message.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  for (size_t done = 0; done < line.size();) {
    const ssize_t written = ::write(report, line.data() + done, line.size() - done);
    if (written <= 0) ::_exit(1);
    done += static_cast<size_t>(written);
  }
}

[[noreturn]] void refuse(const std::string& text) {
  throw Error(text, ExitCode::usage);
}

template <class T>
std::vector<T> list(const Json& json) {
  return json.is_array() ? json.get<std::vector<T>>() : std::vector<T>{json.get<T>()};
}

OptionValue value_from(const OptionSpec& spec, const std::string& text) {
  for (const auto& [word, value] : spec.words)
    if (text == word) return value;
  if (spec.type == OptionType::string) return text;
  const Json json = Json::parse(text, nullptr, false);
  try {
    switch (spec.type) {
      case OptionType::boolean:
        return json.get<bool>();
      case OptionType::integer:
        if (!json.is_number_integer()) break;
        return json.get<int64_t>();
      case OptionType::number:
        return json.get<double>();
      case OptionType::integers:
        return list<int64_t>(json);
      case OptionType::numbers:
        return list<double>(json);
      case OptionType::strings:
        return json.is_discarded() ? std::vector<std::string>{text} : list<std::string>(json);
      case OptionType::string:
        return text;
    }
  } catch (const Json::exception&) {  // falls through: the text is of another type
  }
  refuse("--set " + spec.key + "=" + text + ": '" + spec.key + "' takes " +
         config::type_name(spec.type));
}

// Options for the checks: what `key=value` says, defaults for the rest.
OptionValues options_of(const Registration& component, const std::vector<std::string>& settings) {
  const std::string name = kind_name(component.kind) + ("/" + component.name);
  OptionValues values;
  for (const std::string& setting : settings) {
    const size_t equals = setting.find('=');
    const std::string key = setting.substr(0, equals);
    const OptionSpec* spec = component.schema->find(key);
    if (equals == std::string::npos || !spec)
      refuse("--set " + setting + ": " + name + " has no option '" + key +
             "'; write --set OPTION=VALUE with one of those that `dsv3 plugins describe " + name +
             "` lists");
    const OptionValue value = value_from(*spec, setting.substr(equals + 1));
    if (const std::string wrong = config::misfit(*spec, value); !wrong.empty())
      refuse("--set " + setting + ": '" + key + "' " + wrong);
    values[key] = value;
  }
  const std::shared_ptr<void> options = component.schema->make();
  for (const OptionSpec& spec : component.schema->options) {
    const auto given = values.find(spec.key);
    if (given != values.end())
      spec.store(options.get(), given->second);
    else if (spec.required)
      refuse(name + " cannot be made without its option '" + spec.key + "' (" + spec.doc +
             "); add --set " + spec.key + "=...");
  }
  for (const auto& check : component.schema->checks)
    if (const std::string wrong = check(options.get()); !wrong.empty())
      refuse("the options of " + name + " do not fit together: " + wrong);
  return values;
}

// The schema is the component's word to the user, so it is checked as well.
void check_schema(const Subject& subject) {
  require(!subject.component.summary.empty(), "its registration has no summary");
  for (const OptionSpec& spec : subject.component.schema->options) {
    require(!spec.doc.empty(), "option '" + spec.key + "' has no text that says what it is for");
    if (spec.required) continue;
    const auto* word = std::get_if<int64_t>(&spec.default_value);
    const bool is_word =
        word && std::any_of(spec.words.begin(), spec.words.end(),
                            [&](const auto& each) { return each.second == *word; });
    const std::string wrong = is_word ? "" : config::misfit(spec, spec.default_value);
    require(wrong.empty() || spec.default_value == OptionValue(std::string()),
            "the default of option '" + spec.key + "' does not fit its own rules: " + wrong);
  }
}

std::vector<Check> all_checks(Kind kind, const std::vector<std::string>& only) {
  std::vector<Check> all = checks(kind);
  all.insert(all.begin(),
             {"schema", "describes its options, with defaults that fit", check_schema});
  if (only.empty()) return all;
  std::string known;
  for (const Check& each : all) known += (known.empty() ? "" : ", ") + each.name;
  std::vector<Check> some;
  for (const std::string& name : only) {
    const auto found = std::find_if(all.begin(), all.end(),
                                    [&](const Check& each) { return each.name == name; });
    if (found == all.end())
      refuse("there is no check '" + name + "' of " + kind_name(kind) + "; known: " + known);
    some.push_back(*found);
  }
  return some;
}

const Registration& component_of(const Library& library, const std::string& component) {
  for (const Registration& each : library.registrations)
    if (kind_name(each.kind) + ("/" + each.name) == component) return each;
  refuse("plugin '" + library.stamp.name + "' has no " + component + "; it provides " +
         component_list(library.stamp.provides));
}

// What LibTorch starts or allocates on first use is no fault of the component.
void warm_up() {
  at::set_num_threads(1);
  const at::Tensor x = at::ones({4, 4}).requires_grad_();
  torch::autograd::backward({x.mm(x).sum()}, {});
}

std::string folder_for_files() {
  std::string name = "/tmp/dsv3-check-XXXXXX";
  if (const char* temporary = std::getenv("TMPDIR"))
    name = std::string(temporary) + "/dsv3-check-XXXXXX";
  if (!::mkdtemp(name.data())) throw Error("cannot make a temporary folder " + name);
  return name;
}

void run(const Check& check, const Subject& subject, int report) {
  send(report, {{"begin", check.name}, {"promise", check.promise}});
  std::string error;
  try {
    const ProcessState before;
    check.run(subject);
    before.require_unchanged();
  } catch (const Violation& e) {
    error = e.what();
  } catch (...) {
    error = "it throws: " + current_exception_text();
  }
  send(report, {{"end", check.name}, {"error", error}});
}

}  // namespace

int run_child(const Request& request, size_t first, int report) {
  try {
    const Library& library = load_library(request.library);
    send(report, {{"provides", library.stamp.provides}});
    if (request.component.empty()) return 0;
    Subject subject{component_of(library, request.component), {}, ""};
    subject.options = options_of(subject.component, request.options);
    const std::vector<Check> all = all_checks(subject.component.kind, request.only);
    warm_up();
    for (size_t i = first; i < all.size(); ++i) {
      subject.folder = folder_for_files();
      run(all[i], subject, report);
      std::error_code ignored;
      std::filesystem::remove_all(subject.folder, ignored);
    }
    send(report, {{"done", true}});
    return 0;
  } catch (const Error& e) {
    send(report, {{"refused", e.what()}, {"code", static_cast<int>(e.code())}});
  } catch (...) {
    send(report, {{"refused", current_exception_text()}, {"code", 3}});
  }
  return 0;
}

}  // namespace dsv3::conformance
