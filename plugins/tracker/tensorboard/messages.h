// TensorBoard's messages: event.proto, summary.proto and the plugin data of text and hparams.
#pragma once

#include <string>

#include <dsv3/sdk/tracker.h>
#include <dsv3/support/protobuf.h>

namespace tensorboard {

/// The first message of a file.
dsv3::protobuf::Message file_version(double time);

/// All metrics of an event as scalars. TensorBoard's scalars are 32-bit floats.
dsv3::protobuf::Message scalars(const dsv3::Event& event);

/// Samples as a table of text with the columns prompt and text.
dsv3::protobuf::Message samples_table(const dsv3::Record& record,
                                      const dsv3::record::Samples& samples);

/// Parameters for the hparams plugin, as numbers, booleans or strings, whichever they look like.
dsv3::protobuf::Message session_start(const dsv3::record::Values& parameters, double time);
/// `status` is finished or failed.
dsv3::protobuf::Message session_end(dsv3::RunStatus status, double time);

/// Text that Markdown and HTML show as it is: it cannot become markup, such as an image that is
/// loaded from elsewhere.
std::string markdown(std::string_view text);

}  // namespace tensorboard
