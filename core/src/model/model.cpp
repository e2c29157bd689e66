// Builds a model and passes its parameters to a strategy. The computations are in forward.cpp.
#include <ATen/ATen.h>

#include <dsv3/runtime/failure.h>
#include <dsv3/runtime/model.h>
#include <dsv3/sdk/error.h>

#include "call/checked.h"
#include "model/parts.h"

namespace dsv3 {
namespace {

/// Layers with the same rotary width share one Position object, which is stored in `positions`.
std::function<std::shared_ptr<Position>(int64_t)> shared_positions(
    const ModelFactory& factory, std::shared_ptr<Positions> positions, int64_t sequence) {
  return [make = factory.position, positions, sequence](int64_t rotary_dim) {
    std::shared_ptr<Position>& position = (*positions)[rotary_dim];
    if (!position) position = make({.rotary_dim = rotary_dim, .sequence = sequence});
    return position;
  };
}

const LayerRange& range_of(const std::vector<LayerRange>& ranges, int64_t layer) {
  for (const LayerRange& range : ranges)
    if (range.first <= layer && layer <= range.last) return range;
  throw Error("no component is configured for layer " + std::to_string(layer), ExitCode::usage);
}

/// Gives a parameter uninitialised memory, unless it has some. Components keep their handles to it.
void allocate_on(at::Device device, const Parameter& parameter) {
  const at::Tensor& tensor = parameter.tensor;
  if (!tensor.is_meta() || device.is_meta()) return;
  try {
    at::Tensor memory = at::empty(tensor.sizes(), tensor.options().device(device));
    tensor.unsafeGetTensorImpl()->shallow_copy_from(memory.getIntrusivePtr());
  } catch (const std::exception&) {
    throw Error(c10::str("cannot create parameter '", parameter.name, "' of shape ", tensor.sizes(),
                         ": ", current_exception_text()),
                current_exception_code());
  }
}

}  // namespace

ModelFactory factory_of(const Experiment& experiment, Plugins& plugins) {
  // MTP modules use the last layer's components.
  const auto spec = [attention = experiment.attention, feed_forward = experiment.feed_forward,
                     last = experiment.model.layers - 1](Kind kind, int64_t layer) {
    return range_of(kind == Kind::attention ? attention : feed_forward, std::min(layer, last))
        .component;
  };
  ModelFactory factory;
  factory.attention = [spec, &plugins](const LayerContext& context) {
    return make<Attention>(plugins, spec(Kind::attention, context.layer), context);
  };
  factory.feed_forward = [spec, &plugins](const LayerContext& context) {
    return make<FeedForward>(plugins, spec(Kind::feed_forward, context.layer), context);
  };
  factory.position = [position = experiment.position, &plugins](const PositionContext& context) {
    return make<Position>(plugins, position, context);
  };
  return factory;
}

Model::Model(const Experiment& experiment, int64_t vocab, const ModelFactory& factory,
             at::Device device, at::ScalarType dtype)
    : parts_(std::make_unique<Parts>()) {
  Parts& parts = *parts_;
  parts.experiment = experiment;
  parts.vocab = vocab;
  parts.device = device;
  const ModelOptions& options = experiment.model;
  if (vocab < 1) throw Error("the vocabulary is empty: set model.vocab", ExitCode::usage);

  LayerContext context;
  context.dims = {.hidden = options.hidden,
                  .sequence = experiment.train.sequence,
                  .layers = options.layers,
                  .norm_eps = experiment.norm.eps};
  context.dtype = dtype;
  context.device = device;
  context.rank_group = factory.rank_group;
  context.store = parts.store;
  parts.store->defer_allocation();
  context.make_position = shared_positions(factory, parts.positions, experiment.train.sequence);

  const auto unit = [&](const std::string& name, const auto& build) {
    const size_t first = parts.store->parameters().size();
    build();
    parts.units.push_back({.name = name,
                           .first = first,
                           .last = parts.store->parameters().size(),
                           .index = int(parts.units.size())});
  };
  const auto layer = [&](int64_t number) {
    LayerContext inner = context;
    inner.layer = number;
    inner.prefix = "layers." + std::to_string(number);
    return inner;
  };
  const auto collect = [&](const Block& block) {
    parts.attention.push_back(block.attention());
    parts.feed_forward.push_back(block.feed_forward());
  };

  parts.trunk = std::make_unique<Trunk>(context);
  unit("embedding", [&] {
    parts.embedding = parts.trunk->parameter("embedding.weight", {vocab, options.hidden},
                                             {.role = Role::embedding});
  });
  for (int64_t i = 0; i < options.layers; ++i) {
    const LayerContext inner = layer(i);
    unit(inner.prefix, [&] {
      parts.blocks.push_back(std::make_unique<Block>(inner, factory, experiment.norm.place));
      collect(*parts.blocks.back());
    });
  }
  for (int64_t k = 0; k < experiment.mtp.depth; ++k) {
    const LayerContext inner = layer(options.layers + k);
    unit(inner.prefix, [&] {
      parts.mtp.push_back(std::make_unique<MtpModule>(inner, factory, experiment.norm.place,
                                                      experiment.mtp.concat == "embedding_first"));
      collect(parts.mtp.back()->block());
    });
  }
  unit("head", [&] {
    parts.final_norm = RmsNorm(*parts.trunk, "final_norm", options.hidden, experiment.norm.eps);
    parts.head = parts.tied() ? parts.embedding
                              : parts.trunk->parameter("head.weight", {vocab, options.hidden},
                                                       {.role = Role::head});
  });
  // The embedding's weights are needed in the backward pass only if the head uses them, too.
  parts.units.front().needed_in_backward = parts.tied();
}

Model::~Model() = default;

UnitSpec Model::Parts::spec_of(const Unit& unit,
                               const std::function<int(const Parameter&)>& group_of) const {
  UnitSpec spec{.name = unit.name, .params = {}, .needed_in_backward = unit.needed_in_backward};
  for (size_t i = unit.first; i < unit.last; ++i) {
    const Parameter& parameter = store->parameters()[i];
    std::vector<int64_t> global = parameter.tensor.sizes().vec(), offset(global.size(), 0);
    if (parameter.spec.shards > 1) {
      offset[0] = parameter.spec.shard * global[0];
      global[0] *= parameter.spec.shards;
    }
    spec.params.push_back({.name = parameter.name,
                           .tensor = parameter.tensor,
                           .global_shape = std::move(global),
                           .box_offset = std::move(offset),
                           .matrices = parameter.spec.matrices,
                           .group = group_of(parameter),
                           .keep_fp32 = parameter.spec.keep_fp32,
                           .shards = parameter.spec.shards});
  }
  return spec;
}

void Model::Parts::fill(const Unit& unit, uint64_t seed) {
  for (size_t i = unit.first; i < unit.last; ++i) {
    const Parameter& parameter = store->parameters()[i];
    at::Tensor tensor = parameter.tensor;
    allocate_on(device, parameter);
    dsv3::initialise(tensor, parameter.name, parameter.spec.init, experiment.init.std, seed,
                     parameter.spec.shard * tensor.numel());
  }
}

void Model::allocate() {
  for (const Parameter& parameter : parts_->store->parameters())
    allocate_on(parts_->device, parameter);
}

void Model::initialise(uint64_t seed) {
  for (const Unit& unit : parts_->units) parts_->fill(unit, seed);
}

void Model::adopt(Strategy& strategy, uint64_t seed,
                  const std::function<int(const Parameter&)>& group_of,
                  const std::function<void(const Parameter&)>& initialised) {
  for (int adopted = 0; Unit & unit : parts_->units) {
    parts_->fill(unit, seed);
    for (size_t i = unit.first; initialised && i < unit.last; ++i)
      initialised(parts_->store->parameters()[i]);
    unit.index = checked::adopt(strategy, parts_->spec_of(unit, group_of), adopted++);
  }
  parts_->strategy = &strategy;
}

at::Tensor Model::checksums() {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> sums;
  for (const Unit& unit : parts_->units) {
    parts_->enter(unit, {});
    for (size_t i = unit.first; i < unit.last; ++i) {
      const at::Tensor& values = parts_->store->parameters()[i].tensor;
      const at::ScalarType bits = values.element_size() == 2 ? at::kShort : at::kInt;
      sums.push_back(values.detach().contiguous().view(bits).sum(at::kLong));
    }
    parts_->leave(unit, {});
  }
  return at::stack(sums);
}

std::vector<UnitSpec> Model::units(const std::function<int(const Parameter&)>& group_of) const {
  std::vector<UnitSpec> specs;
  for (const Unit& unit : parts_->units) specs.push_back(parts_->spec_of(unit, group_of));
  return specs;
}

std::vector<UnitUse> Model::uses() const {
  const size_t blocks = parts_->blocks.size(), head = parts_->units.size() - 1;
  std::vector<UnitUse> uses;
  const auto use_head = [&] {
    uses.push_back({head});
    if (parts_->tied()) uses.push_back({0});
  };
  uses.push_back({0, false});
  for (size_t i = 0; i < blocks; ++i) uses.push_back({1 + i});
  use_head();
  for (size_t k = 0; k < parts_->mtp.size(); ++k) {
    uses.push_back({0, false});
    uses.push_back({1 + blocks + k});
    use_head();
  }
  return uses;
}

const ParameterStore& Model::store() const {
  return *parts_->store;
}
const std::vector<std::shared_ptr<Attention>>& Model::attention() const {
  return parts_->attention;
}
const std::vector<std::shared_ptr<FeedForward>>& Model::feed_forward() const {
  return parts_->feed_forward;
}
const std::map<int64_t, std::shared_ptr<Position>>& Model::positions() const {
  return *parts_->positions;
}
int64_t Model::vocab() const {
  return parts_->vocab;
}
int64_t Model::mtp_depth() const {
  return int64_t(parts_->mtp.size());
}

}  // namespace dsv3
