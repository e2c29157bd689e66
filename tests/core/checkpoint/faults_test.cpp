// Makes each system call during a checkpoint save fail, or kills the process at that call, and
// checks that the newest complete checkpoint still loads.
#include <cerrno>
#include <csignal>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <climits>

#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>

#include "core/checkpoint/fixture.h"
#include "core/support/power_cut.h"

namespace fs = dsv3::fs;
using dsv3::CheckpointStore;
using fs::Call;

namespace {

using Hook = std::function<int(Call, const fs::Path&)>;

struct Hooked {
  explicit Hooked(Hook hook) { fs::set_fault_hook(std::move(hook)); }
  ~Hooked() { fs::set_fault_hook({}); }
};

constexpr int kKilled = 99;

/// A run with checkpoints of steps 1 and 2, and with a temporary folder left by a killed save. With
/// keep_best 1, saving step 3 writes a folder, renames it, and then deletes step 2.
struct Run {
  TemporaryFolder folder;
  std::filesystem::path checkpoints = folder / "checkpoints";
  CheckpointStore store{checkpoints, 1};
  TestContent one{1, 1.0}, two{2, 2.0}, three{3, 3.0}, four{4, 4.0};

  Run() {
    store.save(one.content);
    store.save(two.content);
    std::filesystem::create_directory(checkpoints / "step-9.tmp-0123abcd");
    put(checkpoints / "step-9.tmp-0123abcd/rank-00000.safetensors", "torn");
  }

