// Checkpoints that are written while training continues.
#include <cstring>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include <ATen/ATen.h>
#include <catch2/catch.hpp>

#include <dsv3/runtime/rank_threads.h>
#include <dsv3/runtime/stored_tensors.h>
#include <dsv3/sdk/error.h>

#include "checkpoint/tensor_views.h"
#include "core/checkpoint/shares.h"

using dsv3::CheckpointContent;
using dsv3::CheckpointStore;
using dsv3::Communicator;
using dsv3::fs::Call;

namespace {

/// Lets a thread wait until the hook of another one passes.
struct Gate {
  std::atomic<bool> open = false;
  explicit Gate(const std::string& file) {
    dsv3::fs::set_fault_hook([this, file](Call call, const dsv3::fs::Path& path) {
      if (call == Call::sync && path.filename() == file) open.wait(false);
      return 0;
    });
  }
  ~Gate() {
    pass();
    dsv3::fs::set_fault_hook({});
  }
  void pass() {
    open = true;
    open.notify_all();
  }
};

CheckpointContent content_of(const at::Tensor& w, int64_t step) {
  CheckpointContent content{.step = step};
  content.state = dsv3::Json::object();
  dsv3::add_whole(content, "model/w", w);
  return content;
}

at::Tensor stored_w(const std::filesystem::path& folder) {
  return dsv3::StoredTensors(dsv3::verify_checkpoint(folder)).whole("model/w");
}

}  // namespace

TEST_CASE("training may change tensors while a copy of them is saved") {
  const TemporaryFolder folder;
  CheckpointStore store(folder / "c", 1);
  at::Tensor w = at::arange(6, at::kFloat);
  const at::Tensor before = w.clone();
  CheckpointContent content = content_of(w, 1);
  CHECK(content.borrowed == std::set<std::string>{"model/w"});
  dsv3::copy_borrowed(content);
  CHECK(content.borrowed.empty());
  const auto ranks = dsv3::local_communicator();
  Gate gate("rank-00000.safetensors");
  const auto pending = store.start(content, *ranks);
  content = {};
  w.fill_(-1);
  CHECK_FALSE(CheckpointStore::is_written(*pending));
  CHECK(store.empty());
  gate.pass();
  CHECK(store.finish(*pending, *ranks).folder == folder / "c/step-1");
  CHECK(at::equal(stored_w(folder / "c/step-1"), before));
  CHECK(names_in(folder / "c") == std::vector<std::string>{"step-1"});
}

TEST_CASE("a checkpoint is complete only once all ranks have written it") {
  const TemporaryFolder folder;
  std::atomic<int> unwritten = 0;
  Gate gate("rank-00002.safetensors");
  dsv3::on_ranks(3, [&](const std::shared_ptr<Communicator>& ranks) {
    CheckpointStore store(folder / "c", 1);
    const Share share(ranks->rank(), 3, 1);
    const auto pending = store.start(share.content, *ranks);
    while (ranks->rank() != 2 && !CheckpointStore::is_written(*pending)) std::this_thread::yield();
    ranks->barrier();
    unwritten += !CheckpointStore::is_written(*pending);
    if (!store.empty()) throw std::runtime_error("an incomplete checkpoint exists");
    if (ranks->rank() == 2) gate.pass();
    store.finish(*pending, *ranks);
  });
  CHECK(unwritten == 1);
  CHECK(at::equal(stored_w(folder / "c/step-1"), at::arange(100, 110, at::kFloat).view({2, 5})));
}

TEST_CASE("all ranks report that one could not write in the background") {
  const TemporaryFolder folder;
  dsv3::fs::set_fault_hook([](Call call, const dsv3::fs::Path& path) {
    return call == Call::write && path.filename() == "rank-00001.safetensors" ? ENOSPC : 0;
  });
  std::array<std::string, 2> errors;
  dsv3::on_ranks(2, [&](const std::shared_ptr<Communicator>& ranks) {
    CheckpointStore store(folder / "c", 1);
    const Share share(ranks->rank(), 2, 1);
    const auto pending = store.start(share.content, *ranks);
    try {
      store.finish(*pending, *ranks);
    } catch (const dsv3::Error& error) {
      errors[size_t(ranks->rank())] = error.what();
    }
  });
  dsv3::fs::set_fault_hook({});
  CHECK_THAT(errors[0], Catch::Contains("checkpoint of step 1: rank 1: ") &&
                            Catch::Contains(std::strerror(ENOSPC)));
  CHECK_THAT(errors[1], Catch::Contains("checkpoint of step 1: cannot write") &&
                            Catch::Contains(std::strerror(ENOSPC)));
  CHECK(names_in(folder / "c").empty());
}

TEST_CASE("a checkpoint that is not finished leaves nothing, even if the process is killed") {
  const TemporaryFolder folder;
  const auto ranks = dsv3::local_communicator();
  CheckpointStore store(folder / "c", 1);
  const at::Tensor w = at::ones({3});
  store.save(content_of(w, 1));
  store.start(content_of(w * 2, 2), *ranks);
  CHECK(names_in(folder / "c") == std::vector<std::string>{"step-1"});
  const pid_t child = ::fork();
  if (child == 0) {
    const auto pending = store.start(content_of(w * 2, 2), *ranks);
    while (!CheckpointStore::is_written(*pending)) std::this_thread::yield();
    ::_exit(3);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE((WIFEXITED(status) && WEXITSTATUS(status) == 3));
  CHECK(names_in(folder / "c").size() == 2);
  CHECK(store.newest()->step == 1);
  store.save(content_of(w * 3, 3));
  CHECK(names_in(folder / "c") == std::vector<std::string>{"step-3"});
}
