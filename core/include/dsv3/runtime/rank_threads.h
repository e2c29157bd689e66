// Ranks as threads of one process, for tests of strategies and of collective code.
#pragma once

#include <functional>

#include <dsv3/sdk/communicator.h>

namespace dsv3 {

/// Calls `f` on `ranks` threads, each with a communicator over Gloo that connects them. If `f`
/// throws on some ranks, operations of the others fail. Then throws the error of the lowest rank
/// that did not merely lose a peer.
void on_ranks(int64_t ranks, const std::function<void(std::shared_ptr<Communicator>)>& f);

}  // namespace dsv3
