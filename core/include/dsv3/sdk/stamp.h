// A plugin library's stamp, which records how the library was built and can be read without loading
// it. dsv3_add_plugin compiles one into every plugin; other code does not need this header.
#pragma once

#include <cstdint>
#include <string>  // the standard library's own macros

#include <torch/version.h>

#include <dsv3/sdk/version.h>

// Standard library and ABI family of the compiler. Libraries from GCC and Clang can be mixed if
// this string is the same (the formula is pybind11's platform ABI id).
#ifndef DSV3_STAMP_CXX_ABI
#if defined(_LIBCPP_VERSION)
#define DSV3_STAMP_CXX_ABI "libcpp_abi" DSV3_STAMP_TEXT(_LIBCPP_ABI_VERSION)
#elif defined(__GLIBCXX__) && __GXX_ABI_VERSION >= 1002 && __GXX_ABI_VERSION < 2000
#define DSV3_STAMP_CXX_ABI "libstdcpp_gxx_abi_1xxx_cxx11_" DSV3_STAMP_TEXT(_GLIBCXX_USE_CXX11_ABI)
#else
#error "unsupported C++ standard library: dsv3 plugins require libstdc++ or libc++"
#endif
#endif

// Debug iterators change the layout of containers.
#ifndef DSV3_STAMP_GLIBCXX_DEBUG
#ifdef _GLIBCXX_DEBUG
#define DSV3_STAMP_GLIBCXX_DEBUG "1"
#else
#define DSV3_STAMP_GLIBCXX_DEBUG "0"
#endif
#endif

#ifndef DSV3_STAMP_SDK
#define DSV3_STAMP_SDK DSV3_SDK_VERSION
#endif
#ifndef DSV3_STAMP_HEADERS
#define DSV3_STAMP_HEADERS DSV3_SDK_HEADERS
#endif
#ifndef DSV3_STAMP_TORCH
#define DSV3_STAMP_TORCH TORCH_VERSION
#endif
#ifndef DSV3_STAMP_CUDA
#define DSV3_STAMP_CUDA "none"
#endif
#ifndef DSV3_STAMP_COMPILER
#define DSV3_STAMP_COMPILER "unknown"
#endif

#define DSV3_STAMP_TEXT_(x) #x
#define DSV3_STAMP_TEXT(x) DSV3_STAMP_TEXT_(x)

/// A plugin library's stamp: a string literal of `key=value` pairs separated by "; ". `provides` is
/// "kind/name,kind/name".
#define DSV3_STAMP(name, version, provides)                                               \
  "@dsv3-plugin@ sdk=" DSV3_STAMP_SDK "; headers=" DSV3_STAMP_HEADERS                     \
  "; cxx_abi=" DSV3_STAMP_CXX_ABI "; glibcxx_debug=" DSV3_STAMP_GLIBCXX_DEBUG             \
  "; torch=" DSV3_STAMP_TORCH "; cuda=" DSV3_STAMP_CUDA "; compiler=" DSV3_STAMP_COMPILER \
  "; name=" name "; version=" version "; provides=" provides

namespace dsv3 {

/// The stamp as an ELF note. `readelf -n` prints it, `strip` preserves it, and reading it runs no
/// code.
template <size_t Size>
struct StampNote {
  uint32_t owner_size = 5;
  uint32_t text_size = Size;  ///< including the terminating NUL
  uint32_t type = 1;
  char owner[8] = "dsv3";
  char text[(Size + 3) / 4 * 4] = {};

  constexpr explicit StampNote(const char (&stamp)[Size]) {
    for (size_t i = 0; i < Size; ++i) text[i] = stamp[i];
  }
};

}  // namespace dsv3

/// Defines the library's stamp note.
#define DSV3_STAMP_NOTE(name, version, provides)                                     \
  __attribute__((section(".note.dsv3"), used)) alignas(                              \
      4) static const ::dsv3::StampNote<sizeof(DSV3_STAMP(name, version, provides))> \
      dsv3_stamp_note {                                                              \
    DSV3_STAMP(name, version, provides)                                              \
  }
