#include "checkpoint/pieces.h"

#include <algorithm>
#include <cstdio>

#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

const std::string kFilePrefix = "rank-", kFileSuffix = ".safetensors";

std::string quoted(const std::string& tensor) {
  return "tensor '" + tensor + "'";
}

/// Throws an error about a tensor unless `ok`. The caller adds the path of the manifest.
void check(bool ok, const std::string& tensor, const std::string& what) {
  if (!ok) throw Error(quoted(tensor) + ": " + what);
}

int64_t number_from(const Json& json, const std::string& tensor) {
  check(json.is_number_unsigned() && json.get<uint64_t>() <= INT64_MAX, tensor,
        "a number in its list of pieces is not a non-negative integer");
  return json.get<int64_t>();
}

/// Number of elements of a tensor with this shape.
int64_t size_of(const std::vector<int64_t>& shape, const std::string& tensor) {
  int64_t size = 1;
  bool overflow = false;
  for (const int64_t n : shape) overflow |= __builtin_mul_overflow(size, n, &size);
  check(!overflow, tensor, "its shape is too large");
  return size;
}

Piece piece_from(const Json& json, const std::string& tensor, const std::set<std::string>& files) {
  check(json.is_array() && json.size() == 3 && json[0].is_string(), tensor,
        "a piece is not [file, begin, end]");
  Piece piece{json[0].get<std::string>(), number_from(json[1], tensor),
              number_from(json[2], tensor)};
  check(files.contains(piece.file) && is_tensor_file(piece.file), tensor,
        "a piece is in '" + piece.file + "', which is not a tensor file of this checkpoint");
  return piece;
}

PieceList list_from(const Json& json, const std::string& tensor,
                    const std::set<std::string>& files) {
  check(json.is_object() && json.contains("shape") && json["shape"].is_array() &&
            json.contains("pieces") && json["pieces"].is_array(),
        tensor, "its list of pieces has no 'shape' or no 'pieces'");
  PieceList list{.one_value = json.value("one_value", Json()) == true};
  for (const Json& n : json["shape"]) list.shape.push_back(number_from(n, tensor));
  for (const Json& piece : json["pieces"]) list.pieces.push_back(piece_from(piece, tensor, files));
  return list;
}

/// Describes a piece: "elements 4 to 8, in rank-00001.safetensors,".
std::string described(const Piece& piece) {
  return "elements " + std::to_string(piece.begin) + " to " + std::to_string(piece.end) + ", in " +
         piece.file + ",";
}

/// Sorts the pieces of one tensor, and requires them to cover it exactly once.
void require_complete(const std::string& tensor, PieceList& list) {
  const int64_t size = size_of(list.shape, tensor);
  std::ranges::sort(list.pieces, {}, &Piece::begin);
  int64_t end = 0;
  for (const Piece& piece : list.pieces) {
    check(piece.begin < piece.end && piece.end <= size, tensor,
          described(piece) + " are outside the " + std::to_string(size) + " of the tensor");
    check(piece.begin >= end, tensor, described(piece) + " overlap with another piece");
    check(
        piece.begin == end, tensor,
        "no piece has element " + std::to_string(end) + "; the next ones are " + described(piece));
    end = piece.end;
  }
  check(end == size, tensor, "no piece has element " + std::to_string(end));
}

[[noreturn]] void damaged(const std::string& file, const std::string& tensor,
                          const std::string& what) {
  throw Error(file + ": " + quoted(tensor) + " " + what, ExitCode::checkpoint);
}

StoredTensor join(const std::map<std::string, safetensors::File>& files, const std::string& name,
                  const PieceList& list) {
  StoredTensor tensor{.shape = list.shape, .one_value = list.one_value};
  for (const Piece& piece : list.pieces) {
    const std::string key = key_of(name, piece);
    const auto& views = files.at(piece.file).tensors();
    const auto found = views.find(key);
    if (found == views.end()) damaged(piece.file, key, "is missing, but the manifest lists it");
    const safetensors::View& view = found->second;
    if (tensor.dtype.empty()) tensor.dtype = view.dtype;
    if (view.dtype != tensor.dtype)
      damaged(piece.file, key, "is " + view.dtype + ", but other pieces are " + tensor.dtype);
    const int64_t size = list.one_value ? 1 : piece.end - piece.begin;
    const auto stored = int64_t(view.size / safetensors::element_size(view.dtype));
    if (stored != size)
      damaged(piece.file, key,
              "has " + std::to_string(stored) + " elements, but the manifest lists " +
                  std::to_string(size));
    tensor.parts.push_back({piece.begin, piece.end, static_cast<const char*>(view.bytes)});
  }
  return tensor;
}

}  // namespace

std::string key_of(const std::string& tensor, const Piece& piece) {
  return tensor + "/" + std::to_string(piece.begin);
}

std::string tensor_file(int64_t rank) {
  std::string number = std::to_string(rank);
  number.insert(0, std::max<size_t>(5, number.size()) - number.size(), '0');
  return kFilePrefix + number + kFileSuffix;
}

bool is_tensor_file(const std::string& name) {
  return name.starts_with(kFilePrefix) && name.ends_with(kFileSuffix);
}

Json pieces_to_json(const PieceLists& lists) {
  Json json = Json::object();
  for (const auto& [name, list] : lists) {
    Json& entry = json[name] = {{"shape", list.shape}, {"pieces", Json::array()}};
    if (list.one_value) entry["one_value"] = true;
    for (const Piece& piece : list.pieces)
      entry["pieces"].push_back({piece.file, piece.begin, piece.end});
  }
  return json;
}

PieceLists pieces_from_json(const Json& json, const std::set<std::string>& files) {
  if (!json.is_object()) throw Error("'pieces' is not an object");
  PieceLists lists;
  for (const auto& [name, list] : json.items()) lists[name] = list_from(list, name, files);
  return lists;
}

void add_pieces(PieceLists& lists, PieceLists more) {
  for (auto& [name, list] : more) {
    PieceList& merged =
        lists.try_emplace(name, PieceList{list.shape, list.one_value}).first->second;
    check(merged.shape == list.shape && merged.one_value == list.one_value, name,
          "its shape differs between ranks");
    merged.pieces.insert(merged.pieces.end(), list.pieces.begin(), list.pieces.end());
  }
}

void require_complete(PieceLists& lists) {
  for (auto& [name, list] : lists) require_complete(name, list);
}

std::map<std::string, StoredTensor> join_pieces(
    const std::map<std::string, safetensors::File>& files, const PieceLists& lists) {
  std::map<std::string, StoredTensor> tensors;
  std::set<std::pair<std::string, std::string>> pieces;  // file and key
  for (const auto& [name, list] : lists) {
    for (const Piece& piece : list.pieces) pieces.emplace(piece.file, key_of(name, piece));
    tensors[name] = join(files, name, list);
  }
  for (const auto& [file, content] : files)
    for (const auto& [name, view] : content.tensors()) {
      if (pieces.contains({file, name})) continue;
      const auto size = int64_t(view.size / safetensors::element_size(view.dtype));
      const auto* bytes = static_cast<const char*>(view.bytes);
      if (!tensors.emplace(name, StoredTensor{view.dtype, view.shape, false, {{0, size, bytes}}})
               .second)
        damaged(file, name, "is stored a second time");
    }
  return tensors;
}

}  // namespace dsv3
