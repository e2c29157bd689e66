// Converts between tensors and entries of safetensors files.
#pragma once

#include <optional>

#include <ATen/ATen.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/optimizer.h>
#include <dsv3/support/safetensors.h>

namespace dsv3 {

/// The name that safetensors uses for `dtype`, e.g. "BF16". Throws dsv3::Error
/// (ExitCode::checkpoint) for dtypes that checkpoints do not store.
std::string dtype_name(at::ScalarType dtype);

/// Inverse of dtype_name; nullopt for unknown names.
std::optional<at::ScalarType> dtype_from_name(const std::string& name);

/// Last part of the checkpoint key for `range`: the parameter's name, followed by "/<first
/// element>" if the range does not cover the whole parameter.
std::string range_key(const Range& range);

/// Adds a view of `tensor` to `views` under `key`. Returns the host tensor that owns the view's
/// memory.
at::Tensor add_view(std::map<std::string, safetensors::View>& views, const std::string& key,
                    const at::Tensor& tensor);

/// Copies the stored tensor `key` into `tensor` bit for bit. Throws dsv3::Error
/// (ExitCode::checkpoint) if it is missing or has a different shape or dtype.
void copy_view(const std::map<std::string, safetensors::View>& views, const std::string& key,
               const at::Tensor& tensor);

/// Throws dsv3::Error with `code` if a floating-point tensor contains NaN or infinity: "<where>:
/// tensor 'model/head.weight' has values that are not finite".
void require_finite(const std::map<std::string, safetensors::View>& views, const std::string& where,
                    ExitCode code);

}  // namespace dsv3
