// Component options. Each option is declared once, next to the struct that stores it. The core
// checks an experiment's values against the declarations before it builds anything.
#pragma once

#include <charconv>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <dsv3/sdk/error.h>

namespace dsv3 {

/// Types of options. Enumerators start at 1 so that 0 is never a valid type.
enum class OptionType { boolean = 1, integer, number, string, integers, numbers, strings };

/// A checked value. Its alternatives are in the order of `OptionType`. std::monostate means
/// "unset", which is allowed only for options with a std::optional member.
using OptionValue = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>,
                                 std::vector<double>, std::vector<std::string>, std::monostate>;

/// Checked values by key. For absent keys, the options struct's default applies.
using OptionValues = std::map<std::string, OptionValue>;

/// One option, type-erased.
struct OptionSpec {
  std::string key;
  std::string doc;   ///< one-line description for `dsv3 plugins describe` and error messages
  std::string unit;  ///< "tokens", "steps" ...; empty = none; printed in docs/reference.md
  OptionType type = {};
  OptionValue default_value;  ///< default value, from a default-constructed options struct
  bool required = false;
  bool optional = false;   ///< the member is a std::optional
  std::string unset_word;  ///< keyword that sets an optional option to nullopt, e.g. `auto`; empty
                           ///< = none
  std::optional<double> min, max;                      ///< inclusive bounds of a number or integer
  std::vector<std::string> choices;                    ///< allowed strings; empty = any
  std::vector<std::pair<std::string, int64_t>> words;  ///< integers only: keywords and their
                                                       ///< values, e.g. `none`
  bool input_path = false;  ///< strings only: the values are paths of files or folders that must
                            ///< exist
  bool convention = false;  ///< implementations differ in this option, so checkpoints save and
                            ///< compare its value
  bool execution =
      false;           ///< affects only how a result is computed, so a resumed run may change it
  std::string shared;  ///< what the value means in every plugin that shares it; empty = nothing
  std::function<void(void* options, const OptionValue&)> store;
};

/// A metric that a component records, for the documentation.
struct MetricSpec {
  std::string name;  ///< e.g. "moe/entropy"
  std::string unit;  ///< empty = none
  std::string doc;
};

/// All options of one component, type-erased. Built by OptionSchema<T>.
struct Schema {
  std::vector<OptionSpec> options;
  std::vector<MetricSpec> metrics;
  /// Checks that involve several options, called with the filled options struct. They return an
  /// error message, or "" if the options are valid.
  std::vector<std::function<std::string(const void* options)>> checks;
  /// Returns a default-constructed options struct, which `store` fills and `checks` read.
  std::function<std::shared_ptr<void>()> make;
  bool needs_tokenizer = false;  ///< data plugins only

