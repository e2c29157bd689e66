#include <algorithm>
#include <filesystem>
#include <thread>
#include <unistd.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/runtime/conformance.h>

#include "config/check.h"
#include "config/parse.h"
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

// A check knows one component: no others whose options could have been meant.
class OneComponent final : public Catalog {
 public:
  const Schema* schema(Kind, const std::string&, const std::string&) override { return nullptr; }
  std::string alias(Kind, const std::string&) override { return ""; }
  std::vector<std::string> names(Kind) override { return {}; }
  std::string searched() const override { return ""; }
};

// Options for the checks: what `key=value` says, read and checked as in an experiment.
OptionValues options_of(const Registration& component, const std::vector<std::string>& settings) {
  const std::string name = kind_name(component.kind) + ("/" + component.name);
  config::Diagnostics diagnostics;
  config::Node map = config::make_map(
      {diagnostics.add_source("dsv3 plugins check", "--set OPTION=VALUE", false), 1, 1});
  for (const std::string& setting : settings) {
    const int source = diagnostics.add_source("--set", setting, false);
    const config::Position at{source, 1, 1};
    const size_t equals = setting.find('=');
    if (equals == std::string::npos || equals == 0) {
      diagnostics.error(at, setting.size(), "expected OPTION=VALUE");
      continue;
    }
    const std::string key = setting.substr(0, equals);
    if (const auto value = config::parse(diagnostics, source, 0, equals + 1)) {
      map.erase(key);
      map.add(key, at, *value);
    }
  }
  OneComponent catalog;
  std::vector<std::string> notes;
  config::Checker checker(map, diagnostics, catalog, notes);
  config::Node resolved = config::make_map({});
  const config::Scope scope{name, {}, "", component.kind, component.name};
  OptionValues values = checker.values(&map, *component.schema, scope, resolved);
  diagnostics.throw_if_any();
  return values;
}

// The texts are all that users of the component see of it. (A default outside of its option's range
// is sound: it means "not set".)
void check_schema(const Subject& subject) {
  require(!subject.component.summary.empty(), "its registration has no summary");
  for (const OptionSpec& spec : subject.component.schema->options) {
    require(!spec.doc.empty(), "option '" + spec.key + "' has no text that says what it is for");
    for (const auto& [implementation, value] : spec.by_implementation) {
      const std::string wrong = config::misfit(spec, value);
      require(wrong.empty(), "option '" + spec.key + "' is " + config::value_text(value) +
                                 " by the conventions of " + implementation + ", but " + wrong);
    }
  }
}

std::vector<Check> all_checks(Kind kind, const std::vector<std::string>& only) {
  std::vector<Check> all = checks(kind);
  all.insert(all.begin(), {"schema", "says what it and its options are for", check_schema});
  if (only.empty()) return all;
  std::string known;
  for (const Check& each : all) known += (known.empty() ? "" : ", ") + each.name;
  std::vector<Check> some;
  for (const std::string& name : only) {
    const auto found =
        std::find_if(all.begin(), all.end(), [&](const Check& each) { return each.name == name; });
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
#ifdef __SANITIZE_THREAD__
  std::thread([] {}).join();  // with the first thread it starts one of its own
#endif
  const at::Tensor x = at::ones({4, 4}).requires_grad_();
  torch::autograd::backward({x.mm(x).sum()}, {});
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
    Subject subject{component_of(library, request.component), {}, "", request.levels};
    subject.options = options_of(subject.component, request.options);
    const std::vector<Check> all = all_checks(subject.component.kind, request.only);
    warm_up();
    for (size_t i = first; i < all.size(); ++i) {
      const auto folder = request.folder / (subject.component.name + "-" + all[i].name);
      std::filesystem::create_directory(folder);
      subject.folder = folder.string();
      run(all[i], subject, report);
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
