// Helpers for layer checks: contexts, initial weights, inputs and comparisons.
#pragma once

#include <map>

#include <ATen/ATen.h>

#include <dsv3/runtime/model.h>

#include "conformance/suite.h"
#include "ops/meta_kernels.h"

namespace dsv3::conformance {

constexpr int64_t kHidden = 32, kLength = 12;

/// Returns reproducible, normally distributed values. Does not advance torch's global generator.
at::Tensor normal(at::IntArrayRef sizes, uint64_t seed, at::ScalarType dtype = at::kDouble);

/// Returns the context of layer 1 of 2, with a plain rotary position encoding and a new, empty
/// parameter store.
LayerContext layer_context(at::ScalarType dtype, at::Device device = at::kCPU);

/// Fills parameters with random values around 0 (around 1 for norm weights) that depend only on the
/// parameters' names and shapes.
void fill(const ParameterStore& store);

/// Describes a batch in which each row is a single document.
Sequence one_document(int64_t batch, int64_t length, bool training = true);
/// Describes a batch whose rows contain packed documents, starting at 0 and at each index in
/// `starts`.
Sequence packed(int64_t batch, int64_t length, const std::vector<int64_t>& starts);

/// Returns a description of rows on the CPU as a description of the same rows on `device`.
Sequence to_device(Sequence seq, at::Device device);

/// Returns the largest absolute difference divided by the largest absolute value in `expected`, or
/// infinity if shapes differ or a value is not finite. The divisor is at least `smallest`. The
/// tensors may be on different devices.
double difference(const at::Tensor& actual, const at::Tensor& expected, double smallest = 1e-30);

/// Throws a Violation unless every element is finite.
void require_finite(const at::Tensor& tensor, const std::string& what);

/// Throws a Violation unless `tensor` is finite, has these sizes and this dtype, and is on
/// `device`.
void require_like(const at::Tensor& tensor, at::IntArrayRef sizes, at::ScalarType dtype,
                  const std::string& what, at::Device device = at::kCPU);

/// Throws a Violation unless the tensors are bit-identical.
void require_equal(const at::Tensor& actual, const at::Tensor& expected, const std::string& what);
/// Throws a Violation unless difference() is at most `bound`.
void require_close(const at::Tensor& actual, const at::Tensor& expected, double bound,
                   const std::string& what);

/// Returns the largest absolute value.
double largest(const at::Tensor& tensor);

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// Returns the gradients of sum(y * w), where w is a fixed random tensor, with respect to `inputs`.
/// They are zero for an input that y does not depend on.
std::vector<at::Tensor> gradients(const at::Tensor& y, const NamedTensors& inputs);

/// Throws a Violation unless autograd agrees with central differences for a sample of elements of
/// each input. `inputs` must be float64.
void require_gradients(const std::function<at::Tensor()>& function, const NamedTensors& inputs);

/// Throws a Violation if `y` depends on a tensor that requires gradients and is not in `inputs`.
void require_declared_leaves(const at::Tensor& y, const NamedTensors& inputs);

/// Calls `body` with metrics that are recorded, and throws a Violation unless the component's
/// schema describes each of them.
void require_described_metrics(const Subject& subject,
                               const std::function<void(const Metrics&)>& body);

/// Throws a Violation if declared parameters are invalid or differ on the meta device.
void require_declarations(const std::function<void(const LayerContext&)>& build);

// A tiny model that is trained both with plain autograd and under a strategy, for checks that
// compare the two.

constexpr int64_t kVocab = 29, kRows = 4, kSequence = 12, kMtpDepth = 1;
constexpr double kLearningRate = 0.05;
constexpr uint64_t kSeed = 3;

/// Returns an experiment with two layers and one MTP module.
Experiment tiny_experiment(const std::string& recompute = "none", bool tied_head = true);

/// Returns a factory for reference layers. If `subject` is given, it replaces the reference layer
/// of its kind.
ModelFactory tiny_factory(const Subject* subject = nullptr);

/// Returns a batch of packed documents, a different one for every step.
Batch tiny_batch(int64_t step);

/// Computes the gradients for a rank's rows of a step's batch in micro-batches of `micro` rows,
/// under `strategy` if it is not null. Returns the loss of these rows.
double accumulate(Model& model, int64_t step, int64_t micro, Strategy* strategy = nullptr,
                  int64_t rank = 0, int64_t ranks = 1);

struct Trained {
  std::vector<double> losses, norms;
  std::map<std::string, at::Tensor> parameters;  ///< values after the last step
  std::map<std::string, at::Tensor> gradients;   ///< gradients in the last step; set only by
                                                 ///< train_plainly()
  std::vector<at::Tensor> counts;  ///< step_counts() after all steps; set only by train_plainly()
};
/// Runs `steps` steps of gradient descent with plain autograd, in micro-batches of `micro` rows.
Trained train_plainly(const Experiment& experiment, const ModelFactory& factory, int64_t steps,
                      int64_t micro, at::ScalarType dtype = at::kFloat);
/// Like train_plainly(), but under `strategy`, which was created for the same dtype and device.
Trained train_under(const std::shared_ptr<Strategy>& strategy, const Experiment& experiment,
                    const ModelFactory& factory, int64_t steps, int64_t micro,
                    at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU);

/// Throws a Violation if the relative difference between losses, norms, parameters or gradients
/// (which only train_plainly() sets) exceeds `bound`, or if counts differ at all.
void require_same(const Trained& actual, const Trained& expected, double bound,
                  const std::string& what);

/// Adds a check that a model with the component under test (attention, feed_forward or position)
/// trains identically with recomputation, with different micro-batch sizes, and under a strategy.
void model_check(const AddCheck& check);

/// The attention or feed-forward layer under test, with initialised parameters.
template <class Layer>
struct LayerUnderTest {
  LayerUnderTest(const Subject& subject, at::ScalarType dtype, at::Device device = at::kCPU)
      : context(layer_context(dtype, device)), layer(construct<Layer>(subject, context)) {
    fill(*context.store);
  }