  const OptionSpec* find(const std::string& key) const {
    for (const OptionSpec& spec : options)
      if (spec.key == key) return &spec;
    return nullptr;
  }
};

namespace detail {
/// The type in which OptionValue stores a member of type V; void = V cannot be an option.
template <class V>
struct Stored {
  using Type = std::conditional_t<
      std::is_same_v<V, bool> || std::is_same_v<V, std::string>, V,
      std::conditional_t<std::is_integral_v<V>, int64_t,
                         std::conditional_t<std::is_floating_point_v<V>, double, void>>>;
};
template <class V>
struct Stored<std::vector<V>> {
  using Element = typename Stored<V>::Type;
  using Type =
      std::conditional_t<std::is_void_v<Element> || std::is_same_v<V, bool>, void,
                         std::vector<std::conditional_t<std::is_void_v<Element>, int, Element>>>;
};

template <class V>
struct Member : std::false_type {
  using Value = V;
};
template <class V>
struct Member<std::optional<V>> : std::true_type {
  using Value = V;
};

/// The number that a reader of the source code expects: 0.1 for 0.1f, not 0.10000000149.
inline double decimal(float value) {
  char text[32];
  double result = value;
  std::from_chars(text, std::to_chars(text, text + sizeof text, value).ptr, result);
  return result;
}

/// Converts between a member's type and the type in which it is stored.
template <class To, class From>
To converted(const From& from) {
  if constexpr (std::is_same_v<From, float> && std::is_same_v<To, double>)
    return decimal(from);
  else if constexpr (std::is_same_v<To, From> || std::is_arithmetic_v<From>)
    return static_cast<To>(from);
  else {
    To list;
    for (const auto& element : from)
      list.push_back(converted<typename To::value_type, typename From::value_type>(element));
    return list;
  }
}

/// Bounds that all values of type V or, for lists, of its elements satisfy.
template <class V>
void set_bounds(std::optional<double>& min, std::optional<double>& max) {
  if constexpr (std::is_integral_v<V> && !std::is_same_v<V, bool>) {
    if (std::is_unsigned_v<V>) min = 0;
    if (sizeof(V) < sizeof(int64_t)) {
      min = static_cast<double>(std::numeric_limits<V>::min());
      max = static_cast<double>(std::numeric_limits<V>::max());
    }
  }
}
}  // namespace detail

/// Refines an option that was added with `OptionSchema::add`.
class OptionRef {
 public:
  explicit OptionRef(OptionSpec& spec) : spec_(spec) {}
  OptionRef& min(double value) { return set(spec_.min, value); }
  OptionRef& max(double value) { return set(spec_.max, value); }
  OptionRef& choices(std::vector<std::string> values) { return set(spec_.choices, values); }
  OptionRef& required() { return set(spec_.required, true); }
  OptionRef& word(std::string name, int64_t value) {
    spec_.words.emplace_back(std::move(name), value);
    return *this;
  }
  /// Adds a keyword, such as `auto`, that sets an option with a std::optional member to nullopt.
  OptionRef& word(std::string name) {
    if (spec_.optional) return set(spec_.unset_word, name);
    throw Error("option '" + spec_.key + "' cannot be unset by '" + name +
                    "': its member is not a std::optional",
                ExitCode::plugin);
  }
  OptionRef& unit(std::string name) { return set(spec_.unit, name); }
  /// Declares that the string, or each string in the list, is the path of an existing file or
  /// folder that the component reads. `dsv3-run --check` reports a missing path but opens nothing.
  /// Relative paths start at the current folder; "" counts as not set.
  OptionRef& input_path() { return set(spec_.input_path, true); }
  /// Declares that implementations of the same method differ in this option. Checkpoints save its
  /// value, and loading a checkpoint into an experiment with a different value is an error.
  OptionRef& convention() { return set(spec_.convention, true); }
  /// Declares that the option affects only how a result is computed, such as the number of ranks
  /// that share the work. A resumed run may change it.
  OptionRef& execution() { return set(spec_.execution, true); }
  /// Declares that plugins of this kind with an option of the same key and `meaning` mean the same
  /// by it. Its value is kept if a higher configuration layer, such as the command line, replaces
  /// one of these plugins by another. All other options of the replaced plugin are dropped.
  OptionRef& shared(const std::string& meaning) { return set(spec_.shared, meaning); }

 private:
  template <class Field, class Value>
  OptionRef& set(Field& field, const Value& value) {
    field = value;
    return *this;
  }

  OptionSpec& spec_;
};

/// Describes the options struct `T`:
///   static void describe(dsv3::OptionSchema<MlaOptions>& s) {
///     s.add("heads", &MlaOptions::heads, "attention heads").min(1);
///   }
/// The struct's member initialisers are the only definition of the defaults. Members are booleans,
/// integers, floating-point numbers, strings, enums, or std::vectors of integers, floating-point
/// numbers or strings. A std::optional of one of these is an option that may be unset.
template <class T>
class OptionSchema {
 public:
  template <class V, class Struct>
  OptionRef add(std::string key, V Struct::*member, std::string doc) {
    using Plain = typename detail::Member<V>::Value;
    using Value = typename detail::Stored<Plain>::Type;
    constexpr bool supported = !std::is_void_v<Value> && std::is_base_of_v<Struct, T>;
    static_assert(supported,
                  "an option is a bool, integer, floating-point number, string, a vector of the "
                  "last three, or a std::optional of one of these; for an enum, pass its names: "
                  "add(key, &Options::member, {{\"name\", Enum::value}}, doc)");
    if constexpr (supported) {
      OptionSpec spec = described<Value>(std::move(key), std::move(doc));
      spec.optional = detail::Member<V>::value;
      spec.default_value = to_value<Value>(defaults_.*member);
      detail::set_bounds<Plain>(spec.min, spec.max);
      spec.store = [member](void* options, const OptionValue& value) {
        V& target = static_cast<T*>(options)->*member;
        if constexpr (detail::Member<V>::value)
          if (std::holds_alternative<std::monostate>(value)) return target.reset();
        target = detail::converted<Plain>(std::get<Value>(value));
      };
      schema_.options.push_back(std::move(spec));
    }
    return OptionRef(schema_.options.back());
  }

