// A schedule with one fault at a time, for `dsv3 plugins check`: what it must survive and report.
#include <csignal>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <unistd.h>

#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/schedule.h>

namespace {

struct FaultyOptions {
  std::string fault = "none";
  static void describe(dsv3::OptionSchema<FaultyOptions>& s) {
    s.add("fault", &FaultyOptions::fault, "what goes wrong");
  }
};

[[noreturn]] void fail() {
  throw std::runtime_error("no");
}

class Faulty final : public dsv3::Schedule {
 public:
  using Options = FaultyOptions;
  explicit Faulty(const FaultyOptions& options) : fault_(options.fault) {
    if (fault_ == "throws_in_constructor") fail();
  }
  ~Faulty() override {
    if (fault_ == "throws_in_destructor") fail();
  }
  double factor(int64_t step, int64_t total) const override {
    if (fault_ == "segfault") std::raise(SIGSEGV);
    if (fault_ == "abort") std::abort();
    if (fault_ == "exit_0") std::exit(0);
    if (fault_ == "exit_3") ::_exit(3);
    if (fault_ == "hang")
      for (;;) ::usleep(1000);
    if (fault_ == "throws_a_number") throw 7;
    if (fault_ == "nan") return std::numeric_limits<double>::quiet_NaN();
    if (fault_ == "negative") return -1;
    if (fault_ == "leak") leaked_ = new char[4096]();
    if (fault_ == "thread") start_thread();
    if (fault_ == "fork") fork_once();
    if (fault_ == "environment") ::setenv("DSV3_FAULTY", std::to_string(step).c_str(), 1);
    if (fault_ == "folder" && ::chdir("/usr") != 0) return 1;
    if (fault_ == "out_of_memory") leaked_ = new char[huge]();
    if (fault_ == "counts_calls") return 1.0 / double(++calls_);
    return step > total ? 0 : double(total - step + 1) / double(total);
  }

 private:
  void start_thread() const {
    if (calls_++ == 0) std::thread([] { ::sleep(1000); }).detach();
  }
  void fork_once() const {
    if (calls_++ > 0 || ::fork() != 0) return;
    ::sleep(1000);
    ::_exit(0);
  }

  std::string fault_;
  mutable char* volatile leaked_ = nullptr;
  mutable int calls_ = 0;
  volatile size_t huge = size_t{1} << 44;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.schedule<Faulty>("faulty", "A schedule that goes wrong as it is told");
}
