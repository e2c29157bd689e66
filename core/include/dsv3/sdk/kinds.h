// The table of component kinds. All code that enumerates kinds is generated from it.
#pragma once

#include <span>
#include <string_view>

/// DSV3_EXTRA_KINDS names a header that defines more rows as DSV3_EXTRA_KIND_ROWS(ROW). Only the
/// test that adds a kind uses it.
#ifdef DSV3_EXTRA_KINDS
#include DSV3_EXTRA_KINDS
#else
#define DSV3_EXTRA_KIND_ROWS(ROW)
#endif

/// One row per kind:
///   ROW(kind, interface, context, path, one or list, required or optional, keys)
/// `kind` is the kind's name in experiments, folders and registries, and the name of its Registrar
/// method. Components derive from `interface` and are constructed from (options, context), or from
/// the options alone if the context is NoContext. `path` is the section of an experiment that
/// configures components of this kind; "" = none. `keys` are the keys in a component's map that the
/// core itself reads, in addition to `plugin` and `library`.
#define DSV3_KINDS(ROW)                                                                        \
  ROW(attention, Attention, LayerContext, "model.attention", list, required, "layers")         \
  ROW(feed_forward, FeedForward, LayerContext, "model.feed_forward", list, required, "layers") \
  ROW(position, Position, PositionContext, "model.position", one, required, "")                \
  ROW(optimizer, Optimizer, NoContext, "optimizer", list, required, "role match name")         \
  ROW(schedule, Schedule, NoContext, "schedule", one, required, "")                            \
  ROW(strategy, Strategy, StrategyContext, "strategy", one, required, "timeout")               \
  ROW(tracker, Tracker, RunContext, "tracker", list, optional, "")                             \
  ROW(callback, Callback, NoContext, "callback", list, optional, "")                           \
  ROW(data, Data, DataContext, "data", one, required, "tokenizer")                             \
  ROW(tokenizer, Tokenizer, TokenizerContext, "data.tokenizer", one, optional, "")             \
  ROW(format, Format, NoContext, "", one, optional, "")                                        \
  DSV3_EXTRA_KIND_ROWS(ROW)

namespace dsv3 {

/// Context type for kinds whose components are constructed from their options alone.
struct NoContext {};

#define DSV3_KIND_ENUMERATOR(kind, ...) kind,
/// Component kinds.
enum class Kind { DSV3_KINDS(DSV3_KIND_ENUMERATOR) };
#undef DSV3_KIND_ENUMERATOR

#define DSV3_KIND_CLASSES(kind, Interface, Context, ...) \
  class Interface;                                       \
  struct Context;
DSV3_KINDS(DSV3_KIND_CLASSES)
#undef DSV3_KIND_CLASSES

/// Maps a component interface to its kind and context type.
template <class Interface>
struct KindTraits;
#define DSV3_KIND_TRAITS(kind_, Interface, Context_, ...) \
  template <>                                             \
  struct KindTraits<Interface> {                          \
    static constexpr Kind kind = Kind::kind_;             \
    using Context = Context_;                             \
  };
DSV3_KINDS(DSV3_KIND_TRAITS)
#undef DSV3_KIND_TRAITS

template <class Interface>
using ContextOf = typename KindTraits<Interface>::Context;

/// One row of the table of component kinds.
struct KindRow {
  Kind kind;
  const char* name;       ///< "attention", "feed_forward", ...
  std::string_view path;  ///< section of an experiment, e.g. "model.attention"; empty = not in
                          ///< experiments
  bool list;              ///< an experiment may have several components of this kind
  bool optional;          ///< may be absent from an experiment
  std::string_view keys;  ///< space-separated keys in a component's map that the core itself reads
};

/// Returns all rows of the table, outer paths before inner ones.
std::span<const KindRow> kinds();

/// "attention", "feed_forward", ...
inline const char* kind_name(Kind kind) {
  for (const KindRow& row : kinds())
    if (row.kind == kind) return row.name;
  return "unknown kind";
}

}  // namespace dsv3
