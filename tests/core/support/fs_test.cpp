#include <cerrno>
#include <filesystem>
#include <vector>

#include <catch2/catch.hpp>

#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>

#include "core/support/temporary_folder.h"

namespace fs = dsv3::fs;
using fs::Call;

namespace {

/// Sets a fault hook during its lifetime.
struct Hooked {
  explicit Hooked(std::function<int(Call, const fs::Path&)> hook) {
    fs::set_fault_hook(std::move(hook));
  }
  ~Hooked() { fs::set_fault_hook({}); }
};

size_t entries_in(const fs::Path& path) {
  return std::distance(std::filesystem::directory_iterator(path), {});
}

}  // namespace

TEST_CASE("files can be written and read back") {
  TemporaryFolder folder;
  std::string text("a\0b\n", 4);
  {
    fs::Writer file(folder / "a");
    file.write(text);
    file.write(text);
    file.sync();
    file.close();
  }
  REQUIRE(get(folder / "a") == text + text);
  fs::Writer::append(folder / "a").write("more");
  REQUIRE(fs::read(folder / "a") == text + text + "more");
  fs::Writer truncated(folder / "a");
  REQUIRE(fs::read(folder / "a").empty());
  std::string large(3'000'000, 'x');
  put(folder / "b", large);
  std::string pieces;
  fs::read_pieces(folder / "b", [&](std::string_view piece) { pieces += piece; });
  REQUIRE(pieces == large);
}

TEST_CASE("read errors name the file and the cause") {
  TemporaryFolder folder;
  put(folder / "a", "12345");
  REQUIRE(fs::read(folder / "a", 5) == "12345");
  REQUIRE_THROWS_WITH(fs::read(folder / "a", 4),
                      Catch::Contains((folder / "a").string()) && Catch::Contains("limit of 4 B"));
  REQUIRE_THROWS_WITH(fs::read(folder / "none"), Catch::Contains("No such file"));
  REQUIRE_THROWS_AS(fs::read(folder.path()), dsv3::Error);
  REQUIRE_THROWS_AS(fs::Mapping(folder.path()), dsv3::Error);
}

TEST_CASE("the error for a full disk states how much space is needed and how much is free") {
  TemporaryFolder folder;
  Hooked hook([](Call call, const fs::Path&) { return call == Call::write ? ENOSPC : 0; });
  fs::Writer file(folder / "a");
  REQUIRE_THROWS_WITH(file.write(std::string(2048, 'x')),
                      Catch::Contains((folder / "a").string()) &&
                          Catch::Contains("No space left on device") &&
                          Catch::Contains("2.0 KiB needed") && Catch::Contains(" free"));
}

TEST_CASE("writing to a full device (/dev/full) is an error, not a crash") {
  fs::Writer full("/dev/full");
  REQUIRE_THROWS_WITH(full.write("x"), Catch::Contains("No space left on device"));
}

TEST_CASE("an atomic write leaves either the old or the new content, whichever system call fails") {
  TemporaryFolder folder;
  put(folder / "a", "old");
  int calls = 0;
  {
    Hooked hook([&](Call, const fs::Path&) { return ++calls, 0; });
    fs::write_atomically(folder / "a", "new");
  }
  REQUIRE(get(folder / "a") == "new");
  REQUIRE(calls == 5);  // open, write, fsync, rename, fsync of the folder
  for (int n = 1; n <= calls; ++n) {
    for (int error : {ENOSPC, EIO}) {
      put(folder / "a", "old");
      int call = 0;
      {
        Hooked hook([&](Call, const fs::Path&) { return ++call == n ? error : 0; });
        REQUIRE_THROWS_AS(fs::write_atomically(folder / "a", "new"), dsv3::Error);
      }
      REQUIRE(get(folder / "a") == (n < calls ? "old" : "new"));
      REQUIRE(entries_in(folder.path()) == 1);
    }
  }
}

TEST_CASE("folders are created with their parents and removed with their content") {
  TemporaryFolder folder;
  fs::make_folders(folder / "a/b/c");
  fs::make_folders(folder / "a/b/c");
  REQUIRE(std::filesystem::is_directory(folder / "a/b/c"));
  REQUIRE_FALSE(fs::make_folder(folder / "a"));
  put(folder / "other", "x");
  put(folder / "a/b/file", "x");
  REQUIRE_THROWS_WITH(fs::make_folders(folder / "a/b/file"),
                      Catch::Contains("a file with that name exists"));
  std::filesystem::create_directory(folder / "elsewhere");
  put(folder / "elsewhere/file", "x");
  std::filesystem::create_directory_symlink(folder / "elsewhere", folder / "a/link");
  fs::remove_all(folder / "a");
  REQUIRE_FALSE(std::filesystem::exists(folder / "a"));
  REQUIRE(get(folder / "elsewhere/file") == "x");
  fs::remove_all(folder / "a");  // does not exist
  fs::rename(folder / "other", folder / "moved");
  REQUIRE(get(folder / "moved") == "x");
  REQUIRE_THROWS_AS(fs::rename(folder / "other", folder / "moved"), dsv3::Error);
}

TEST_CASE("a memory mapping contains the whole file, even if it is empty") {
  TemporaryFolder folder;
  put(folder / "a", "hello");
  fs::Mapping mapping(folder / "a");
  fs::Mapping moved(std::move(mapping));
  REQUIRE(moved.view() == "hello");
  REQUIRE(mapping.size() == 0);
  put(folder / "empty", "");
  REQUIRE(fs::Mapping(folder / "empty").view().empty());
}
