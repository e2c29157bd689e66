// The strategies of this library and their options.
#include <dsv3/sdk/plugin.h>

#include "strategy.h"

namespace {

using dsv3::OptionSchema;
using dsv3::StrategyContext;
using dsv3::data_parallel::DataParallel;
using dsv3::data_parallel::Settings;

struct DdpOptions {
  double bucket = 25;
  static void describe(OptionSchema<DdpOptions>& s) {
    s.add("bucket", &DdpOptions::bucket, "size of the pieces in which gradients are summed")
        .min(0.001)
        .unit("MB");
  }
};

int64_t bytes_of(double megabytes) {
  return int64_t(megabytes * (1 << 20));
}

class Ddp final : public DataParallel {
 public:
  using Options = DdpOptions;
  Ddp(const Options& options, const StrategyContext& context)
      : DataParallel(
            Settings{.name = "ddp", .shard_ranks = 1, .bucket_bytes = bytes_of(options.bucket)},
            context) {}
};

enum class Offload { none, optimizer, parameters };

struct ZeroOptions {
  std::string name = "zero";
  int64_t stage = 2;
  Offload offload = Offload::none;
  bool reshard_after_forward = true;
  int64_t prefetch = 1, shard = 0;
  std::string reduce = "fp32", freed = "released";
  double bucket = 25;

  template <class T>
  static void describe(OptionSchema<T>& s) {
    s.add(
         "stage", &ZeroOptions::stage,
         "what is sharded over ranks: 1 = optimizer state, 2 = also gradients, 3 = also parameters")
        .min(1)
        .max(3);
    s.add("offload", &ZeroOptions::offload,
          {{"none", Offload::none},
           {"optimizer", Offload::optimizer},
           {"parameters", Offload::parameters}},
          "what is in host memory: optimizer = fp32 weights and optimizer state, parameters = also "
          "the sharded parameters of stage 3; no effect on a CPU");
    s.add(
        "reshard_after_forward", &ZeroOptions::reshard_after_forward,
        "in stage 3, free a unit's parameters after its forward pass and gather them again in the "
        "backward pass");
    s.add("prefetch", &ZeroOptions::prefetch,
          "in stage 3, number of units whose parameters are gathered ahead of their use")
        .min(0);
    s.add("shard", &ZeroOptions::shard,
          "number of consecutive ranks that share one copy of the state, which is replicated over "
          "the other ranks (HSDP); 0 = all ranks")
        .min(0);
    s.add("reduce", &ZeroOptions::reduce,
          "dtype in which gradients are sent; sums are computed in fp32")
        .choices({"fp32", "bf16"});
    s.add("bucket", &ZeroOptions::bucket, "size of the pieces in which gradients are summed")
        .min(0.001)
        .unit("MB");
    s.add(
         "freed", &ZeroOptions::freed,
         "in stage 3, memory of parameters between uses: released, or filled with NaN to find code "
         "that reads them")
        .choices({"released", "nan"});
    s.check([](const T& o) {
      return o.offload == Offload::parameters && o.stage != 3
                 ? "offload: parameters requires stage: 3"
                 : "";
    });
  }
};

Settings settings_of(const ZeroOptions& options) {
  return {.name = options.name,
          .shard_ranks = options.shard,
          .shard_gradients = options.stage >= 2,
          .shard_parameters = options.stage == 3,
          .offload_optimizer = options.offload != Offload::none,
          .offload_parameters = options.offload == Offload::parameters,
          .reshard_after_forward = options.reshard_after_forward,
          .prefetch = options.prefetch,
          .reduce = options.reduce == "bf16" ? at::kBFloat16 : at::kFloat,
          .bucket_bytes = bytes_of(options.bucket),
          .fill_freed = options.freed == "nan"};
}

struct FsdpOptions : ZeroOptions {
  FsdpOptions() {
    name = "fsdp";
    stage = 3;
  }
};

struct Stage2Options : ZeroOptions {
  Stage2Options() {
    name = "deepspeed_stage_2";
    offload = Offload::optimizer;
  }
};

struct Stage3Options : ZeroOptions {
  Stage3Options() {
    name = "deepspeed_stage_3";
    stage = 3;
    offload = Offload::parameters;
  }
};

/// The same strategy with other defaults.
template <class Defaults>
class Zero final : public DataParallel {
 public:
  using Options = Defaults;
  Zero(const Options& options, const StrategyContext& context)
      : DataParallel(settings_of(options), context) {}
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.strategy<Ddp>(
      "ddp", "Every rank has all parameters and sums gradients during the backward pass (DDP)");
  registrar.strategy<Zero<ZeroOptions>>(
      "zero", "Ranks share optimizer state, gradients and parameters (ZeRO)");
  registrar.strategy<Zero<FsdpOptions>>(
      "fsdp", "Ranks share optimizer state, gradients and parameters (zero with stage: 3)");
  registrar.strategy<Zero<Stage2Options>>(
      "deepspeed_stage_2",
      "Ranks share optimizer state and gradients, in host memory (zero with stage: 2)");
  registrar.strategy<Zero<Stage3Options>>(
      "deepspeed_stage_3",
      "Ranks share optimizer state, gradients and parameters, in host memory (zero with stage: 3)");
}