  at::Tensor operator()(const at::Tensor& x, const Sequence& seq) const {
    return layer->forward(x, seq);
  }
  /// Runs forward() on rows with one document each.
  at::Tensor operator()(const at::Tensor& x) const {
    return layer->forward(x, one_document(x.size(0), x.size(1)));
  }
  const std::vector<Parameter>& parameters() const { return context.store->parameters(); }
  /// Returns `x` and every parameter.
  NamedTensors inputs(const at::Tensor& x) const {
    NamedTensors all{{"the input", x}};
    for (const Parameter& parameter : parameters())
      all.emplace_back(parameter.name, parameter.tensor);
    return all;
  }
  /// Returns the gradients of forward()'s result with respect to inputs(x).
  std::vector<at::Tensor> gradients(const at::Tensor& x, const Sequence& seq) const {
    return conformance::gradients(layer->forward(x, seq), inputs(x));
  }
  /// Throws a Violation if `body` changes a parameter.
  void require_parameters_unchanged(const std::string& after,
                                    const std::function<void()>& body) const {
    std::vector<at::Tensor> values;
    for (const Parameter& parameter : parameters()) values.push_back(parameter.tensor.clone());
    body();
    for (size_t i = 0; i < values.size(); ++i)
      require_equal(parameters()[i].tensor, values[i],
                    "parameter " + parameters()[i].name + " after " + after);
  }

