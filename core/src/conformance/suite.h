// What each kind of component promises, as checks that run against any component of the kind,
// wherever it comes from: `dsv3 plugins check` and the tests of the plugins in this tree use them.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include <dsv3/runtime/plugins.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/options.h>
#include <dsv3/sdk/registrar.h>

namespace dsv3::conformance {

/// A promise that was not kept; what() says what was expected and what came.
class Violation : public Error {
 public:
  explicit Violation(const std::string& what) : Error(what, ExitCode::plugin) {}
  ~Violation() override;
};

/// Throws Violation(`text`) unless `kept`.
void require(bool kept, const std::string& text);

/// The component under test with the options it is checked with.
struct Subject {
  const Registration& component;
  OptionValues options;
  std::string folder;   ///< empty folder that the component may write to
  SearchLevels levels;  ///< where plugins of other kinds are found
};

/// One promise of a kind.
struct Check {
  std::string name;     ///< short, e.g. "causality"
  std::string promise;  ///< one sentence that reads after the component's name
  void (*run)(const Subject&);
};

/// The suite of a kind, cheapest checks first.
std::vector<Check> checks(Kind kind);

/// Makes the subject as the core would. `Base` and `Context` must be those of its kind.
template <class Base, class... Context>
std::shared_ptr<Base> make(const Subject& subject, const Context&... context) {
  const auto& factory = std::get<Factory<Base, Context...>>(subject.component.factory);
  std::shared_ptr<Base> made = factory(subject.options, context...);
  require(made != nullptr, "its constructor gives nothing");
  return made;
}

/// State of the process that a component must leave alone: torch's global generator, default dtype,
/// grad mode and thread count, the environment, the current folder, threads and child processes.
class ProcessState {
 public:
  ProcessState();
  /// Throws Violation naming what differs now.
  void require_unchanged() const;

 private:
  std::vector<std::pair<std::string, std::string>> facts_;
};

/// Runs `body` over and over; throws Violation when memory grows with every run.
void require_steady_memory(const std::function<void()>& body);

std::vector<Check> attention_checks();
std::vector<Check> feed_forward_checks();
std::vector<Check> position_checks();
std::vector<Check> optimizer_checks();
std::vector<Check> schedule_checks();
std::vector<Check> strategy_checks();
std::vector<Check> tracker_checks();
std::vector<Check> data_checks();
std::vector<Check> tokenizer_checks();
std::vector<Check> format_checks();

}  // namespace dsv3::conformance
