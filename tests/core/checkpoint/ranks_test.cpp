// Checkpoints that several ranks save together.
#include <cstring>
#include <mutex>

#include <catch2/catch.hpp>

#include <dsv3/runtime/rank_threads.h>
#include <dsv3/sdk/error.h>

#include "core/checkpoint/shares.h"
#include "ranks/exchange.h"

using dsv3::CheckpointContent;
using dsv3::CheckpointStore;
using dsv3::Communicator;
using dsv3::ExitCode;
using dsv3::fs::Call;

namespace {

/// The message that each rank throws; "" = none.
struct Outcome {
  std::vector<std::string> errors;
  std::vector<ExitCode> codes;
};

Outcome save(const std::filesystem::path& checkpoints, int64_t ranks, int64_t step,
             const std::function<void(int64_t, CheckpointContent&)>& change = {}) {
  Outcome outcome{std::vector<std::string>(size_t(ranks)), std::vector<ExitCode>(size_t(ranks))};
  dsv3::on_ranks(ranks, [&](const std::shared_ptr<Communicator>& group) {
    CheckpointStore store(checkpoints, 1);
    Share share(group->rank(), ranks, step);
    if (change) change(group->rank(), share.content);
    try {
      const auto stored = store.save(share.content, *group);
      if (stored.step != step || stored.manifest.at("state") != dsv3::Json{{"rank", 0}})
        throw std::runtime_error("the stored checkpoint is not that of rank 0");
    } catch (const dsv3::Error& error) {
      outcome.errors[size_t(group->rank())] = error.what();
      outcome.codes[size_t(group->rank())] = error.code();
    }
  });
  return outcome;
}

void require_saved(const Outcome& outcome) {
  for (const std::string& error : outcome.errors) REQUIRE(error.empty());
}

/// Requires the failing rank to report `cause`, and the others to name it.
void require_failed(const Outcome& outcome, size_t failing, const std::string& cause) {
  const std::string name = "rank " + std::to_string(failing) + ": ";
  for (size_t rank = 0; rank < outcome.errors.size(); ++rank) {
    INFO("rank " << rank << ": " << outcome.errors[rank]);
    CHECK(outcome.codes[rank] == ExitCode::checkpoint);
    CHECK(outcome.errors[rank].find("cannot save the checkpoint of step") == 0);
    CHECK(outcome.errors[rank].find(cause) != std::string::npos);
    CHECK((outcome.errors[rank].find(name) != std::string::npos) == (rank != failing));
  }
}

struct FaultHook {
  explicit FaultHook(std::function<int(Call, const dsv3::fs::Path&)> hook) {
    dsv3::fs::set_fault_hook(std::move(hook));
  }
  ~FaultHook() { dsv3::fs::set_fault_hook({}); }
};

}  // namespace

TEST_CASE("ranks save one checkpoint, in a file for each of them") {
  const int64_t ranks = GENERATE(1, 2, 3, 4);
  const TemporaryFolder folder;
  require_saved(save(folder / "c", ranks, 1));
  require_saved(save(folder / "c", ranks, 2));
  CHECK(names_in(folder / "c") == std::vector<std::string>{"step-2"});
  const auto stored = dsv3::verify_checkpoint(folder / "c/step-2");
  CHECK(stored.tokens == 20);
  CHECK(stored.manifest.at("format") == 2);
  CHECK(get(folder / "c/step-2/notes.txt") == "notes");
  CHECK(names_in(folder / "c/step-2").size() == size_t(ranks) + 2);
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const Share share(rank, ranks, 2);
    const dsv3::safetensors::File file(folder / "c/step-2" /
                                       ("rank-0000" + std::to_string(rank) + ".safetensors"));
    REQUIRE(file.tensors().size() == share.content.tensors.size());
    for (const auto& [name, view] : share.content.tensors)
      CHECK(std::memcmp(file.tensors().at(name).bytes, view.bytes, view.size) == 0);
  }
}

TEST_CASE("a rank without tensors has no file") {
  const TemporaryFolder folder;
  require_saved(save(folder / "c", 2, 1, [](int64_t rank, CheckpointContent& content) {
    content.tensors.clear();
    content.pieces.clear();
    if (rank == 1) return;
    static const float value = 3;
    content.tensors["model/w"] = {"F32", {1}, &value, 4};
  }));
  CHECK(names_in(folder / "c/step-1") ==
        std::vector<std::string>{"manifest.json", "notes.txt", "rank-00000.safetensors"});
  CHECK(dsv3::verify_checkpoint(folder / "c/step-1").manifest.at("format") == 1);
}

TEST_CASE("if a rank cannot write, all ranks fail and only earlier checkpoints remain") {
  const TemporaryFolder folder;
  require_saved(save(folder / "c", 3, 1));
  const auto [file, failing] = GENERATE(table<std::string, size_t>(
      {{"rank-00000.safetensors", 0}, {"rank-00002.safetensors", 2}, {"manifest.json", 0}}));
  const auto [call, error] =
      GENERATE(table<Call, int>({{Call::open, EACCES}, {Call::write, ENOSPC}, {Call::sync, EIO}}));
  {
    const FaultHook hook([&, file = file, call = call, error = error](Call c, const auto& path) {
      return c == call && path.filename() == file ? error : 0;
    });
    require_failed(save(folder / "c", 3, 2), failing, file + ": " + std::strerror(error));
  }
  CHECK(names_in(folder / "c") == std::vector<std::string>{"step-1"});
  dsv3::verify_checkpoint(folder / "c/step-1");
  require_saved(save(folder / "c", 3, 2));
}

