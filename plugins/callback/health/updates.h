// Statistics of gradients and updates by layer.
#pragma once

#include <span>

#include <dsv3/sdk/callback.h>

namespace health {

/// Returns "3" for parameters of layer 3, "rest" for those of layers from `max_layers` on, and the
/// first part of the name for other parameters, such as "embedding".
std::string key_of(const std::string& parameter, int64_t max_layers);

/// Compares blocks of consecutive rows in a matrix's update. Returns a scalar: the largest factor,
/// over all places where the rows can be split in two, by which every row of one part exceeds every
/// row of the other part, in root mean square. Rows are averaged in 24 bands before they are
/// compared, and the band at the split is ignored. At most about 1 if the rows are alike. `updates`
/// are matrices of any shapes with at least kBands rows.
at::Tensor block_ratio(const std::vector<at::Tensor>& updates);
constexpr int64_t kBands = 24;

/// Records health/grad_rms, update_rms, weight_rms, zero_gradients and block_ratio by layer. Does
/// not wait for the device.
void record(std::span<const dsv3::ParameterUpdate> updates, int64_t max_layers,
            const dsv3::Metrics& metrics);

}  // namespace health
