// Tests reading plugin stamps from valid, truncated and corrupt files.
#include "plugin/stamp.h"

#include <random>

#include <dsv3/sdk/stamp.h>

#include "fixtures.h"
#include "plugin/elf.h"

using Catch::Matchers::Contains;

TEST_CASE("a plugin's stamp records its name, version and build environment") {
  const dsv3::Stamp stamp = dsv3::read_stamp(get(library("good")));
  CHECK(stamp.name == "fixture_good");
  CHECK(stamp.version == "1.2.3");
  CHECK(stamp.provides == std::vector<std::string>{"schedule/halving"});
  CHECK(stamp.sdk == DSV3_SDK_VERSION);
  CHECK(stamp.headers == DSV3_SDK_HEADERS);
  CHECK(stamp.torch == TORCH_VERSION);
  CHECK(stamp.cuda == "none");
  CHECK(stamp.glibcxx_debug == "0");
  CHECK_THAT(stamp.compiler, Contains("-"));
  CHECK(dsv3::stamp_differences(stamp, dsv3::host_stamp()).empty());
}

TEST_CASE("a plugin without CUDA loads into a dsv3 with CUDA, but not vice versa") {
  dsv3::Stamp plugin = dsv3::host_stamp(), host = plugin;
  plugin.cuda = "none";
  host.cuda = "13";
  CHECK(dsv3::stamp_differences(plugin, host).empty());
  std::swap(plugin, host);
  CHECK(dsv3::stamp_differences(plugin, host) ==
        std::vector<std::string>{"CUDA:            plugin 13, this dsv3 none"});
}

TEST_CASE("the error for a file that is not a plugin states what the file is") {
  const auto reason = [](const std::string& bytes) {
    return error_of([&] { dsv3::read_stamp(bytes); });
  };
  std::string bytes = get(library("good"));
  CHECK_THAT(reason(""), Contains("not an ELF file"));
  CHECK_THAT(reason("#!/bin/sh\n"), Contains("not an ELF file"));
  CHECK_THAT(reason(get("/proc/self/exe")),
             Contains("not a dsv3 plugin") || Contains("different kind of ELF file"));
  std::string other = bytes;
  other[18] = 0x28;  // e_machine: ARM
  CHECK_THAT(reason(other), Contains("different machine architecture"));
  other = bytes;
  other[4] = 1;  // 32 bit
  CHECK_THAT(reason(other), Contains("different machine architecture"));
  other = bytes;
  other[other.find("@dsv3-plugin@")] = 'x';
  CHECK_THAT(reason(other), Contains("cannot read its stamp (section .note.dsv3)"));
}

TEST_CASE("truncated plugin libraries are rejected") {
  const std::string bytes = get(library("good"));
  for (size_t size = 0; size < bytes.size(); size += size < 4096 ? 1 : 61)
    CHECK_THROWS_AS(dsv3::check_seal(std::string_view(bytes).substr(0, size)), dsv3::Error);
  for (size_t size = 0; size < bytes.size() - 4096; size += size < 4096 ? 1 : 61)
    CHECK_THROWS_AS(dsv3::read_stamp(std::string_view(bytes).substr(0, size)), dsv3::Error);
}

TEST_CASE("every changed byte of a plugin library is found") {
  const std::string bytes = get(library("good"));
  CHECK_NOTHROW(dsv3::check_seal(bytes));
  for (size_t at = 0; at < bytes.size(); at += at + 100 < bytes.size() ? 97 : 1) {
    std::string copy = bytes;
    copy[at] ^= char(1 << at % 8);
    CHECK_THROWS_AS(dsv3::check_seal(copy), dsv3::Error);
  }
}

TEST_CASE("the libraries that a plugin needs are read from its file") {
  const std::string bytes = get(library("good"));
  const dsv3::Dependencies needed = dsv3::dependencies_of(bytes);
  CHECK(std::ranges::count(needed.names, "libdsv3.so") == 1);
  CHECK_THAT(needed.run_path, Contains("$ORIGIN"));
}

TEST_CASE("corrupt ELF headers result in a stamp or an error, never in an out-of-bounds read") {
  const std::string bytes = get(library("good"));
  std::mt19937 random(7);
  size_t rejected = 0;
  // The ELF and program headers are at the start of the file, the section headers at its end.
  const size_t tail = std::min<size_t>(bytes.size(), 64 * 40);
  for (int trial = 0; trial < 4000; ++trial) {
    // A heap copy of the exact size, so that sanitizers and Valgrind detect reads past its end.
    std::vector<char> copy(bytes.begin(), bytes.end());
    for (int flips = 0; flips < 3; ++flips) {
      const size_t at = trial % 2 ? random() % 1024 : copy.size() - 1 - random() % tail;
      copy[at] = static_cast<char>(random());
    }
    try {
      dsv3::read_stamp({copy.data(), copy.size()});
    } catch (const dsv3::Error&) {
      ++rejected;
    }
  }
  CHECK(rejected > 100);
}

TEST_CASE("out-of-range sizes in the stamp's ELF note are rejected") {
  const std::string bytes = get(library("good"));
  const size_t note = bytes.find("@dsv3-plugin@") - 20;
  for (const uint32_t size : {0u, 1u, 5000u, 0xffffffffu, 0x80000000u}) {
    std::string copy = bytes;
    copy.replace(note + 4, 4, reinterpret_cast<const char*>(&size), 4);
    CHECK_THAT(error_of([&] { dsv3::read_stamp(copy); }), Contains("cannot read its stamp"));
  }
}
