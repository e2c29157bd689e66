// Validation of a run: the same rows and the same sum in training and in `dsv3 eval`.
#pragma once

#include <functional>
#include <memory>

#include <dsv3/runtime/data.h>
#include <dsv3/runtime/model.h>

namespace dsv3 {

/// `train.micro_batch`, or the whole batch for `auto`; throws when it does not divide the batch.
int64_t micro_batch_of(const TrainOptions& train, int64_t world);

/// Training batches are made ahead on a thread; validation's are not.
std::unique_ptr<Loader> make_loader(const Experiment& experiment, Plugins& plugins,
                                    const Model& model, Split split, int64_t micro_batch,
                                    std::shared_ptr<const Tokenizer> tokenizer);

/// Cross-entropy over held-out text.
struct ValidationSum {
  double nats = 0;
  int64_t targets = 0;  ///< 0: the data holds nothing out
  double loss() const { return nats / static_cast<double>(targets); }
};

/// `forwards` batches from where `loader` stands, fewer when it ends. `visit`, if given, sees each.
ValidationSum validate(Model& model, Loader& loader, int64_t forwards,
                       const std::function<void(const Batch&)>& visit = {});

}  // namespace dsv3
