// Defines the functions that depend on the rows of DSV3_KINDS, the table of component kinds.
#include <dsv3/sdk/kinds.h>

namespace dsv3 {
namespace {

constexpr bool one = false, list = true, required = false, optional = true;

#define DSV3_KIND_ROW(kind, Interface, Context, path, how_many, left_out, keys) \
  {Kind::kind, #kind, path, how_many, left_out, keys},
constexpr KindRow kRows[] = {DSV3_KINDS(DSV3_KIND_ROW)};
#undef DSV3_KIND_ROW

}  // namespace

std::span<const KindRow> kinds() {
  return kRows;
}

}  // namespace dsv3
