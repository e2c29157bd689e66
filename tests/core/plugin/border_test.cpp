// Tests types and exceptions that cross the boundary between libdsv3 and a plugin with hidden
// symbols.
#include <typeinfo>

#include <dsv3/sdk/tracker.h>

#include "fixtures.h"

using dsv3::Schedule;

namespace {
// Returns the plugin's component. The tests call it directly instead of through call().
std::shared_ptr<Schedule> twin() {
  static dsv3::Plugins plugins({{registry("twin")}});
  return dsv3::construct<Schedule>(plugins.find(schedule("twin")), {});
}
}  // namespace

TEST_CASE("the host can catch an exception of a plugin-defined type by its base class") {
  CHECK(error_of([&] { twin()->factor(1, 9); }, dsv3::ExitCode::data) == "twin");
}

TEST_CASE("the host can catch an SDK exception from a plugin by its exact type") {
  double seconds = 0;
  try {
    twin()->factor(2, 9);
  } catch (const dsv3::RetryAfter& e) {
    seconds = e.seconds;
  }
  CHECK(seconds == 2.5);
}

TEST_CASE("a plugin can catch an exception thrown by libdsv3") {
  CHECK(twin()->factor(3, 9) == static_cast<double>(dsv3::ExitCode::usage));
}

TEST_CASE("the host can query the dynamic type of a plugin's object") {
  class Unrelated : public Schedule {
    double factor(int64_t, int64_t) const override { return 0; }
  };
  const std::shared_ptr<Schedule> object = twin();
  CHECK(dynamic_cast<void*>(object.get()) != nullptr);
  CHECK(dynamic_cast<Unrelated*>(object.get()) == nullptr);
  CHECK(std::string(typeid(*object).name()).find("Twin") != std::string::npos);
}

TEST_CASE("requesting a component as a different kind is an error, not a crash") {
  dsv3::Plugins plugins({{registry("twin")}});
  CHECK(
      error_of([&] { dsv3::make<dsv3::Tracker>(plugins, schedule("twin"), dsv3::RunContext{}); }) ==
      "schedule 'twin' (nano.yaml:5:13): a component of kind schedule was requested as tracker");
}
