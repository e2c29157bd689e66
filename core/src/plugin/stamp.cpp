#include "plugin/stamp.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/stamp.h>
#include <dsv3/support/sha256.h>

#include "plugin/elf.h"

namespace dsv3 {
namespace {

constexpr std::string_view kMark = "@dsv3-plugin@ ";
constexpr size_t kLongestStamp = 4096;
// What core/cmake/Dsv3Seal.cmake appends to the library: the mark, 64 digits and a newline.
constexpr std::string_view kSealMark = "@dsv3-sha256@ ";
constexpr size_t kSealSize = kSealMark.size() + 64 + 1;

[[noreturn]] void fail(const char* reason) {
  throw Error(reason, ExitCode::plugin);
}

std::vector<std::string> split(std::string_view text, std::string_view separator) {
  std::vector<std::string> parts;
  while (true) {
    const size_t end = text.find(separator);
    parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + separator.size());
  }
}

// Returns the text in a StampNote; empty if the bytes are not a StampNote.
std::string_view note_text(std::string_view note) {
  constexpr size_t kHeader = 3 * sizeof(uint32_t) + 8;  // owner size, text size, type, padded owner
  uint32_t owner_size, size;
  if (note.size() < kHeader) return {};
  std::memcpy(&owner_size, note.data(), sizeof owner_size);
  std::memcpy(&size, note.data() + sizeof owner_size, sizeof size);
  if (owner_size != 5 || note.substr(12, 5) != std::string_view("dsv3", 5)) return {};
  if (size > kLongestStamp || size > note.size() - kHeader) return {};
  const std::string_view text = note.substr(kHeader, size);
  return text.substr(0, text.find('\0'));
}

constexpr std::pair<std::string_view, std::string Stamp::*> kFields[]{
    {"sdk", &Stamp::sdk},        {"headers", &Stamp::headers},
    {"torch", &Stamp::torch},    {"cxx_abi", &Stamp::cxx_abi},
    {"cuda", &Stamp::cuda},      {"glibcxx_debug", &Stamp::glibcxx_debug},
    {"name", &Stamp::name},      {"compiler", &Stamp::compiler},
    {"version", &Stamp::version}};

// Returns nullopt if the text is not a stamp. Skips unknown keys, because a later SDK may add some.
std::optional<Stamp> parse(std::string_view text) {
  const auto printable = [](unsigned char c) { return c >= 0x20 && c < 0x7f; };
  if (!text.starts_with(kMark) || !std::all_of(text.begin(), text.end(), printable))
    return std::nullopt;
  Stamp stamp;
  for (const std::string& pair : split(text.substr(kMark.size()), "; ")) {
    const size_t equals = pair.find('=');
    if (equals == std::string::npos) return std::nullopt;
    const std::string key = pair.substr(0, equals), value = pair.substr(equals + 1);
    if (key == "provides") stamp.provides = split(value, ",");
    for (const auto& [name, field] : kFields)
      if (key == name) stamp.*field = value;
  }
  if (stamp.name.empty() || stamp.provides.empty()) return std::nullopt;
  return stamp;
}

std::string or_none(const std::string& value) {
  return value.empty() ? "(none)" : value;
}

// Of _GLIBCXX_DEBUG.
std::string on_or_off(const std::string& value) {
  return value == "1" ? "on" : value == "0" ? "off" : value;
}

std::string sdk_text(const Stamp& stamp) {
  return or_none(stamp.sdk) + " (headers " + or_none(stamp.headers.substr(0, 8)) + ")";
}

}  // namespace

Stamp read_stamp(std::string_view file) {
  const auto note = elf_section(file, ".note.dsv3");
  if (!note)
    fail("not a dsv3 plugin; build it with dsv3_add_plugin(), which find_package(dsv3) provides");
  auto stamp = parse(note_text(*note));
  if (!stamp) fail("damaged: cannot read its stamp (section .note.dsv3)");
  return *std::move(stamp);
}

void check_seal(std::string_view file) {
  const std::string_view seal = file.substr(file.size() - std::min(file.size(), kSealSize));
  if (!seal.starts_with(kSealMark))
    fail(
        "damaged: its end, which contains its SHA-256, is missing; build or copy it again (after "
        "`strip`, use `cmake --install --strip`)");
  const std::string digest = sha256(file.substr(0, file.size() - kSealSize));
  if (seal.substr(kSealMark.size(), 64) != digest || seal.back() != '\n')
    fail("damaged: its SHA-256 is not the one that the build recorded; build or copy it again");
}

Stamp host_stamp() {
  return *parse(DSV3_STAMP("dsv3", DSV3_SDK_VERSION, ""));
}

std::vector<std::string> stamp_differences(const Stamp& plugin, const Stamp& host) {
  std::vector<std::string> lines;
  const auto compare = [&](bool equal, const char* label, const std::string& theirs,
                           const std::string& ours) {
    if (!equal) lines.push_back(label + ("plugin " + theirs) + ", this dsv3 " + ours);
  };
  const auto plain = [&](const char* label, const std::string& theirs, const std::string& ours) {
    compare(theirs == ours, label, or_none(theirs), or_none(ours));
  };
  compare(plugin.sdk == host.sdk && plugin.headers == host.headers,
          "SDK:             ", sdk_text(plugin), sdk_text(host));
  plain("C++ ABI:         ", plugin.cxx_abi, host.cxx_abi);
  plain("debug iterators: ", on_or_off(plugin.glibcxx_debug), on_or_off(host.glibcxx_debug));
  plain("LibTorch:        ", plugin.torch, host.torch);
  compare(plugin.cuda == host.cuda || plugin.cuda == "none",
          "CUDA:            ", or_none(plugin.cuda), or_none(host.cuda));
  return lines;
}

}  // namespace dsv3
