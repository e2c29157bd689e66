// Key functions of the SDK's interfaces: their type information lives in libdsv3, so that
// dynamic_cast and catch work across plugin libraries.
#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/communicator.h>
#include <dsv3/sdk/data.h>
#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/format.h>
#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/position.h>
#include <dsv3/sdk/schedule.h>
#include <dsv3/sdk/strategy.h>
#include <dsv3/sdk/tokenizer.h>
#include <dsv3/sdk/tracker.h>

namespace dsv3 {

Attention::~Attention() = default;
Communicator::~Communicator() = default;
Component::~Component() = default;
Data::~Data() = default;
FeedForward::~FeedForward() = default;
Format::~Format() = default;
Optimizer::~Optimizer() = default;
Position::~Position() = default;
Rejected::~Rejected() = default;
RetryAfter::~RetryAfter() = default;
Schedule::~Schedule() = default;
Strategy::~Strategy() = default;
Tokenizer::~Tokenizer() = default;
Tracker::~Tracker() = default;

}  // namespace dsv3
