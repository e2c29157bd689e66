#include "plugin/stamp.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <elf.h>
#include <optional>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/stamp.h>

namespace dsv3 {
namespace {

constexpr std::string_view kMark = "@dsv3-plugin@ ";
constexpr size_t kLongestStamp = 4096;

#if defined(__x86_64__)
constexpr Elf64_Half kMachine = EM_X86_64;
#elif defined(__aarch64__)
constexpr Elf64_Half kMachine = EM_AARCH64;
#else
#error "unknown machine: add its ELF number"
#endif

[[noreturn]] void fail(const char* reason) {
  throw Error(reason, ExitCode::plugin);
}

[[noreturn]] void fail_damaged() {
  fail("damaged: the file is truncated or its headers are invalid; build or copy it again");
}

// Returns the `size` bytes at `offset`. Checks each against the file size first, so that their sum
// cannot overflow.
std::string_view slice(std::string_view file, uint64_t offset, uint64_t size) {
  if (offset > file.size() || size > file.size() - offset) fail_damaged();
  return file.substr(offset, size);
}

// Reads element `index` of the table at byte `table`. The sum cannot overflow once `table` has been
// checked, because index < 65536 and sizeof(T) is small.
template <class T>
T read_entry(std::string_view file, uint64_t table, uint64_t index) {
  if (table > file.size()) fail_damaged();
  T value;
  std::memcpy(&value, slice(file, table + index * sizeof(T), sizeof(T)).data(), sizeof(T));
  return value;
}

Elf64_Ehdr read_header(std::string_view file) {
  if (!file.starts_with(ELFMAG))
    fail("not a shared library (not an ELF file); pass the .so that dsv3_add_plugin() builds");
  const auto header = read_entry<Elf64_Ehdr>(file, 0, 0);
  constexpr auto order = std::endian::native == std::endian::little ? ELFDATA2LSB : ELFDATA2MSB;
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != order ||
      header.e_machine != kMachine)
    fail("built for a different machine architecture");
  if (header.e_type != ET_DYN) fail("not a shared library (a different kind of ELF file)");
  if (header.e_shnum == 0 || header.e_shentsize != sizeof(Elf64_Shdr) ||
      header.e_phentsize != sizeof(Elf64_Phdr) || header.e_shstrndx >= header.e_shnum)
    fail_damaged();
  return header;
}

// Requires the file to contain all segments that the dynamic loader would map.
void check_segments(std::string_view file, const Elf64_Ehdr& header) {
  for (uint64_t i = 0; i < header.e_phnum; ++i) {
    const auto segment = read_entry<Elf64_Phdr>(file, header.e_phoff, i);
    slice(file, segment.p_offset, segment.p_filesz);
  }
}

// Returns the bytes of section `name` in a 64-bit shared library for this machine; nullopt if there
// is none. Fails if `file` is not such a library or is truncated, which would crash the dynamic
// loader.
std::optional<std::string_view> elf_section(std::string_view file, std::string_view name) {
  const Elf64_Ehdr header = read_header(file);
  check_segments(file, header);
  const auto names_header = read_entry<Elf64_Shdr>(file, header.e_shoff, header.e_shstrndx);
  const std::string_view names = slice(file, names_header.sh_offset, names_header.sh_size);
  std::optional<std::string_view> found;
  for (uint64_t i = 0; i < header.e_shnum; ++i) {
    const auto section = read_entry<Elf64_Shdr>(file, header.e_shoff, i);
    if (section.sh_type == SHT_NOBITS || section.sh_type == SHT_NULL) continue;
    const std::string_view bytes = slice(file, section.sh_offset, section.sh_size);
    if (section.sh_name >= names.size()) fail_damaged();
    const std::string_view section_name = names.substr(section.sh_name);
    if (section_name.substr(0, section_name.find('\0')) == name) found = bytes;
  }
  return found;
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
