#include "core/kill/children.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <new>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ATen/ATen.h>

#include <dsv3/support/fs.h>

#include "call/call.h"
#include "call/checked.h"

namespace fs = dsv3::fs;
using Clock = std::chrono::steady_clock;

namespace {

constexpr const char* kExperiment = R"(
dsv3: 1
model:
  hidden: 16
  layers: 2
  vocab: auto
  attention: {plugin: mla, heads: 2, q_lora_rank: 8, kv_lora_rank: 8, qk_nope_dim: 4, qk_rope_dim: 4, v_dim: 8}
  position: {plugin: rope}
  feed_forward:
    - {layers: 0, plugin: swiglu, hidden: 16}
    - {layers: 1-, plugin: moe, routed: 4, top_k: 2, shared: 1, hidden: 8}
  mtp: {depth: 1}
optimizer:
  - {role: [embedding, head, norm, router, bias], plugin: adamw, lr: 5.0e-3}
  - {role: matrix, plugin: muon, lr: 0.02}
schedule: {plugin: cosine, warmup: 2}
strategy: {plugin: single}
data: {plugin: text, path: text.txt, tokenizer: {plugin: bytes}}
train: {steps: 10, batch: 2, sequence: 16, precision: fp32, seed: 7, log_every: 1, threads: 1, device: cpu}
validation: {every: 4, batches: 1, share: 0.1}
samples: {every: 5, tokens: 4}
checkpoint: {every: 2, keep_best: 1}
tracker: [{plugin: csv}]
)";

std::string made_text() {
  std::string text;
  for (int paragraph = 0; paragraph < 60; ++paragraph)
    text += "Paragraph " + std::to_string(paragraph * paragraph) + " says " +
            std::to_string(paragraph * 7919 % 1009) + " in a few plain words.\n\n";
  return text;
}

/// What a child counts, in memory that it shares with its parent.
struct Counts {
  std::atomic<int> calls = 0;
  std::array<std::atomic<int>, 3> points{};
  std::atomic<int> signals_sent = 0;
  std::atomic<int64_t> steps_at_signal = 0;
};

