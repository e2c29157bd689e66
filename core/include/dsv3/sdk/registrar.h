// What a plugin registers: each component's kind, name, summary, options and constructor.
#pragma once

#include <any>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/kinds.h>
#include <dsv3/sdk/options.h>

namespace dsv3 {

template <class Interface>
using Factory =
    std::function<std::shared_ptr<Interface>(const OptionValues&, const ContextOf<Interface>&)>;

struct Registration {
  Kind kind;
  std::string name, summary;
  std::shared_ptr<const Schema> schema;
  std::any factory;  ///< a Factory<Interface> for the kind's interface
};

/// Constructs a registered component. Throws dsv3::Error if the component is of a different kind.
template <class Interface>
std::shared_ptr<Interface> construct(const Registration& registration, const OptionValues& options,
                                     const ContextOf<Interface>& context = {}) {
  const auto* factory = std::any_cast<Factory<Interface>>(&registration.factory);
  if (!factory)
    throw Error(std::string("a component of kind ") + kind_name(registration.kind) +
                    " was requested as " + kind_name(KindTraits<Interface>::kind),
                ExitCode::plugin);
  return (*factory)(options, context);
}

namespace detail {
/// Whether T has Options and the constructor that its kind requires.
template <class Interface, class T>
constexpr bool is_constructible = false;
template <class Interface, class T>
requires requires {
  typename T::Options;
}
constexpr bool is_constructible<Interface, T> =
    std::is_same_v<ContextOf<Interface>, NoContext>
        ? std::is_constructible_v<T, const typename T::Options&>
        : std::is_constructible_v<T, const typename T::Options&, const ContextOf<Interface>&>;
}  // namespace detail

/// Passed to a plugin's registration function. It has one method per kind, such as
///   registrar.attention<Mla>("mla", "Multi-head latent attention");
/// The class needs `using Options = ...;` with a static `describe`, and a constructor
/// (const Options&, const Context&), or (const Options&) for a kind without a context.
class Registrar {
 public:
#define DSV3_REGISTRAR_METHOD(kind, Interface, ...)                                              \
  template <class T>                                                                             \
  void kind(std::string name, std::string summary) {                                             \
    constexpr bool derived = std::is_base_of_v<Interface, T>;                                    \
    static_assert(derived,                                                                       \
                  "registrar." #kind "<T> needs a class T that derives from dsv3::" #Interface); \
    constexpr bool complete = !derived || !std::is_abstract_v<T>;                                \
    static_assert(complete, "registrar." #kind                                                   \
                            "<T>: T does not override every pure virtual "                       \
                            "function of dsv3::" #Interface ", see dsv3/sdk/" #kind ".h");       \
    constexpr bool constructible =                                                               \
        !derived || !complete || detail::is_constructible<Interface, T>;                         \
    static_assert(constructible,                                                                 \
                  "registrar." #kind                                                             \
                  "<T>: T needs `using Options = ...;` with "                                    \
                  "describe(), and a constructor (const Options&, const dsv3::" #Interface       \
                  "'s context&), see dsv3/sdk/" #kind ".h");                                     \
    if constexpr (derived && complete && constructible)                                          \
      add<Interface, T>(std::move(name), std::move(summary));                                    \
  }
  DSV3_KINDS(DSV3_REGISTRAR_METHOD)
#undef DSV3_REGISTRAR_METHOD

  const std::vector<Registration>& registrations() const {
    return registrations_;
  }

 private:
  template <class Interface, class T>
  void add(std::string name, std::string summary) {
    auto schema = std::make_shared<const Schema>(schema_of<typename T::Options>());
    Factory<Interface> factory = [schema](const OptionValues& values,
                                          [[maybe_unused]] const ContextOf<Interface>& context) {
      const auto options = options_from<typename T::Options>(*schema, values);
      if constexpr (std::is_same_v<ContextOf<Interface>, NoContext>)
        return std::make_shared<T>(options);
      else
        return std::make_shared<T>(options, context);
    };
    registrations_.push_back({KindTraits<Interface>::kind, std::move(name), std::move(summary),
                              std::move(schema), std::move(factory)});
  }

  std::vector<Registration> registrations_;
};

}  // namespace dsv3
