#include "train/parameter_hashes.h"

#include <ATen/ATen.h>

#include <dsv3/support/sha256.h>

#include "ranks/exchange.h"

namespace dsv3 {

void ParameterHashes::add(const std::string& name, std::string_view bytes, int64_t matrices,
                          int64_t shards) {
  Digests& entry = parameters_[name];
  entry.shards = shards;
  const size_t size = bytes.size() / size_t(matrices);
  for (size_t begin = 0; size > 0 && begin < bytes.size(); begin += size)
    entry.digests += sha256(bytes.substr(begin, size));
}

void ParameterHashes::add(const Parameter& parameter) {
  const at::Tensor host = parameter.tensor.detach().cpu().contiguous();
  add(parameter.name, {static_cast<const char*>(host.const_data_ptr()), host.nbytes()},
      parameter.spec.matrices, parameter.spec.shards);
}

Json ParameterHashes::by_name(Communicator& control) const {
  Json own = Json::object();  // digests of parameters that ranks share
  for (const auto& [name, parameter] : parameters_)
    if (parameter.shards > 1) own[name] = parameter.digests;
  std::vector<Json> all;
  for (const std::string& text : gather_texts(control, own.dump()))
    all.push_back(Json::parse(text));
  Json hashes = Json::object();
  for (const auto& [name, parameter] : parameters_) {
    Sha256 digest;
    if (parameter.shards == 1) digest.update(parameter.digests);
    for (int64_t rank = 0; parameter.shards > 1 && rank < parameter.shards; ++rank)
      digest.update(all[size_t(rank)].at(name).get<std::string>());
    hashes[name] = digest.hex();
  }
  return hashes;
}

std::string hash_of_all(const Json& by_name) {
  return sha256(by_name.dump());
}

}  // namespace dsv3