Counts& counts() {
  static Counts& shared = []() -> Counts& {
    void* memory =
        ::mmap(nullptr, sizeof(Counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return *new (memory) Counts;
  }();
  return shared;
}

[[noreturn]] void die() {
  ::kill(::getpid(), SIGKILL);
  for (;;) ::pause();
}

/// Limits the size of all files to the current size of `path` plus `more` bytes. The kernel writes
/// what fits and kills the process at the next write.
void limit_file(const fs::Path& path, uint64_t more) {
  std::error_code missing;
  const uintmax_t size = std::filesystem::file_size(path, missing);
  const rlim_t limit = (missing ? 0 : size) + more;
  const rlimit files{limit, limit}, none{0, 0};
  ::setrlimit(RLIMIT_CORE, &none);
  ::setrlimit(RLIMIT_FSIZE, &files);
}

/// Installs a hook that counts this process's system calls and kills it at the requested one.
void arrange(const std::optional<Death>& death, const fs::Path& run) {
  // Never deleted, because the hook uses it until the process ends.
  PowerCut* disk =
      death && death->kind == Death::power_cut ? new PowerCut(run.parent_path()) : nullptr;
  fs::set_fault_hook([=](fs::Call call, const fs::Path& path) {
    const int number = ++counts().calls;
    if (!death || number < death->call || death->kind == Death::moment) {
      if (disk) disk->before(call, path);
      return 0;
    }
    if (death->kind == Death::torn_write) {
      if (call == fs::Call::write) limit_file(path, death->bytes);
      return 0;
    }
    // Other threads keep running until the process exits, and must not simulate a second power cut.
    if (disk && number > death->call)
      for (;;) ::pause();
    if (disk) disk->cut(run.parent_path().string() + "-left", death->unsynced, death->seed);
    die();
  });
}

/// Sends this process the requested signals. Signals reach the thread that trains.
class Sender final : public dsv3::Watch {
 public:
  explicit Sender(std::vector<Signal> signals) : signals_(std::move(signals)) {
    fs::set_fault_hook([this](fs::Call, const fs::Path& path) {
      if (path.string().find("/checkpoints/") != std::string::npos) visit(Signal::saving);
      return 0;
    });
  }
  void passed(const std::string&, at::TensorList, at::TensorList outputs) override {
    if (outputs[0].is_meta()) return;  // a measurement before the first step
    visit(at::GradMode::is_enabled() ? Signal::training : Signal::evaluation);
  }

 private:
  void visit(Signal::Place place) {
    ++counts().points[place];
    const size_t next = size_t(counts().signals_sent);
    if (next == signals_.size() || signals_[next].place != place) return;
    if (++visits_ < signals_[next].count) return;
    visits_ = 0;
    ++counts().signals_sent;
    counts().steps_at_signal = dsv3::current_step.finished.load();
    ::raise(signals_[next].number);
  }

  std::vector<Signal> signals_;
  int visits_ = 0;  // of the next signal's place, since the previous signal
};

}  // namespace

std::string Signal::text() const {
  constexpr const char* kPlaces[] = {"module output in training", "module output in evaluation",
                                     "system call in a save"};
  return std::string(::strsignal(number)) + " at " + kPlaces[place] + " " + std::to_string(count);
}

std::string Death::text() const {
  switch (kind) {
    case before_call:
      return "killed before system call " + std::to_string(call);
    case torn_write:
      return "writes from system call " + std::to_string(call) + " on are torn after " +
             std::to_string(bytes) + " bytes";
    case moment:
      return "killed after " + std::to_string(seconds) + " s";
    case power_cut:
      return "power cut before system call " + std::to_string(call);
  }
  return "";
}

TinyExperiment::TinyExperiment() : plugins_({{DSV3_BUILD_DIR}}) {
  put(folder_ / "tiny.yaml", kExperiment);
  put(folder_ / "text.txt", made_text());
  std::filesystem::create_directory(folder_ / "runs");
  dsv3::load_experiment(request("any").experiment, plugins_);  // loads every plugin
}

dsv3::RunRequest TinyExperiment::request(const std::string& name) const {
  dsv3::RunRequest request;
  request.output = folder_ / "runs";
  request.quiet = true;
  if (std::filesystem::exists(run(name) / "config.yaml")) {
    request.run_id = name;
    return request;
  }
  request.experiment.file = folder_ / "tiny.yaml";
  request.run_name = name;
  request.resume_auto = true;
  return request;
}

Ending TinyExperiment::train(const std::string& name, const std::optional<Death>& death) {
  const bool at_moment = death && death->kind == Death::moment;
  Ending ending = train_in_child(
      name, [&] { arrange(death, run(name)); },
      at_moment ? std::optional<double>(death->seconds) : std::nullopt);
  if (const auto left = folder_ / "runs-left"; std::filesystem::exists(left)) {
    std::filesystem::remove_all(folder_ / "runs");
    std::filesystem::rename(left, folder_ / "runs");
  }
  return ending;
}

Ending TinyExperiment::train(const std::string& name, const std::vector<Signal>& signals) {
  return train_in_child(name, [&] {
    new Sender(signals);  // never deleted, because it is used until the process ends
  });
}

Ending TinyExperiment::train_in_child(const std::string& name, const std::function<void()>& prepare,
                                      const std::optional<double>& kill_after) {
  new (&counts()) Counts;  // back to 0
  const auto terminal = folder_ / "terminal.txt";
  put(terminal, "");  // the child may die before it creates the file
  const auto begin = Clock::now();
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(::open(terminal.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666), STDERR_FILENO);
    int code = 1;
    try {
      std::filesystem::current_path(folder_.path());
      prepare();
      code = dsv3::train(request(name), plugins_);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
    }
    ::_exit(code);
  }
  if (kill_after) {
    ::usleep(static_cast<useconds_t>(*kill_after * 1e6));
    ::kill(child, SIGKILL);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  Ending ending;
  ending.killed = WIFSIGNALED(status);
  ending.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  ending.calls = counts().calls;
  for (size_t place = 0; place < ending.points.size(); ++place)
    ending.points[place] = counts().points[place];
  ending.signals_sent = counts().signals_sent;
  ending.steps_at_signal = counts().steps_at_signal;
  ending.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  ending.output = get(terminal);
  return ending;
}
