#include <algorithm>
#include <filesystem>
#include <thread>
#include <unistd.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>
#include <torch/csrc/autograd/autograd.h>

#include "config/check.h"
#include "config/layers.h"
#include "conformance/conformance.h"
#include "conformance/suite.h"
#include "call/call.h"
#include "plugin/library.h"

namespace dsv3::conformance {
namespace {

using Json = nlohmann::json;

// One line per message: a process that dies loses at most the line it was writing.
void send(int report, const Json& message) {
  const std::string line = message.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  for (size_t done = 0; done < line.size();) {
    const ssize_t written = ::write(report, line.data() + done, line.size() - done);
    if (written <= 0) ::_exit(1);
    done += static_cast<size_t>(written);
  }
}

[[noreturn]] void reject(const std::string& text) {
  throw Error(text, ExitCode::usage);
}

// Only one component is known: "did you mean" must not suggest options of others.
class OneComponent final : public Catalog {
 public:
  const Schema* schema(Kind, const std::string&, const std::string&) override { return nullptr; }
  std::string alias(Kind, const std::string&) override { return ""; }
  std::vector<std::string> names(Kind) override { return {}; }
  std::string searched() const override { return ""; }
};

// The options of `key=value` settings, parsed and checked as in an experiment.
OptionValues options_of(const Registration& component, const std::vector<std::string>& settings) {
  const std::string name = kind_name(component.kind) + ("/" + component.name);
  config::Diagnostics diagnostics;
  config::Node map = config::make_map(
      {diagnostics.add_source("dsv3 plugins check", "--set OPTION=VALUE", false), 1, 1});
  for (const std::string& setting : settings)
    if (auto tree =
            config::parse_setting(diagnostics, diagnostics.add_source("--set", setting, false))) {
      config::Entry& entry = tree->entries.front();
      map.erase(entry.key);
      map.entries.push_back(std::move(entry));
    }
  OneComponent catalog;
  Experiment ignored;
  config::Checker checker(map, diagnostics, catalog, ignored);
  OptionValues values =
      checker.values(&map, *component.schema, {name, {}, "", component.kind, component.name});
  diagnostics.throw_if_any();
  return values;
}

// Users see only these texts of a component.
void check_schema(const Subject& subject) {
  require(!subject.component.summary.empty(), "its registration has no summary");
  for (const OptionSpec& spec : subject.component.schema->options) {
    require(!spec.doc.empty(), "option '", spec.key, "' has no description");
    const std::string wrong = config::misfit(spec, spec.default_value);
    require(spec.required || wrong.empty(), "the default of option '" + spec.key + "' " + wrong);
  }
}

std::vector<Check> all_checks(Kind kind, const std::vector<std::string>& only) {
  std::vector<Check> all = checks(kind);
  all.insert(all.begin(), {"schema", "describes itself and its options", check_schema});
  if (only.empty()) return all;
  std::string known;
  for (const Check& check : all) known += (known.empty() ? "" : ", ") + check.name;
  std::vector<Check> some;
  for (const std::string& name : only) {
    const auto found = std::find_if(all.begin(), all.end(),
                                    [&](const Check& check) { return check.name == name; });
    if (found == all.end())
      reject("unknown check '" + name + "' of " + kind_name(kind) + "; known: " + known);
    some.push_back(*found);
  }
  return some;
}

const Registration& component_of(const Library& library, const std::string& component) {
  for (const Registration& registration : library.registrations)
    if (kind_name(registration.kind) + ("/" + registration.name) == component) return registration;
  reject("plugin '" + library.stamp.name + "' does not provide " + component + "; it provides " +
         component_list(library.stamp.provides));
}

// LibTorch starts threads and allocates on first use, which is not the fault of the component.
void warm_up() {
  at::set_num_threads(1);
#ifdef __SANITIZE_THREAD__
  std::thread([] {}).join();  // the sanitizer starts a thread with the first one
#endif
  const at::Tensor x = at::ones({4, 4}).requires_grad_();
  torch::autograd::backward({x.mm(x).sum()}, {});
}

void run(const Check& check, const Subject& subject, int report) {
  send(report, {{"begin", check.name}, {"promise", check.promise}});
  std::string error;
  try {
    require_no_side_effects([&] { check.run(subject); });
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
    send(report, {{"rejected", e.what()}, {"code", static_cast<int>(e.code())}});
  } catch (...) {
    send(report, {{"rejected", current_exception_text()}, {"code", 3}});
  }
  return 0;
}

}  // namespace dsv3::conformance
