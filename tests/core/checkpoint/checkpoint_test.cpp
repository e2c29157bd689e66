#include <cmath>
#include <cstring>
#include <limits>

#include <catch2/catch.hpp>

#include <dsv3/runtime/checkpoint.h>
#include <dsv3/sdk/error.h>

#include "core/checkpoint/fixture.h"

using dsv3::CheckpointStore;
using dsv3::verify_checkpoint;

namespace {

std::string error_of(const std::filesystem::path& folder) {
  try {
    verify_checkpoint(folder);
  } catch (const dsv3::Error& error) {
    REQUIRE(error.code() == dsv3::ExitCode::checkpoint);
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

struct Fixture {
  TemporaryFolder folder;
  std::filesystem::path checkpoints = folder / "checkpoints";
  CheckpointStore store{checkpoints, 3};
  LogCapture log;

  void save(int64_t step, std::optional<double> val_loss = {}) {
    TestContent content(step, val_loss);
    store.save(content.content);
  }
  std::vector<int64_t> steps() {
    std::vector<int64_t> steps;
    for (const auto& stored : store.all()) steps.push_back(stored.step);
    return steps;
  }
};

using Steps = std::vector<int64_t>;

}  // namespace

TEST_CASE_METHOD(Fixture, "an empty or missing folder contains no checkpoint") {
  REQUIRE_FALSE(store.newest());
  REQUIRE_FALSE(store.best());
  REQUIRE(store.all().empty());
  std::filesystem::create_directory(checkpoints);
  REQUIRE_FALSE(store.newest());
}

TEST_CASE_METHOD(Fixture, "a checkpoint round-trips") {
  TestContent content(7, 2.5);
  auto saved = store.save(content.content);
  REQUIRE(saved.folder == checkpoints / "step-7");
  for (const auto& stored :
       {saved, *store.newest(), *store.best(), verify_checkpoint(saved.folder)}) {
    REQUIRE(stored.step == 7);
    REQUIRE(stored.tokens == content.content.tokens);
    REQUIRE(stored.val_loss == 2.5);
    REQUIRE(stored.manifest["state"] == content.content.state);
    REQUIRE(holds(stored, content));
  }
  REQUIRE(log.lines.empty());
}

TEST_CASE_METHOD(Fixture, "the newest and the best checkpoints are retained") {
  double losses[] = {5, 3, 4, 6, 2, 7, 8};
  for (int64_t i = 0; i < 7; ++i) save(10 * (i + 1), losses[i]);
  REQUIRE(steps() == Steps{20, 30, 50, 70});
  REQUIRE(store.newest()->step == 70);
  REQUIRE(store.best()->step == 50);
  save(80);
  REQUIRE(steps() == Steps{20, 30, 50, 80});
  REQUIRE(names_in(checkpoints).size() == 4);
}

TEST_CASE_METHOD(Fixture, "checkpoints are ordered by step number, not alphabetically") {
  for (int64_t step : {8, 9, 10, 100}) save(step, 1.0 / static_cast<double>(step));
  REQUIRE(store.newest()->step == 100);
  REQUIRE(steps() == Steps{9, 10, 100});
}

TEST_CASE_METHOD(Fixture, "a checkpoint with a non-finite loss is never the best") {
  save(1, 9.0);
  save(2, std::nan(""));
  save(3, -std::numeric_limits<double>::infinity());
  save(4);
  REQUIRE(store.best()->step == 1);
  REQUIRE(steps() == Steps{1, 4});
  save(5, std::nan(""));
  REQUIRE(std::isnan(*store.newest()->val_loss));
}

TEST_CASE_METHOD(Fixture, "keep_best 0 retains only the newest checkpoint") {
  store = CheckpointStore(checkpoints, 0);
  for (int64_t step : {1, 2, 3}) save(step, 1.0);
  REQUIRE(steps() == Steps{3});
}

TEST_CASE_METHOD(Fixture,
                 "damaged checkpoints are skipped and logged, and the newest intact one is used") {
  for (int64_t step : {1, 2, 3}) save(step, static_cast<double>(step));
  std::string tensors = get(checkpoints / "step-3/rank-00000.safetensors");
  tensors.back() ^= 1;
  put(checkpoints / "step-3/rank-00000.safetensors", tensors);
  REQUIRE(store.newest()->step == 2);
  REQUIRE(log.lines.size() == 1);
  REQUIRE(has(log.lines[0], (checkpoints / "step-3/rank-00000.safetensors").string()));
  std::filesystem::remove(checkpoints / "step-1/manifest.json");
  REQUIRE(store.best()->step == 2);
  std::filesystem::remove_all(checkpoints / "step-2");
  REQUIRE_FALSE(store.newest());
}

TEST_CASE_METHOD(Fixture, "every kind of damage is reported with the file and the cause") {
  save(5, 1.5);
  auto folder = checkpoints / "step-5";
  auto tensors = folder / "rank-00000.safetensors", manifest = folder / "manifest.json";
  std::string good_tensors = get(tensors), good_manifest = get(manifest);
  REQUIRE(error_of(folder).empty());

  put(tensors, good_tensors + "x");
  REQUIRE(has(error_of(folder), tensors.string() + ": has "));
  put(tensors, good_tensors.substr(1));
  REQUIRE(has(error_of(folder), "but the manifest says " + std::to_string(good_tensors.size())));
  std::filesystem::remove(tensors);
  REQUIRE(has(error_of(folder), tensors.string() + ": cannot be read"));
  put(tensors, good_tensors);

  for (size_t size = 0; size + 1 < good_manifest.size(); ++size) {  // the last byte is a newline
    put(manifest, good_manifest.substr(0, size));
    REQUIRE(has(error_of(folder), manifest.string()));
  }
  std::filesystem::remove(manifest);
  REQUIRE(has(error_of(folder), manifest.string() + ": missing"));
  REQUIRE(has(error_of(checkpoints / "step-6"), "missing"));
  put(manifest, "{\"format\": 3}");
  REQUIRE(has(error_of(folder), "format 3"));
  put(manifest, good_manifest);
  std::filesystem::rename(folder, checkpoints / "step-6");
  REQUIRE(has(error_of(checkpoints / "step-6"), "its manifest, which is for step 5"));
  REQUIRE(store.all().empty());
}

TEST_CASE_METHOD(Fixture, "a flipped bit in a manifest is detected or harmless") {
  save(5, 1.5);
  auto folder = checkpoints / "step-5";
  std::string good = get(folder / "manifest.json");
  dsv3::Json expected = verify_checkpoint(folder).manifest;
  int harmless = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = good;
      flipped[i] ^= static_cast<char>(1 << bit);
      put(folder / "manifest.json", flipped);
      if (!error_of(folder).empty()) continue;
      ++harmless;  // white space
      REQUIRE(verify_checkpoint(folder).manifest == expected);
    }
  }
  REQUIRE(harmless < static_cast<int>(good.size()));
}

