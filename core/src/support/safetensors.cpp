#include <algorithm>
#include <cstring>
#include <utility>

#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>
#include <dsv3/support/safetensors.h>
#include <dsv3/support/sha256.h>

namespace dsv3::safetensors {
namespace {

constexpr uint64_t kPrefix = 8;               // bytes of the header's size field
constexpr uint64_t kMaxHeader = 100'000'000;  // as in the reference implementation
constexpr size_t kPiece =
    1 << 20;  // bytes; small enough to stay in the CPU cache between hashing and writing
const char* const kMetadata = "__metadata__";

constexpr std::pair<std::string_view, uint64_t> kDtypes[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1},
    {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},     {"U32", 4},
    {"F32", 4},  {"I64", 8}, {"U64", 8}, {"F64", 8}};

/// Calls f(arguments...) and prepends `prefix` to the message of an error.
template <class F, class... Arguments>
auto with_prefix(const std::string& prefix, const F& f, const Arguments&... arguments) {
  try {
    return f(arguments...);
  } catch (const Error& error) {
    throw Error(prefix + error.what(), ExitCode::checkpoint);
  }
}

/// Returns a tensor's size in bytes. The messages of its errors do not name the file or the tensor;
/// callers prepend both.
uint64_t bytes_of(const std::string& dtype, const std::vector<int64_t>& shape) {
  uint64_t size = element_size(dtype);
  if (size == 0) throw Error("unknown dtype '" + dtype + "'");
  bool overflow = false;
  for (int64_t n : shape) {
    if (n < 0) throw Error("negative dimension in the shape");
    overflow |= __builtin_mul_overflow(size, static_cast<uint64_t>(n), &size);
  }
  if (overflow) throw Error("shape is too large");
  return size;
}

/// Returns a field in a tensor's header entry.
const Json& field(const Json& entry, const char* key) {
  if (!entry.contains(key)) throw Error(std::string("missing '") + key + "'");
  return entry[key];
}

uint64_t offset_from(const Json& value) {
  if (!value.is_number_unsigned()) throw Error("an offset is not a non-negative integer");
  return value.get<uint64_t>();
}

struct Entry {
  std::string name;
  View view;
  uint64_t begin = 0, end = 0;
};

Entry entry_from(const std::string& name, const Json& json) {
  Entry entry;
  entry.name = name;
  const Json& dtype = field(json, "dtype");
  const Json& shape = field(json, "shape");
  const Json& offsets = field(json, "data_offsets");
  if (!dtype.is_string()) throw Error("dtype is not a string");
  if (!shape.is_array()) throw Error("shape is not a list");
  if (!offsets.is_array() || offsets.size() != 2)
    throw Error("data_offsets is not a pair of numbers");
  entry.view.dtype = dtype.get<std::string>();
  for (const Json& n : shape) {
    if (!n.is_number_unsigned() || n.get<uint64_t>() > INT64_MAX)
      throw Error("a dimension in the shape is not a non-negative integer");
    entry.view.shape.push_back(n.get<int64_t>());
  }
  entry.begin = offset_from(offsets[0]);
  entry.end = offset_from(offsets[1]);
  entry.view.size = bytes_of(entry.view.dtype, entry.view.shape);
  if (entry.end < entry.begin || entry.end - entry.begin != entry.view.size)
    throw Error("data_offsets " + std::to_string(entry.begin) + ".." + std::to_string(entry.end) +
                " do not match the " + std::to_string(entry.view.size) +
                " bytes of dtype and shape");
  return entry;
}

/// The header's JSON text, without the size field before it.
std::string_view header_of(std::string_view file) {
  if (file.size() < kPrefix) throw Error("it has only " + std::to_string(file.size()) + " bytes");
  uint64_t size = 0;
  for (size_t i = kPrefix; i-- > 0;) size = size << 8 | static_cast<unsigned char>(file[i]);
  if (size > kMaxHeader)
    throw Error("its header size of " + std::to_string(size) + " bytes exceeds the limit");
  if (size > file.size() - kPrefix)
    throw Error("it ends inside its header; the file was truncated or never fully written");
  std::string_view text = file.substr(kPrefix, size);
  if (!text.starts_with('{')) throw Error("its header does not start with '{'");
  return text;
}

std::map<std::string, std::string> metadata_from(const Json& json) {
  if (!json.is_object()) throw Error("__metadata__ is not an object");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : json.items()) {
    if (!value.is_string()) throw Error("__metadata__ '" + key + "' is not a string");
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

/// The tensors in a header, sorted by offset.
std::vector<Entry> entries_from(const Json& header) {
  std::vector<Entry> entries;
  for (const auto& [name, json] : header.items()) {
    if (name == kMetadata) continue;
    entries.push_back(with_prefix("tensor '" + name + "': ", entry_from, name, json));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  return entries;
}

/// Checks that the tensors follow one another without gaps until the end of the data.
void check_offsets(const std::vector<Entry>& entries, uint64_t data_size) {
  uint64_t end = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != end)
      throw Error("tensor '" + entry.name + "' starts at byte " + std::to_string(entry.begin) +
                  " of the data, but the tensor before it ends at " + std::to_string(end));
    end = entry.end;
  }
  if (end != data_size)
    throw Error("its tensors need " + std::to_string(end) + " bytes, but " +
                std::to_string(data_size) +
                " follow the header; the file was truncated or never fully written");
}

/// The size field and the header, padded with spaces so that the data starts at a multiple of 8.
std::string make_header(const std::map<std::string, View>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  uint64_t offset = 0;
  for (const auto& [name, view] : tensors) {
    if (name == kMetadata) throw Error("a tensor cannot be named __metadata__");
    const uint64_t size = with_prefix("tensor '" + name + "': ", bytes_of, view.dtype, view.shape);
    if (size != view.size)
      throw Error("tensor '" + name + "' has " + std::to_string(view.size) + " bytes, not the " +
                  std::to_string(size) + " of its dtype and shape");
    header[name] = {
        {"dtype", view.dtype}, {"shape", view.shape}, {"data_offsets", {offset, offset + size}}};
    offset += size;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::exception&) {
    throw Error("a tensor's name or the metadata is not valid UTF-8");
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > kMaxHeader) throw Error("the header would be larger than 100 MB");
  std::string prefix;
  for (size_t i = 0; i < kPrefix; ++i) prefix += static_cast<char>(text.size() >> (8 * i) & 0xff);
  return prefix + text;
}

}  // namespace