TEST_CASE("pieces that do not cover a tensor exactly once are not saved") {
  const TemporaryFolder folder;
  const auto save_changed = [&](const std::function<void(dsv3::PieceList&)>& change) {
    return save(folder / "c", 2, 1, [&](int64_t rank, CheckpointContent& content) {
      if (rank == 1) change(content.pieces.at("model/w"));
    });
  };
  using List = dsv3::PieceList;
  const auto overlap = save_changed([](List& list) { list.pieces[0].begin = 4; });
  require_failed(overlap, 0,
                 "tensor 'model/w': elements 4 to 10, in rank-00001.safetensors, "
                 "overlap with another piece");
  const auto gap = save_changed([](List& list) { list.pieces[0].begin = 6; });
  require_failed(gap, 0, "tensor 'model/w': no piece has element 5");
  const auto outside = save_changed([](List& list) { list.pieces[0].end = 11; });
  require_failed(outside, 0,
                 "tensor 'model/w': elements 5 to 11, in rank-00001.safetensors, are "
                 "outside the 10 of the tensor");
  const auto shape = save_changed([](List& list) { list.shape = {5, 2}; });
  require_failed(shape, 0, "tensor 'model/w': its shape differs between ranks");
  CHECK(names_in(folder / "c").empty());
}

TEST_CASE("an intact checkpoint of the same step stays, and a damaged one is replaced") {
  const TemporaryFolder folder;
  require_saved(save(folder / "c", 2, 1));
  const auto other = [](int64_t, CheckpointContent& content) { content.tokens = 11; };
  require_saved(save(folder / "c", 3, 1, other));
  CHECK(dsv3::verify_checkpoint(folder / "c/step-1").tokens == 10);
  const auto replacing = [](int64_t, CheckpointContent& content) {
    content.tokens = 12;
    content.replaces = true;
  };
  require_saved(save(folder / "c", 3, 1, replacing));
  CHECK(dsv3::verify_checkpoint(folder / "c/step-1").tokens == 12);
  put(folder / "c/step-1/rank-00002.safetensors", "damaged");
  LogCapture log;
  require_saved(save(folder / "c", 2, 1, other));
  CHECK(dsv3::verify_checkpoint(folder / "c/step-1").tokens == 11);
  CHECK(names_in(folder / "c") == std::vector<std::string>{"step-1"});
}

TEST_CASE("ranks verify a checkpoint together, and agree on the newest intact one") {
  const TemporaryFolder folder;
  for (const int64_t step : {1, 2})
    require_saved(save(folder / "c", 3, step, [&](int64_t, CheckpointContent& content) {
      content.val_loss = double(step);
    }));
  const auto damaged = folder / "c/step-2/rank-00001.safetensors";
  std::string bytes = get(damaged);
  bytes.back() ^= 1;
  put(damaged, bytes);
  LogCapture log;
  std::mutex mutex;
  std::vector<std::string> errors;
  dsv3::on_ranks(3, [&](const std::shared_ptr<Communicator>& group) {
    const CheckpointStore store(folder / "c", 2);
    const auto newest = store.newest(*group);
    std::string error;
    try {
      dsv3::verify_checkpoint(folder / "c/step-2", *group);
    } catch (const dsv3::Error& failure) {
      error = failure.what();
    }
    const std::lock_guard lock(mutex);
    CHECK((newest && newest->step == 1));
    errors.push_back(error);
  });
  REQUIRE(errors.size() == 3);
  for (const std::string& error : errors)
    CHECK(error.find(damaged.string() + ": SHA-256 differs") != std::string::npos);
  CHECK(log.lines.size() == 3);
}

TEST_CASE("texts and decisions are exchanged between ranks") {
  const int64_t ranks = GENERATE(1, 2, 3);
  std::mutex mutex;
  dsv3::on_ranks(ranks, [&](const std::shared_ptr<Communicator>& group) {
    const int64_t rank = group->rank(), last = ranks - 1;
    const std::string own(size_t(rank), 'x');  // rank 0: empty
    const auto texts = dsv3::gather_texts(*group, own);
    const std::string zero("a\0b", 3);
    const std::string sent = dsv3::broadcast_text(*group, rank == last ? zero : own, last);
    const std::string empty = dsv3::broadcast_text(*group, own);
    const bool any = dsv3::is_true_on_any(*group, rank == last);
    const bool none = dsv3::is_true_on_any(*group, false);
    std::string error;
    ExitCode code{};
    try {
      dsv3::run_together(*group, [&] {
        if (rank == last) throw dsv3::Error("disk", ExitCode::data);
      });
    } catch (const dsv3::Error& failure) {
      error = failure.what();
      code = failure.code();
    }
    const std::lock_guard lock(mutex);
    REQUIRE(texts.size() == size_t(ranks));
    for (int64_t i = 0; i < ranks; ++i) CHECK(texts[size_t(i)] == std::string(size_t(i), 'x'));
    CHECK(sent == zero);
    CHECK(empty.empty());
    CHECK(any);
    CHECK_FALSE(none);
    CHECK(error == (rank == last ? "disk" : "rank " + std::to_string(last) + ": disk"));
    CHECK(code == ExitCode::data);
  });
}
