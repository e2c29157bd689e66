#include "updates.h"

#include <cmath>
#include <map>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

namespace health {
namespace {

/// The pieces that one key summarises.
struct Group {
  std::vector<at::Tensor> grads, changes, values;  // of matrices other than routers
  std::vector<at::Tensor> dense_grads;             // of all parameters that every token uses
  std::vector<at::Tensor> tall_updates;            // by an optimizer for matrices
  int64_t elements = 0;                            // of matrices
};

/// Whether rows of the update can be compared. An orthogonalised matrix with more columns than rows
/// has rows of equal norm, whatever it consists of.
bool is_tall_matrix(const dsv3::ParameterUpdate& update) {
  const std::vector<int64_t>& shape = update.range.global_shape;
  return update.whole_matrices && shape.size() == 2 && shape[0] >= kBands && shape[0] > shape[1] &&
         update.change.numel() == shape[0] * shape[1];
}

std::map<std::string, Group> grouped(std::span<const dsv3::ParameterUpdate> updates,
                                     int64_t max_layers) {
  std::map<std::string, Group> groups;
  for (const dsv3::ParameterUpdate& update : updates) {
    const size_t dims = update.range.global_shape.size();
    Group& group = groups[key_of(update.range.name, max_layers)];
    // An expert without tokens has no gradient, and neither have the embeddings of unused tokens.
    // Stacked experts have 3 dimensions.
    if (dims < 3 && update.role != dsv3::Role::embedding) group.dense_grads.push_back(update.grad);
    if (is_tall_matrix(update))
      group.tall_updates.push_back(update.change.view({update.range.global_shape}));
    if (dims < 2 || update.role == dsv3::Role::router) continue;
    group.grads.push_back(update.grad);
    group.changes.push_back(update.change);
    group.values.push_back(update.value);
    group.elements += update.grad.numel();
  }
  return groups;
}

/// Returns the norms of all tensors, as one tensor.
at::Tensor norms(const std::vector<at::Tensor>& tensors) {
  return at::stack(at::_foreach_norm(tensors));
}

}  // namespace

std::string key_of(const std::string& parameter, int64_t max_layers) {
  const std::string prefix = "layers.";
  if (!parameter.starts_with(prefix)) return parameter.substr(0, parameter.find('.'));
  const std::string layer =
      parameter.substr(prefix.size(), parameter.find('.', prefix.size()) - prefix.size());
  return std::stoll(layer) < max_layers ? layer : "rest";
}

at::Tensor block_ratio(const std::vector<at::Tensor>& updates) {
  std::vector<at::Tensor> bands;
  for (const at::Tensor& update : updates)
    bands.push_back(at::adaptive_avg_pool1d(update.square().mean(1).unsqueeze(0), kBands).sqrt());
  const at::Tensor rms = at::cat(bands);  // [matrices, kBands]
  const auto from_left = [&](const at::Tensor& x, bool largest) {
    return std::get<0>(largest ? x.cummax(1) : x.cummin(1));
  };
  const auto from_right = [&](bool largest) { return from_left(rms.flip(1), largest).flip(1); };
  // Both parts have at least 3 bands: 0 to s - 1 and s + 1 to 23, for s in 3 to 20.
  const int64_t splits = kBands - 6;
  const auto left = [&](bool largest) { return from_left(rms, largest).narrow(1, 2, splits); };
  const auto right = [&](bool largest) { return from_right(largest).narrow(1, 4, splits); };
  const auto factor = [](const at::Tensor& small, const at::Tensor& large) {
    return (small / large.clamp_min(1e-30)).max();
  };
  return at::maximum(factor(left(false), right(true)), factor(right(false), left(true)));
}

void record(std::span<const dsv3::ParameterUpdate> updates, int64_t max_layers,
            const dsv3::Metrics& metrics) {
  const at::NoGradGuard no_grad;
  for (const auto& [key, group] : grouped(updates, max_layers)) {
    const auto name = [&](const char* metric) {
      return std::string("health/") + metric + "/" + key;
    };
    if (group.elements > 0) {
      const double root = std::sqrt(double(group.elements));
      const auto rms = [&](const char* metric, const std::vector<at::Tensor>& tensors) {
        metrics.scalar(name(metric), at::linalg_vector_norm(norms(tensors)) / root,
                       dsv3::Reduce::rms, double(group.elements));
      };
      rms("grad_rms", group.grads);
      rms("update_rms", group.changes);
      rms("weight_rms", group.values);
    }
    if (!group.dense_grads.empty())
      metrics.scalar(name("zero_gradients"), norms(group.dense_grads).eq(0).sum(),
                     dsv3::Reduce::sum);
    if (!group.tall_updates.empty())
      metrics.scalar(name("block_ratio"), block_ratio(group.tall_updates), dsv3::Reduce::max);
  }
}

}  // namespace health