  /// Adds an enum, which experiments set by one of `names`, such as {{"sum", Score::sum}, {"max",
  /// Score::max}}. The member may be a std::optional. Its default must have a name.
  template <class V, class Struct>
  OptionRef add(std::string key, V Struct::*member,
                std::vector<std::pair<std::string, typename detail::Member<V>::Value>> names,
                std::string doc) {
    using Enum = typename detail::Member<V>::Value;
    constexpr bool supported = std::is_enum_v<Enum> && std::is_base_of_v<Struct, T>;
    static_assert(supported, "only options with an enum member have names for their values");
    if constexpr (supported) {
      OptionSpec spec = described<std::string>(std::move(key), std::move(doc));
      for (const auto& [name, value] : names) spec.choices.push_back(name);
      if constexpr (detail::Member<V>::value) {
        spec.optional = true;
        spec.default_value = OptionValue(std::monostate());
        if (defaults_.*member) spec.default_value = name_in(names, *(defaults_.*member), spec.key);
      } else {
        spec.default_value = name_in(names, defaults_.*member, spec.key);
      }
      spec.store = [member, names](void* options, const OptionValue& value) {
        V& target = static_cast<T*>(options)->*member;
        if constexpr (detail::Member<V>::value)
          if (std::holds_alternative<std::monostate>(value)) return target.reset();
        for (const auto& [name, constant] : names)
          if (name == std::get<std::string>(value)) target = constant;
      };
      schema_.options.push_back(std::move(spec));
    }
    return OptionRef(schema_.options.back());
  }

  /// Describes a metric that the component records, for `dsv3 plugins describe` and the
  /// documentation. Write "<layer>" for the layer's number in `name`.
  void metric(std::string name, std::string unit, std::string doc) {
    schema_.metrics.push_back({std::move(name), std::move(unit), std::move(doc)});
  }

  /// Adds a check that involves several options. `check` returns an error message, or "" if they
  /// are valid.
  void check(std::function<std::string(const T&)> check) {
    schema_.checks.push_back([check = std::move(check)](const void* options) {
      return check(*static_cast<const T*>(options));
    });
  }

  /// Declares that a data plugin requires `data.tokenizer`, so that `dsv3-run --check` reports a
  /// missing one without opening any data.
  void needs_tokenizer() { schema_.needs_tokenizer = true; }

  Schema take() {
    schema_.make = [] { return std::static_pointer_cast<void>(std::make_shared<T>()); };
    return std::move(schema_);
  }

 private:
  template <class Value>
  static OptionSpec described(std::string key, std::string doc) {
    OptionSpec spec;
    spec.key = std::move(key);
    spec.doc = std::move(doc);
    spec.type = OptionType(OptionValue(std::in_place_type<Value>).index() + 1);
    return spec;
  }

  template <class Value, class V>
  static OptionValue to_value(const V& member) {
    if constexpr (detail::Member<V>::value)
      return member ? OptionValue(detail::converted<Value>(*member))
                    : OptionValue(std::monostate());
    else
      return detail::converted<Value>(member);
  }

  template <class Enum>
  static std::string name_in(const std::vector<std::pair<std::string, Enum>>& names, Enum value,
                             const std::string& key) {
    for (const auto& [name, constant] : names)
      if (constant == value) return name;
    throw Error("the default of option '" + key + "' has no name", ExitCode::plugin);
  }

  T defaults_{};
  Schema schema_;
};

/// Returns the schema that `T::describe` builds.
template <class T>
Schema schema_of() {
  OptionSchema<T> builder;
  constexpr bool described = requires {
    T::describe(builder);
  };
  static_assert(described,
                "an options struct declares its options in "
                "static void describe(dsv3::OptionSchema<Options>&)");
  if constexpr (described) T::describe(builder);
  return builder.take();
}

/// Returns a `T` filled with checked values.
template <class T>
T options_from(const Schema& schema, const OptionValues& values) {
  T options{};
  for (const OptionSpec& spec : schema.options)
    if (auto it = values.find(spec.key); it != values.end()) spec.store(&options, it->second);
  return options;
}

/// Options of a component that has no options.
struct NoOptions {
  static void describe(OptionSchema<NoOptions>&) {}
};

}  // namespace dsv3