uint64_t element_size(std::string_view dtype) {
  for (const auto& [name, size] : kDtypes)
    if (name == dtype) return size;
  return 0;
}

Written write(const std::filesystem::path& path, const std::map<std::string, View>& tensors,
              const std::map<std::string, std::string>& metadata) {
  const std::string header =
      with_prefix("cannot write " + path.string() + ": ", make_header, tensors, metadata);
  fs::Writer file(path);
  Sha256 digest;
  Written written;
  auto put = [&](const void* bytes, uint64_t size) {
    const char* next = static_cast<const char*>(bytes);
    written.bytes += size;
    while (size > 0) {
      size_t piece = std::min<uint64_t>(size, kPiece);
      digest.update(next, piece);
      file.write(next, piece);
      next += piece;
      size -= piece;
    }
  };
  put(header.data(), header.size());
  for (const auto& [name, view] : tensors) put(view.bytes, view.size);
  file.sync();
  file.close();
  written.sha256 = digest.hex();
  return written;
}

File::File(const std::filesystem::path& path)
    : mapping_(with_prefix("", [&] { return fs::Mapping(path); })) {
  with_prefix(path.string() + ": not a valid safetensors file: ", [&] {
    const std::string_view text = header_of(mapping_.view());
    const std::string_view data = mapping_.view().substr(kPrefix + text.size());
    const Json header = parse_json(text, "header");
    if (header.contains(kMetadata)) metadata_ = metadata_from(header[kMetadata]);
    std::vector<Entry> entries = entries_from(header);
    check_offsets(entries, data.size());
    for (Entry& entry : entries) {
      entry.view.bytes = data.data() + entry.begin;
      tensors_.emplace(std::move(entry.name), std::move(entry.view));
    }
  });
}

}  // namespace dsv3::safetensors
