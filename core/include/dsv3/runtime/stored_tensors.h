// The tensors of a checkpoint, whole, whatever the number of ranks that saved them.
#pragma once

#include <ATen/core/Tensor.h>

#include <dsv3/runtime/checkpoint.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/optimizer.h>

namespace dsv3 {

struct StoredTensor;

/// Tensors in memory-mapped files or in memory, by name. Copies share them. Errors are dsv3::Error
/// (ExitCode::checkpoint) and name the tensor.
class StoredTensors {
 public:
  StoredTensors();
  /// Whole tensors. `memory` owns the memory to which they point.
  StoredTensors(const std::map<std::string, safetensors::View>& views,
                std::shared_ptr<const void> memory = nullptr);
  /// Opens the files of a checkpoint that was verified. Throws if a file lacks a piece that the
  /// manifest lists, or has it in another size or dtype; the error names the file, too.
  explicit StoredTensors(const StoredCheckpoint& checkpoint);

  std::vector<std::string> names() const;
  bool contains(const std::string& name) const;
  const std::vector<int64_t>& shape(const std::string& name) const;

  /// Copies a whole tensor into `tensor`, which has the same shape and dtype and may be on any
  /// device. Throws if the tensor does not exist or has another shape or dtype.
  void read(const std::string& name, const at::Tensor& tensor) const;
  /// Copies the elements of `range`, whose global_shape is the shape of the stored tensor, into
  /// `tensor`, which has as many elements.
  void read(const std::string& name, const Range& range, const at::Tensor& tensor) const;
  /// Copies the one value that is stored for the first element of `range` into `tensor`, a scalar.
  void read_value(const std::string& name, const Range& range, const at::Tensor& tensor) const;
  /// Returns a whole tensor on the CPU, which must not be changed. It is a view of the stored one
  /// unless that is in pieces.
  at::Tensor whole(const std::string& name) const;

  /// Reads the tensor `source` instead of `name` from now on.
  void replace(const std::string& name, const std::string& source);
  /// Throws an Error with `code` if a floating-point tensor contains NaN or infinity: "<where>:
  /// tensor 'model/head.weight' has values that are not finite". Checks every `ranks`-th part from
  /// part `rank` on, so that ranks can share the work.
  void require_finite(const std::string& where, ExitCode code, int64_t rank = 0,
                      int64_t ranks = 1) const;

 private:
  const StoredTensor& find(const std::string& name) const;
  /// Requires the stored tensor to have this shape and dtype.
  const StoredTensor& find(const std::string& name, at::IntArrayRef shape, at::ScalarType dtype,
                           bool one_value = false) const;

  std::map<std::string, std::shared_ptr<const StoredTensor>> tensors_;
  std::shared_ptr<const void> memory_;
};

}  // namespace dsv3
