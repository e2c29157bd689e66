// dsv3::make: components come into being inside the barrier and behind their guard.
#include <dsv3/runtime/plugins.h>

#include "barrier/guard.h"
#include "plugin/library.h"

namespace dsv3 {
namespace {

using barrier::Callee;
using barrier::InCall;

// Where in the model a component is; only layers are anywhere.
template <class Context>
void set_layer(Callee&, const Context&) {}
void set_layer(Callee& callee, const LayerContext& context) {
  callee.module = context.prefix;
  callee.layer = context.layer;
}

template <class... Context>
const Callee& callee_of(const ComponentSpec& spec, const Registration& registration,
                        const Context&... context) {
  Callee callee;
  callee.label = std::string(kind_name(spec.kind)) + " '" + spec.plugin + "'";
  callee.origin = spec.origin.text();
  callee.library = library_of(registration).path.string();
  callee.check = spec.library.empty() ? kind_name(spec.kind) + ("/" + spec.plugin) : callee.library;
  callee.tracker = spec.kind == Kind::tracker;
  (set_layer(callee, context), ...);
  return barrier::remember(std::move(callee));
}

}  // namespace

template <class Base, class... Context>
std::shared_ptr<Base> make(Plugins& plugins, const ComponentSpec& spec, const Context&... context) {
  const Registration& registration = plugins.find(spec);
  const auto* factory = std::get_if<Factory<Base, Context...>>(&registration.factory);
  if (!factory)
    throw Error(std::string(kind_name(spec.kind)) + " '" + spec.plugin +
                    "' was asked for as another kind of component",
                ExitCode::plugin);
  const Callee& callee = callee_of(spec, registration, context...);
  std::shared_ptr<Base> made;
  {
    const InCall call(callee, "constructor");
    try {
      made = (*factory)(spec.options, context...);
      if (!made) barrier::refuse("its factory gave nothing (nullptr)");
    } catch (...) {
      barrier::rethrow_from_constructor(call);
    }
  }
  return barrier::guard(callee, std::move(made), context...);
}

template std::shared_ptr<Attention> make(Plugins&, const ComponentSpec&, const LayerContext&);
template std::shared_ptr<FeedForward> make(Plugins&, const ComponentSpec&, const LayerContext&);
template std::shared_ptr<Position> make(Plugins&, const ComponentSpec&, const PositionContext&);
template std::shared_ptr<Optimizer> make(Plugins&, const ComponentSpec&);
template std::shared_ptr<Schedule> make(Plugins&, const ComponentSpec&);
template std::shared_ptr<Strategy> make(Plugins&, const ComponentSpec&, const StrategyContext&);
template std::shared_ptr<Tracker> make(Plugins&, const ComponentSpec&, const RunContext&);
template std::shared_ptr<Data> make(Plugins&, const ComponentSpec&, const DataContext&);
template std::shared_ptr<Tokenizer> make(Plugins&, const ComponentSpec&, const TokenizerContext&);

}  // namespace dsv3
