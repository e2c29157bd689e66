// Defines the macro that every plugin library uses once. Include this file and the header of the
// component's interface.
#pragma once

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>
#include <dsv3/sdk/options.h>
#include <dsv3/sdk/registrar.h>

/// Defines the function that the loader calls once, after it has checked the library's stamp:
///   DSV3_PLUGIN(registrar) { registrar.attention<Mla>("mla", "Multi-head latent attention"); }
#define DSV3_PLUGIN(registrar)                                                                     \
  extern "C" __attribute__((visibility("default"))) void dsv3_register_plugin(::dsv3::Registrar&); \
  void dsv3_register_plugin(::dsv3::Registrar& registrar)
