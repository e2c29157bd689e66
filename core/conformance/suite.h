// Conformance checks for each kind of component, built in or third-party. `dsv3 plugins check` runs
// them.
#pragma once

#include <thread>

#include <c10/core/Device.h>
#include <c10/util/StringUtil.h>

#include <dsv3/runtime/plugins.h>

namespace dsv3::conformance {

/// A failed check; what() describes the expected and the actual behaviour.
struct Violation : Error {
  using Error::Error;
};

/// Thrown by a check that does not apply to the component; what() says why.
struct NotApplicable : Error {
  using Error::Error;
};

/// Throws a Violation with the concatenated `parts` unless `condition` is true.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw Violation(c10::str(parts...));
}

/// How every error about a value that is not finite ends or continues.
constexpr const char* kNotFinite = " contains NaN or infinite values";

/// The component under test and its options.
struct Subject {
  const Registration& component;
  OptionValues options;
  std::string folder;              ///< empty folder that the component may write to
  SearchLevels levels;             ///< search paths for other plugins that a check needs
  c10::Device device = c10::kCPU;  ///< GPU that is compared with the CPU, if one was requested
};

/// A conformance check for one kind of component.
struct Check {
  std::string name;     ///< short, e.g. "causality"
  std::string promise;  ///< what the component does, e.g. "frees its memory"
  void (*run)(const Subject&);
};

/// The check that compares a GPU with the CPU, for the kinds that compute with tensors.
constexpr const char* kDeviceCheck = "device";

/// Returns the checks for a kind, cheapest first. Includes kDeviceCheck only if `gpu`.
std::vector<Check> checks(Kind kind, bool gpu);

/// Adds a Check with these members.
using AddCheck =
    std::function<void(const char* name, const char* promise, void (*run)(const Subject&))>;
/// Adds the checks for one kind of component.
using Suite = void(const AddCheck& check);
Suite attention_checks, feed_forward_checks, position_checks, optimizer_checks, schedule_checks,
    strategy_checks, strategy_rank_checks, tracker_checks, data_checks, tokenizer_checks,
    format_checks, callback_checks;

/// Constructs the component under test. `Base` and `Context` must be those of its kind.
template <class Base, class... Context>
std::shared_ptr<Base> construct(const Subject& subject, const Context&... context) {
  auto component = dsv3::construct<Base>(subject.component, subject.options, context...);
  require(component != nullptr, "the component's factory returned a null pointer");
  return component;
}

/// Calls `body` and throws a Violation if it changes process-wide state: torch's global generator,
/// default dtype, grad mode and thread count, the environment, the current folder, threads and
/// child processes.
void require_no_side_effects(const std::function<void()>& body);

/// Calls `body` repeatedly and throws a Violation if memory grows with every call.
void require_steady_memory(const std::function<void()>& body);

/// Calls `body` on four threads at once and returns the results.
template <class Body>
auto on_four_threads(const Body& body) {
  std::vector<decltype(body())> results(4);
  std::vector<std::jthread> threads;
  for (auto& result : results) threads.emplace_back([&] { result = body(); });
  threads.clear();  // joins them
  return results;
}

}  // namespace dsv3::conformance
