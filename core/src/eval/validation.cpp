#include "eval/validation.h"

#include <numeric>

#include "data/timed_tokenizer.h"

namespace dsv3 {

int64_t micro_batch_of(const TrainOptions& train, int64_t world) {
  if (train.batch % world != 0)
    throw Error(c10::str("train.batch ", train.batch, " cannot be divided among ", world,
                         " ranks; use a multiple of ", world),
                ExitCode::usage);
  const int64_t micro_batch = train.micro_batch.value_or(train.batch / world);
  if (train.batch % (micro_batch * world) != 0)
    throw Error(c10::str("train.batch ", train.batch, " is not a multiple of train.micro_batch ",
                         micro_batch, " x ", world, " rank(s); set train.micro_batch to ",
                         std::gcd(micro_batch, train.batch / world)),
                ExitCode::usage);
  return micro_batch;
}

std::unique_ptr<Loader> make_loader(const Experiment& experiment, Plugins& plugins,
                                    const Model& model, Split split, int64_t micro_batch,
                                    std::shared_ptr<const Tokenizer> tokenizer, int64_t rank,
                                    int64_t world) {
  const auto timed =
      tokenizer ? std::make_shared<const TimedTokenizer>(std::move(tokenizer)) : nullptr;
  const DataContext context{.split = split,
                            .rank = rank,
                            .world = world,
                            .micro_batch = micro_batch,
                            .sequence = experiment.train.sequence,
                            .seed = uint64_t(experiment.train.seed),
                            .vocab = model.vocab(),
                            .validation_share = experiment.validation.share,
                            .tokenizer = timed};
  return std::make_unique<Loader>(make<Data>(plugins, experiment.data, context), context,
                                  split == Split::train ? 4 : 0, timed);
}

ValidationSum validate(Model& model, Loader& loader, int64_t forwards,
                       const std::function<bool(const Batch&)>& visit) {
  ValidationSum sum;
  for (int64_t i = 0; i < forwards; ++i) {
    const Batch batch = loader.next();
    if (!batch.tokens.defined()) break;
    const auto [nats, targets] = model.evaluate(batch);
    sum.nats += nats;
    sum.targets += targets;
    if (visit && !visit(batch)) break;
  }
  return sum;
}

}  // namespace dsv3
