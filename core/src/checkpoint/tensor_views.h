// Converts between tensors and entries of safetensors files and checkpoints.
#pragma once

#include <functional>
#include <optional>

#include <ATen/ATen.h>

#include <dsv3/runtime/checkpoint.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/optimizer.h>

namespace dsv3 {

/// The name that safetensors uses for `dtype`, e.g. "BF16". Throws dsv3::Error
/// (ExitCode::checkpoint) for dtypes that checkpoints do not store.
std::string dtype_name(at::ScalarType dtype);

/// Inverse of dtype_name; nullopt for unknown names.
std::optional<at::ScalarType> dtype_from_name(const std::string& name);

/// The number of the first element of `range` in the whole tensor. Throws dsv3::Error if the
/// range's box is a slice along another dimension than the first.
int64_t first_element(const Range& range);

/// Throws dsv3::Error unless `values` has as many elements as `range`.
void require_size(const Range& range, const at::Tensor& values);

/// The same elements of the whole tensor as a vector, the shape in which optimizers that work on
/// pieces of any length have their state.
Range flattened(const Range& range);

/// The name under which a range is stored whole, which optimizer state for a matrix always is: the
/// parameter's name, followed by "/<first element>" if the parameter has more elements.
std::string range_key(const Range& range);

/// Adds the values of a range to a checkpoint under <prefix><range.name>, if this rank stores them
/// (Range::primary): as a piece unless the range covers the whole tensor. A `values` with a single
/// element holds for the whole range if `one_value` is true.
void add_range(CheckpointContent& content, const std::string& prefix, const Range& range,
               const at::Tensor& values, bool one_value = false);

/// Adds a tensor that only this rank stores.
void add_whole(CheckpointContent& content, const std::string& name, const at::Tensor& tensor);

/// Adds a view of `tensor` to `views` under `key`. Returns the host tensor that owns the view's
/// memory.
at::Tensor add_view(std::map<std::string, safetensors::View>& views, const std::string& key,
                    const at::Tensor& tensor);

/// Copies the tensors whose memory training may change.
void copy_borrowed(CheckpointContent& content);

/// Calls `fill` with contiguous memory on the host, which then has the values of `tensor`.
void fill_from_host(const at::Tensor& tensor, const std::function<void(char*)>& fill);

/// Throws dsv3::Error with `code` if a floating-point tensor contains NaN or infinity: "<where>:
/// tensor 'model/head.weight' has values that are not finite".
void require_finite(const std::map<std::string, safetensors::View>& views, const std::string& where,
                    ExitCode code);

}  // namespace dsv3
