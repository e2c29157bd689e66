// Exchanges texts, decisions and errors between ranks.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include <dsv3/sdk/communicator.h>

namespace dsv3 {

/// Returns the texts of all ranks, in rank order. Collective.
std::vector<std::string> gather_texts(Communicator& ranks, const std::string& text);

/// Returns `root`'s text. Collective.
std::string broadcast_text(Communicator& ranks, const std::string& text, int64_t root = 0);

/// Whether `value` is true on any rank. Collective.
bool is_true_on_any(Communicator& ranks, bool value);

/// What ranks must agree on, by name.
using Facts = std::map<std::string, std::string>;

/// Throws dsv3::Error (ExitCode::usage) on all ranks if `facts` differ between them. The error
/// names the lowest rank that differs from rank 0, its host, and both values. Collective.
void require_equal(Communicator& ranks, const Facts& facts);

/// Calls `f` on every rank. If it throws on some ranks, they throw their own error, and the others
/// throw the error of the lowest of these ranks, which names the rank. `f` need not be collective.
void run_together(Communicator& ranks, const std::function<void()>& f);

}  // namespace dsv3
