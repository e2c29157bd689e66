// Computes a run's validation loss, with the same rows and summation order in training and in `dsv3
// eval`.
#pragma once

#include <dsv3/runtime/data.h>
#include <dsv3/runtime/model.h>

namespace dsv3 {

/// Returns the micro-batch size: `train.micro_batch`, or for `auto` all of a rank's sequences per
/// step. Throws if train.batch is not a multiple of this size times `world`, the number of ranks.
int64_t micro_batch_of(const TrainOptions& train, int64_t world);

/// Creates a loader that prefetches training batches on a thread and loads validation batches on
/// demand.
std::unique_ptr<Loader> make_loader(const Experiment& experiment, Plugins& plugins,
                                    const Model& model, Split split, int64_t micro_batch,
                                    std::shared_ptr<const Tokenizer> tokenizer, int64_t rank = 0,
                                    int64_t world = 1);

/// Cross-entropy over the held-out set.
struct ValidationSum {
  double nats = 0;
  int64_t targets = 0;  ///< 0 = the validation split is empty
  double loss() const { return nats / double(targets); }
};

/// Evaluates up to `forwards` batches from `loader` and passes each one to `visit`. Stops early if
/// `visit` returns false.
ValidationSum validate(Model& model, Loader& loader, int64_t forwards,
                       const std::function<bool(const Batch&)>& visit = {});

}  // namespace dsv3
