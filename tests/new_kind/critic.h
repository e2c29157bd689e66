// Interface for `critic` components.
#pragma once

#include <string>

#include <dsv3/sdk/pluggable.h>

namespace dsv3 {

struct CriticContext {
  double target = 0;
};

class Critic : public Pluggable {
 public:
  /// Returns an opinion on a loss.
  virtual std::string opinion(double loss) const = 0;
};

}  // namespace dsv3
