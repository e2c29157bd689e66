// Hashes of a model's initial weights, with which runs prove that they started alike.
#pragma once

#include <map>

#include <dsv3/sdk/component.h>
#include <dsv3/support/json.h>

namespace dsv3 {

/// A parameter's hash is the SHA-256 of the SHA-256 digests of its matrices (see
/// ParamSpec::matrices), so that ranks that hold different matrices of it can compute it together.
class ParameterHashes {
 public:
  /// Adds a parameter, or this rank's slice of it.
  void add(const Parameter& parameter);
  /// Adds a parameter's values in host memory. With `shards`, they are this rank's slice.
  void add(const std::string& name, std::string_view bytes, int64_t matrices, int64_t shards = 1);
  /// Returns the hashes by parameter name, equal on all ranks. Collective.
  Json by_name(Communicator& control) const;

 private:
  struct Digests {
    std::string digests;  // of the matrices, in order
    int64_t shards;
  };
  std::map<std::string, Digests> parameters_;
};

/// One hash of all parameters.
std::string hash_of_all(const Json& by_name);

}  // namespace dsv3
