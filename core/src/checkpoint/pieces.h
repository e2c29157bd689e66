// Lists of the pieces in which several ranks store a tensor.
#pragma once

#include <set>

#include <dsv3/runtime/checkpoint.h>

namespace dsv3 {

/// The name of a piece in its file.
std::string key_of(const std::string& tensor, const Piece& piece);

/// The name of a rank's file of tensors.
std::string tensor_file(int64_t rank);
/// Whether `name` is the name of such a file.
bool is_tensor_file(const std::string& name);

/// Converts the lists to {<tensor>: {"shape": [...], "pieces": [[file, begin, end], ...]}}, with
/// "one_value": true where it applies, and back. Throws dsv3::Error, which names the tensor, if the
/// JSON is not valid or a piece is in none of `files`.
Json pieces_to_json(const PieceLists& lists);
PieceLists pieces_from_json(const Json& json, const std::set<std::string>& files);

/// Adds the pieces of another rank. Throws dsv3::Error if the ranks disagree about a tensor.
void add_pieces(PieceLists& lists, PieceLists more);

/// Sorts the pieces. Throws a dsv3::Error that names the tensor and the file unless they cover each
/// tensor exactly once.
void require_complete(PieceLists& lists);

/// A tensor in the memory-mapped files of a checkpoint.
struct StoredTensor {
  /// Elements `begin` to `end` in row-major order. The memory may be unaligned.
  struct Part {
    int64_t begin = 0, end = 0;
    const char* bytes = nullptr;
  };
  std::string dtype = {};
  std::vector<int64_t> shape = {};
  bool one_value = false;        ///< whether each part has one value for all of its elements
  std::vector<Part> parts = {};  ///< in order; they cover the tensor exactly once
};

/// The tensors in `files`, by name, of which `lists` are stored in pieces. Throws a dsv3::Error
/// (ExitCode::checkpoint) that names the file and the tensor if a file lacks a piece, if a piece
/// has another size or dtype than it should, or if two files have the same tensor.
std::map<std::string, StoredTensor> join_pieces(
    const std::map<std::string, safetensors::File>& files, const PieceLists& lists);

}  // namespace dsv3
