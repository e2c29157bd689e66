// What a start and --dry-run share with the checks before them.
#pragma once

#include <dsv3/runtime/experiment.h>
#include <dsv3/sdk/tokenizer.h>

namespace dsv3 {

/// `model.vocab`, or the tokenizer's size for `auto`; throws when it is too small or cannot be
/// determined. `tokenizer` may be null.
int64_t vocab_of(const Experiment& experiment, const Tokenizer* tokenizer);

}  // namespace dsv3