TEST_CASE_METHOD(Fixture, "every flipped bit in a tensor file is detected") {
  save(5, 1.5);
  auto path = checkpoints / "step-5/rank-00000.safetensors";
  std::string good = get(path);
  for (size_t i = 0; i < good.size(); ++i) {
    std::string flipped = good;
    flipped[i] ^= static_cast<char>(1 << i % 8);
    put(path, flipped);
    REQUIRE(has(error_of(checkpoints / "step-5"), "SHA-256"));
  }
}

TEST_CASE_METHOD(Fixture, "a manifest that names files outside its folder is rejected") {
  save(5);
  auto folder = checkpoints / "step-5";
  dsv3::Json manifest = dsv3::Json::parse(get(folder / "manifest.json"));
  std::string secret = "secret";
  put(checkpoints / "secret", secret);
  for (const char* name : {"../secret", "", ".", "..", "/etc/passwd", "a/b"}) {
    manifest["files"][0]["name"] = name;
    manifest.erase("sha256");
    manifest["sha256"] = dsv3::sha256(manifest.dump());
    put(folder / "manifest.json", manifest.dump());
    REQUIRE(has(error_of(folder), "not a plain file name"));
  }
}

TEST_CASE_METHOD(Fixture,
                 "saving the same step again replaces its checkpoint only if it is damaged") {
  save(5, 1.5);
  TestContent other(5, 0.5);
  store.save(other.content);
  REQUIRE(store.newest()->val_loss == 1.5);
  REQUIRE(log.lines.empty());
  put(checkpoints / "step-5/rank-00000.safetensors", "damaged");
  store.save(other.content);
  REQUIRE(store.newest()->val_loss == 0.5);
  REQUIRE(holds(*store.newest(), other));
  REQUIRE(names_in(checkpoints) == std::vector<std::string>{"step-5"});
}

TEST_CASE_METHOD(Fixture,
                 "a save deletes temporary folders left by killed saves and nothing else") {
  std::filesystem::create_directories(checkpoints / "step-9.tmp-0123abcd/sub");
  put(checkpoints / "step-9.tmp-0123abcd/sub/file", "x");
  put(checkpoints / "notes.txt", "mine");
  std::filesystem::create_directory(checkpoints / "step-x");
  save(10);
  REQUIRE(names_in(checkpoints) == std::vector<std::string>{"notes.txt", "step-10", "step-x"});
  REQUIRE(store.newest()->step == 10);
}

TEST_CASE_METHOD(Fixture, "state that JSON cannot represent is rejected") {
  TestContent content(1, {});
  content.content.state["data"]["scale"] = std::nan("");
  REQUIRE_THROWS_WITH(store.save(content.content), Catch::Contains("state.data.scale"));
  content.content.state = "\xff";
  REQUIRE_THROWS_AS(store.save(content.content), dsv3::Error);
  REQUIRE(names_in(checkpoints).empty());
}
