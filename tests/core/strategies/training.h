// Trains a small model on several ranks, which are threads of this process.
#pragma once

#include <map>

#include <ATen/ATen.h>

#include <dsv3/runtime/model.h>
#include <dsv3/runtime/optimizer_set.h>

namespace dsv3::test {

/// One way to distribute training, and the model that is trained.
struct Setup {
  std::string strategy = "single";
  OptionValues options = {};
  int64_t ranks = 1;
  bool muon = false;  ///< for matrices; AdamW for the others
  bool tied = false;
  bool recompute = false;
  int64_t accumulate = 1;
  int64_t steps = 50;
  uint64_t seed = 5;
  at::ScalarType dtype = at::kFloat;

  std::string text() const;
};

/// What all ranks of a run computed together.
struct Result {
  std::vector<double> losses, norms, validation;  ///< by step
  std::map<std::string, at::Tensor> weights;      ///< final values, from the primary pieces
  std::map<std::string, at::Tensor> covered;      ///< by how many primary pieces, by element
  std::map<std::string, at::Tensor> state;        ///< likewise, by update_ranges()
  double margin = 1;  ///< smallest difference between a chosen and another expert's score
};

/// Trains with an MoE layer and an MTP module. Every rank counts different numbers of valid tokens.
Result train(const Setup& setup);

/// Returns the largest relative difference between numbers of two runs.
double difference(const std::vector<double>& a, const std::vector<double>& b);
/// Returns the largest difference between weights, relative to the largest weight of the tensor.
double difference(const std::map<std::string, at::Tensor>& a,
                  const std::map<std::string, at::Tensor>& b);
/// Whether everything that the runs computed is bit-identical.
bool is_identical(const Result& a, const Result& b);

}  // namespace dsv3::test
