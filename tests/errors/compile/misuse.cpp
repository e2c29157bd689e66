// Misuses of the SDK, each marked with the compiler's only error. Never linked.
#include <map>

#include <dsv3/sdk/callback.h>
#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/schedule.h>

namespace {

struct Pair {
  int first, second;
};
enum class Mode { fast, slow };

struct PairOptions {
  Pair pair;
  static void describe(dsv3::OptionSchema<PairOptions>& s) {
    s.add("pair", &PairOptions::pair, "two numbers").min(0);  // error: an option is a bool, integer
  }
};
struct MapOptions {
  std::map<std::string, int> sizes;
  static void describe(dsv3::OptionSchema<MapOptions>& s) {
    s.add("sizes", &MapOptions::sizes, "sizes");  // error: an option is a bool, integer
  }
};
struct FlagsOptions {
  std::vector<bool> flags;
  static void describe(dsv3::OptionSchema<FlagsOptions>& s) {
    s.add("flags", &FlagsOptions::flags, "flags");  // error: an option is a bool, integer
  }
};
struct EnumOptions {
  Mode mode = Mode::fast;
  static void describe(dsv3::OptionSchema<EnumOptions>& s) {
    s.add("mode", &EnumOptions::mode, "mode");  // error: for an enum, pass its names
  }
};
struct NamedOptions {
  int size = 0;
  static void describe(dsv3::OptionSchema<NamedOptions>& s) {
    s.add("size", &NamedOptions::size, {{"small", 1}}, "size");  // error: only options with an enum
  }
};

class NoForward final : public dsv3::FeedForward {
 public:
  using Options = dsv3::NoOptions;
  NoForward(const Options&, const dsv3::LayerContext& context) : FeedForward(context) {}
};
class NoContext final : public dsv3::FeedForward {
 public:
  using Options = dsv3::NoOptions;
  explicit NoContext(const Options&);
  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence&) override { return x; }
};
class NoOptionsType final : public dsv3::Schedule {
 public:
  double factor(int64_t, int64_t) const override { return 1; }
};
class NoBase {
 public:
  using Options = dsv3::NoOptions;
  explicit NoBase(const Options&) {}
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.feed_forward<NoForward>("a", "");   // error: does not override every pure virtual
  registrar.feed_forward<NoContext>("b", "");   // error: and a constructor
  registrar.schedule<NoOptionsType>("c", "");   // error: needs `using Options
  registrar.callback<NoBase>("d", "");          // error: derives from dsv3::Callback
  dsv3::schema_of<PairOptions>();
  dsv3::schema_of<MapOptions>();
  dsv3::schema_of<FlagsOptions>();
  dsv3::schema_of<EnumOptions>();
  dsv3::schema_of<NamedOptions>();
}