  /// Checks the folder after a fault while saving step 3. Step 2 or 3 must load intact, and step 1
  /// must still be the best. The next save must succeed and leave only checkpoints.
  void check(bool three_must_be_there) {
    auto newest = store.newest();
    REQUIRE(newest);
    REQUIRE((newest->step == 3 || (newest->step == 2 && !three_must_be_there)));
    REQUIRE(holds(*newest, newest->step == 3 ? three : two));
    REQUIRE(store.best()->step == 1);
    REQUIRE(holds(*store.best(), one));
    store.save(three.content);
    REQUIRE(holds(*store.newest(), three));
    store.save(four.content);
    REQUIRE(names_in(checkpoints) == std::vector<std::string>{"step-1", "step-4"});
    REQUIRE(holds(*store.newest(), four));
  }
};

/// Runs `work` in a child process and returns its exit code.
template <class F>
int in_child(F&& work) {
  pid_t child = ::fork();
  if (child == 0) {
    work();
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

/// Returns the file name, without the random suffix if it is a temporary one, e.g. "step-3.tmp".
std::string short_name(const fs::Path& path) {
  const std::string name = path.filename().string();
  const size_t temporary = name.find(".tmp-");
  return temporary == std::string::npos ? name : name.substr(0, temporary) + ".tmp";
}

std::vector<std::pair<Call, std::string>> calls_of_a_save() {
  Run run;
  std::vector<std::pair<Call, std::string>> calls;
  Hooked hook([&](Call call, const fs::Path& path) {
    calls.emplace_back(call, short_name(path));
    return 0;
  });
  run.store.save(run.three.content);
  return calls;
}

struct Fate {
  const char* name;
  PowerCut::Unsynced unsynced;
  uint64_t seed;
};
const Fate kFates[] = {{"all unsynced changes lost", PowerCut::Unsynced::lost, 0},
                       {"contents lost", PowerCut::Unsynced::no_data, 0},
                       {"names lost", PowerCut::Unsynced::all_data, 0},
                       {"mixed 1", PowerCut::Unsynced::random, 1},
                       {"mixed 2", PowerCut::Unsynced::random, 2},
                       {"mixed 3", PowerCut::Unsynced::random, 3},
                       {"mixed 4", PowerCut::Unsynced::random, 4},
                       {"mixed 5", PowerCut::Unsynced::random, 5},
                       {"mixed 6", PowerCut::Unsynced::random, 6}};

/// Saves step 3 in a child process, with a simulated power cut at the n-th system call, or at the
/// end if there are fewer calls. Replaces the run's checkpoints with those that survive the power
/// cut. The simulated disk ignores syncs of the file or folder `not_synced`.
void save_until_power_cut(Run& run, int n, const Fate& fate, const std::string& not_synced = "-") {
  TemporaryFolder disk;
  in_child([&] {
    PowerCut model(run.folder.path());
    int call = 0;
    fs::set_fault_hook([&](Call kind, const fs::Path& path) {
      if (++call == n) {
        model.cut(disk / "left", fate.unsynced, fate.seed);
        ::_exit(kKilled);
      }
      if (short_name(path) != not_synced) model.before(kind, path);
      return 0;
    });
    run.store.save(run.three.content);
    model.cut(disk / "left", fate.unsynced, fate.seed);
  });
  std::filesystem::remove_all(run.checkpoints);
  std::filesystem::rename(disk / "left" / "checkpoints", run.checkpoints);
}

}  // namespace

TEST_CASE("a save syncs the checkpoint's files before it renames the folder") {
  auto calls = calls_of_a_save();
  auto position = [&](Call call, const std::string& name) {
    auto at = std::find(calls.begin(), calls.end(), std::pair(call, name));
    REQUIRE(at != calls.end());
    return at - calls.begin();
  };
  auto last_write = [&](const std::string& name) {
    auto at = std::find(calls.rbegin(), calls.rend(), std::pair(Call::write, name));
    REQUIRE(at != calls.rend());
    return calls.rend() - at - 1;
  };
  auto shown = position(Call::rename, "step-3");
  for (const char* name : {"rank-00000.safetensors", "manifest.json"}) {
    REQUIRE(last_write(name) < position(Call::sync, name));
    REQUIRE(position(Call::sync, name) < position(Call::sync, "step-3.tmp"));
  }
  REQUIRE(position(Call::sync, "rank-00000.safetensors") < position(Call::open, "manifest.json"));
  REQUIRE(position(Call::sync, "step-3.tmp") < shown);
  REQUIRE(shown < position(Call::sync, "checkpoints"));
  REQUIRE(position(Call::sync, "checkpoints") < position(Call::rename, "step-2.tmp"));
}

TEST_CASE("a checkpoint loads after the process is killed at any system call during a save") {
  const int calls = static_cast<int>(calls_of_a_save().size());
  REQUIRE(calls > 15);
  for (int n = 1; n <= calls + 1; ++n) {
    Run run;
    int code = in_child([&] {
      int call = 0;
      fs::set_fault_hook([&](Call, const fs::Path&) {
        if (++call == n) ::_exit(kKilled);
        return 0;
      });
      run.store.save(run.three.content);
    });
    REQUIRE(code == (n <= calls ? kKilled : 0));
    INFO("killed before system call " << n << " of " << calls);
    run.check(/*three_must_be_there=*/n > calls);
  }
}

TEST_CASE("a failed system call during a save is reported and loses no data") {
  const int calls = static_cast<int>(calls_of_a_save().size());
  int failed = 0, warned = 0;
  for (bool for_good : {false, true}) {  // either only call n fails, or all calls from n on
    for (int error : {ENOSPC, EIO, EDQUOT}) {
      for (int n = 1; n <= calls; ++n) {
        INFO("call " << n << " fails with " << std::strerror(error)
                     << (for_good ? ", like all later calls" : ""));
        Run run;
        LogCapture log;
        bool saved = true;
        {
          int call = 0;
          Hooked hook([&](Call, const fs::Path&) {
            ++call;
            return call == n || (for_good && call > n) ? error : 0;
          });
          try {
            run.store.save(run.three.content);
          } catch (const dsv3::Error& failure) {
            saved = false;
            ++failed;
            REQUIRE(failure.code() == dsv3::ExitCode::checkpoint);
            std::string text = failure.what();
            REQUIRE(text.find(run.checkpoints.string()) != std::string::npos);
            REQUIRE(text.find(std::strerror(error)) != std::string::npos);
          }
        }
        if (saved) {
          ++warned;
          REQUIRE_FALSE(log.lines.empty());
        }
        // A failed save removes its folder, unless the removal fails as well.
        if (!saved && !for_good) {
          for (const std::string& name : names_in(run.checkpoints)) {
            REQUIRE(name.find("step-3.tmp") == std::string::npos);
          }
        }
        run.check(saved);
      }
    }
  }
  REQUIRE(failed > 20);
  // Some saves succeed with a warning that an old checkpoint or temporary folder could not be
  // deleted.
  REQUIRE(warned > 8);
}

TEST_CASE("a checkpoint loads after a power cut at any system call during a save") {
  const int calls = static_cast<int>(calls_of_a_save().size());
  for (int n = 1; n <= calls + 1; ++n) {
    for (const Fate& fate : kFates) {
      INFO("power cut before system call " << n << " of " << calls << ", " << fate.name);
      Run run;
      save_until_power_cut(run, n, fate);
      run.check(/*three_must_be_there=*/n > calls);
    }
  }
}

TEST_CASE(
    "every sync during a save is necessary: if one is skipped, a power cut can lose the "
    "checkpoint") {
  for (const char* name :
       {"rank-00000.safetensors", "manifest.json", "step-3.tmp", "checkpoints"}) {
    INFO("no sync of " << name);
    int lost = 0;
    for (const Fate& fate : kFates) {
      Run run;
      save_until_power_cut(run, INT_MAX, fate, name);
      LogCapture log;
      auto newest = run.store.newest();
      lost += !newest || newest->step != 3;
    }
    REQUIRE(lost > 0);
  }
}

TEST_CASE("a save retries interrupted system calls") {
  const int calls = static_cast<int>(calls_of_a_save().size());
  for (int n = 1; n <= calls; ++n) {
    INFO("call " << n << " is interrupted");
    Run run;
    LogCapture log;
    {
      int call = 0;
      Hooked hook([&](Call, const fs::Path&) { return ++call == n ? EINTR : 0; });
      run.store.save(run.three.content);
    }
    REQUIRE(log.lines.empty());
    run.check(/*three_must_be_there=*/true);
  }
}

TEST_CASE("a write cut short at any byte is reported and loses no data") {
  Run whole;
  whole.store.save(whole.three.content);
  uint64_t largest = 0;
  for (const char* name : {"rank-00000.safetensors", "manifest.json"})
    largest = std::max<uint64_t>(largest,
                                 std::filesystem::file_size(whole.checkpoints / "step-3" / name));
  for (uint64_t limit = 0; limit < largest; limit += 7) {
    INFO("file size limit: " << limit << " bytes");
    Run run;
    // This short write is real: the kernel writes up to the file-size limit and then returns EFBIG.
    int code = in_child([&] {
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit files{limit, limit};
      if (::setrlimit(RLIMIT_FSIZE, &files) != 0) ::_exit(1);
      try {
        run.store.save(run.three.content);
      } catch (const dsv3::Error& failure) {
        const std::string text = failure.what();
        const bool reported = text.find(run.checkpoints.string()) != std::string::npos &&
                              text.find(std::strerror(EFBIG)) != std::string::npos;
        ::_exit(reported ? kKilled : 2);
      }
    });
    REQUIRE(code == kKilled);
    REQUIRE_FALSE(std::filesystem::exists(run.checkpoints / "step-3"));
    run.check(/*three_must_be_there=*/false);
  }
}

TEST_CASE(
    "replacing a damaged checkpoint is safe even if a system call fails or the process is killed") {
  auto damage = [](Run& run) { put(run.checkpoints / "step-2/rank-00000.safetensors", "damaged"); };
  for (bool dies : {true, false}) {
    for (int n = 1;; ++n) {
      Run run;
      damage(run);
      auto save = [&] {
        int call = 0;
        fs::set_fault_hook([&, dies, n](Call, const fs::Path&) {
          if (++call != n) return 0;
          if (dies) ::_exit(kKilled);
          return EIO;
        });
        try {
          run.store.save(run.two.content);
        } catch (const dsv3::Error&) {
        }
        fs::set_fault_hook({});
        return call;
      };
      bool done = dies ? in_child(save) == 0 : save() < n;
      INFO((dies ? "dies" : "fails") << " at call " << n);
      auto newest = run.store.newest();
      REQUIRE(newest);
      REQUIRE(holds(*newest, newest->step == 2 ? run.two : run.one));
      run.store.save(run.two.content);
      REQUIRE(holds(*run.store.newest(), run.two));
      REQUIRE(names_in(run.checkpoints) == std::vector<std::string>{"step-1", "step-2"});
      if (done) break;
    }
  }
}
