#include "plugin/elf.h"

#include <bit>
#include <cstdint>
#include <cstring>
#include <elf.h>

#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

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

}  // namespace

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

Dependencies dependencies_of(std::string_view file) {
  Dependencies found;
  const auto dynamic = elf_section(file, ".dynamic"), names = elf_section(file, ".dynstr");
  if (!dynamic || !names) return found;
  const auto text_at = [&](uint64_t offset) {
    const std::string_view rest =
        slice(*names, offset, names->size() - std::min<uint64_t>(offset, names->size()));
    return std::string(rest.substr(0, rest.find('\0')));
  };
  for (uint64_t i = 0; (i + 1) * sizeof(Elf64_Dyn) <= dynamic->size(); ++i) {
    const auto entry = read_entry<Elf64_Dyn>(*dynamic, 0, i);
    if (entry.d_tag == DT_NULL) break;
    if (entry.d_tag == DT_NEEDED) found.names.push_back(text_at(entry.d_un.d_val));
    if (entry.d_tag == DT_RUNPATH || entry.d_tag == DT_RPATH)
      found.run_path = text_at(entry.d_un.d_val);
  }
  return found;
}

}  // namespace dsv3
