// Tensors as entries of a checkpoint, and back.
#pragma once

#include <map>
#include <string>

#include <ATen/core/Tensor.h>

#include <dsv3/sdk/optimizer.h>
#include <dsv3/support/safetensors.h>

namespace dsv3 {

/// The key's last part for a range: the parameter's name, and "/<first element>" when it is only a
/// piece.
std::string range_key(const Range& range);

/// Adds `tensor` under `key`; returns the host tensor whose memory the view points at.
at::Tensor add_view(std::map<std::string, safetensors::View>& views, const std::string& key,
                    const at::Tensor& tensor);

/// Overwrites `tensor` with the view `key`, bit for bit. Throws dsv3::Error (ExitCode::checkpoint)
/// when it is missing or of another shape or dtype.
void copy_view(const std::map<std::string, safetensors::View>& views, const std::string& key,
               const at::Tensor& tensor);

}  // namespace dsv3