  LayerContext context;
  std::shared_ptr<Layer> layer;
};

/// Adds the checks that apply to all layers and run before those for a specific kind.
template <class Layer>
void cheap_layer_checks(const AddCheck& check) {
  check("declarations", "declares valid parameters on the CPU and the meta device",
        [](const Subject& subject) {
          require_declarations(
              [&](const LayerContext& context) { construct<Layer>(subject, context); });
        });
  check("shapes", "returns [B, T, D] in fp32, bf16 and float64", [](const Subject& subject) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
      const LayerUnderTest<Layer> layer(subject, dtype);
      for (const auto& [batch, length] : {std::pair<int64_t, int64_t>{2, kLength}, {1, 1}, {3, 16}})
        require_like(layer(normal({batch, length, kHidden}, 7, dtype)), {batch, length, kHidden},
                     dtype, "forward's result");
    }
  });
  check("leaves", "declares every tensor that requires gradients", [](const Subject& subject) {
    const LayerUnderTest<Layer> layer(subject, at::kFloat);
    const at::Tensor x = normal({2, kLength, kHidden}, 13, at::kFloat).requires_grad_();
    require_declared_leaves(layer(x), layer.inputs(x));
  });
  check("inputs", "does not modify inputs or parameters, and does not retain inputs",
        [](const Subject& subject) {
          const LayerUnderTest<Layer> layer(subject, at::kFloat);
          const at::Tensor x = normal({2, kLength, kHidden}, 12, at::kFloat), original = x.clone();
          layer.require_parameters_unchanged("forward", [&] { layer(x); });
          require(x.use_count() == 1,
                  "the layer keeps a reference to its input after the result is freed");
          require_equal(x, original, "the input after forward(), which must not modify it,");
        });
  check("determinism", "returns bit-identical results when repeated", [](const Subject& subject) {
    const auto run = [&] {
      const LayerUnderTest<Layer> layer(subject, at::kFloat);
      const at::Tensor x = normal({2, kLength, kHidden}, 8, at::kFloat).requires_grad_();
      std::vector<at::Tensor> results = layer.gradients(x, one_document(2, kLength));
      results.push_back(layer(x));
      return results;
    };
    const auto first = run(), second = run();
    for (size_t i = 0; i < first.size(); ++i)
      require_equal(second[i], first[i], "the result of a second, identical layer");
  });
}

/// Adds the checks that apply to all layers and run after those for a specific kind.
template <class Layer>
void costly_layer_checks(const AddCheck& check) {
  check("gradients", "computes gradients that match central differences",
        [](const Subject& subject) {
          const LayerUnderTest<Layer> layer(subject, at::kDouble);
          const at::Tensor x = normal({1, 6, kHidden}, 9).requires_grad_();
          Sequence seq = one_document(1, 6);
          seq.aux_scale = 0;  // central differences of the result do not include auxiliary losses
          require_gradients([&] { return layer(x, seq); }, layer.inputs(x));
        });
  check("recompute", "recomputes bit-identical results", [](const Subject& subject) {
    const LayerUnderTest<Layer> layer(subject, at::kFloat);
    const at::Tensor x = normal({2, kLength, kHidden}, 10, at::kFloat);
    Sequence seq = packed(2, kLength, {5});
    const at::Tensor first = layer(x, seq);
    seq.recompute = true;
    require_equal(layer(x, seq), first, "the output when the forward pass is recomputed");
  });
  check("meta", "runs on the meta device, where FLOPs and memory are measured",
        [](const Subject& subject) {
          const MetaKernels kernels;
          const LayerUnderTest<Layer> layer(subject, at::kFloat, at::kMeta);
          const at::Tensor x =
              at::empty({2, kLength, kHidden}, at::TensorOptions().device(at::kMeta))
                  .requires_grad_();
          const at::Tensor y = layer(x, to_device(one_document(2, kLength), at::kMeta));
          require(y.is_meta() && y.sizes() == x.sizes(), "forward's result is not like its input");
          gradients(y, layer.inputs(x));
        });
  check("metrics", "records described metrics, without changing its result",
        [](const Subject& subject) {
          const LayerUnderTest<Layer> layer(subject, at::kFloat), other(subject, at::kFloat);
          const at::Tensor x = normal({2, kLength, kHidden}, 14, at::kFloat);
          const Sequence seq = one_document(2, kLength);
          require_described_metrics(subject, [&](const Metrics& metrics) {
            Sequence recording = seq;
            recording.metrics = metrics;
            require_equal(layer(x, recording), other(x, seq),
                          "the result when metrics are recorded");
            layer.layer->on_step_end({layer.layer->step_counts(), 0.1, 1, metrics});
          });
        });
  check("memory", "frees its memory", [](const Subject& subject) {
    const LayerUnderTest<Layer> layer(subject, at::kFloat);
    require_steady_memory([&] {
      const at::Tensor x = normal({2, kLength, kHidden}, 11, at::kFloat).requires_grad_();
      layer.gradients(x, one_document(2, kLength));
    });
  });
  model_check(check);
}

}  // namespace dsv3::conformance
