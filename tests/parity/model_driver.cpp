// Computes losses, gradients and expert choices of a stored model, for test_model.py and
// test_mtp.py. Each input line is a job:
//   {"model": PATH, "format": PLUGIN, "settings": ["model.mtp.input=raw", ..], "batch": FILE,
//    "micro_batch": ROWS, "out": FILE}
// The driver prints "done" after each job. The batch is a safetensors file with int64 `tokens`
// [B, T + 1] and, if a row can contain several documents, `document_ids` of the same shape. The
// output file contains
//   loss/total, loss/main, loss/mtp
//   grad/NAME: gradient of a stored tensor, under its name in the format
//   counts/LAYER [E], choices/LAYER [B T, E]: for each layer with experts
//   after/NAME: value of a buffer after the end of the step
#include <iostream>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/runtime/config.h>
#include <dsv3/runtime/stored_model.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>

#include "checkpoint/tensor_views.h"
#include "format/description.h"
#include "format/folder.h"
#include "support/built_plugins.h"

namespace {

using dsv3::Json;

/// Forwards all calls to `inner`. Also runs `inner` on each token separately, to record which
/// experts it counts.
class Watched final : public dsv3::FeedForward {
 public:
  Watched(const dsv3::LayerContext& context, std::shared_ptr<dsv3::FeedForward> inner)
      : FeedForward(context), inner_(std::move(inner)) {}

  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence& seq) override {
    if (seq.training && inner_->step_counts().defined()) choices.push_back(ask(x.detach()));
    return inner_->forward(x, seq);
  }
  at::Tensor step_counts() override { return inner_->step_counts(); }
  void on_step_end(const dsv3::StepEnd& end) override { inner_->on_step_end(end); }

  std::vector<at::Tensor> choices;  // int64 [tokens, E] per micro-batch

 private:
  at::Tensor ask(const at::Tensor& x) const {
    const at::NoGradGuard no_grad;
    const at::Tensor counts = inner_->step_counts(), before = counts.clone();
    const at::Tensor tokens = x.reshape({-1, 1, 1, x.size(-1)});
    dsv3::Sequence one;
    one.training = true;
    std::vector<at::Tensor> found;
    for (int64_t i = 0; i < tokens.size(0); ++i) {
      counts.zero_();
      inner_->forward(tokens[i], one);
      found.push_back(counts.clone());
    }
    counts.copy_(before);
    return at::stack(found);
  }

  std::shared_ptr<dsv3::FeedForward> inner_;
};

/// Collects tensors and writes them to one file.
class Output {
 public:
  void add(const std::string& name, const at::Tensor& tensor) {
    alive_.push_back(dsv3::add_view(views_, name, tensor.detach().contiguous()));
  }
  void write(const std::string& file) const { dsv3::safetensors::write(file, views_); }

 private:
  std::map<std::string, dsv3::safetensors::View> views_;
  std::vector<at::Tensor> alive_;
};

dsv3::Experiment experiment_of(const dsv3::StoredModel& stored, const Json& job) {
  dsv3::ExperimentRequest request = stored.source;
  request.command_line = {"train.device=cpu", "train.precision=fp32", "data.tokenizer=null"};
  for (const Json& setting : job["settings"]) request.command_line.push_back(setting);
  return dsv3::load_experiment(request, dsv3::test::built_plugins());
}

dsv3::Batch read_batch(const std::string& path) {
  const dsv3::safetensors::File file(path);
  const auto read = [&](const char* name) {
    const dsv3::safetensors::View& view = file.tensors().at(name);
    at::Tensor tensor = at::empty(view.shape, at::kLong);
    dsv3::StoredTensors(file.tensors()).read(name, tensor);
    return tensor;
  };
  dsv3::Batch batch{read("tokens"), {}};
  if (file.tensors().contains("document_ids")) batch.document_ids = read("document_ids");
  return batch;
}

dsv3::Batch rows_of(const dsv3::Batch& batch, int64_t first, int64_t count) {
  dsv3::Batch rows{batch.tokens.narrow(0, first, count), {}};
  if (batch.document_ids.defined()) rows.document_ids = batch.document_ids.narrow(0, first, count);
  return rows;
}

/// Runs the forward and backward passes of all micro-batches, with the trainer's loss divisors.
void run_step(dsv3::Model& model, const dsv3::Batch& batch, int64_t micro_batch, int64_t mtp_depth,
              Output& out) {
  const std::vector<int64_t> targets = dsv3::count_targets(batch, mtp_depth);
  dsv3::LossScale scale;
  scale.main_targets = double(std::max<int64_t>(targets[0], 1));
  for (size_t k = 1; k < targets.size(); ++k)
    scale.mtp_targets.push_back(double(std::max<int64_t>(targets[k], 1)));
  scale.sequences = batch.tokens.size(0);
  at::Tensor total = at::zeros({}), main = at::zeros({}), mtp = at::zeros({});
  for (int64_t first = 0; first < scale.sequences; first += micro_batch) {
    const dsv3::LossParts parts =
        model.loss(rows_of(batch, first, std::min(micro_batch, scale.sequences - first)), scale);
    torch::autograd::backward({parts.total}, {});
    total = total + parts.total.detach();
    main = main + parts.main;
    if (parts.mtp.defined()) mtp = mtp + parts.mtp;
  }
  out.add("loss/total", total);
  out.add("loss/main", main);
  out.add("loss/mtp", mtp);
}

/// Adds parameter gradients and buffer values under the names of the stored tensors.
void add_stored(const dsv3::Model& model, const dsv3::Experiment& experiment, const Json& job,
                Output& out) {
  dsv3::Plugins& plugins = dsv3::test::built_plugins();
  std::map<std::string, std::pair<std::string, at::Tensor>> sources;
  for (const dsv3::Parameter& parameter : model.store().parameters()) {
    const at::Tensor& grad = parameter.tensor.grad();
    sources[parameter.name] = {"grad/", grad.defined() ? grad : at::zeros_like(parameter.tensor)};
  }
  for (const dsv3::Buffer& buffer : model.store().buffers())
    sources[buffer.name] = {"after/", buffer.tensor};
  const auto format = dsv3::test::make_built<dsv3::Format>(
      dsv3::Kind::format, job["format"].get<std::string>(), dsv3::OptionValues{});
  for (const dsv3::TensorPlace& place :
       format->tensors(dsv3::describe_model(experiment, model.vocab(), plugins))) {
    if (place.copy) continue;
    const auto& [kind, source] = sources.at(place.source);
    const at::Tensor rows = source.reshape({-1, source.size(-1)});
    const at::Tensor index = dsv3::row_index(place);
    const int64_t count = c10::multiply_integers(place.shape) / rows.size(1);
    const at::Tensor found =
        index.defined() ? rows.index_select(0, index) : rows.narrow(0, place.first_row, count);
    out.add(kind + place.name, found.reshape(place.shape));
  }
}

void run(const Json& job) {
  dsv3::Plugins& plugins = dsv3::test::built_plugins();
  const dsv3::StoredModel stored =
      dsv3::open_stored_model(job["model"].get<std::string>(), plugins);
  const dsv3::Experiment experiment = experiment_of(stored, job);
  dsv3::ModelFactory factory = dsv3::factory_of(experiment, plugins);
  std::vector<std::shared_ptr<Watched>> watched;
  factory.feed_forward = [&, make = factory.feed_forward](const dsv3::LayerContext& context) {
    watched.push_back(std::make_shared<Watched>(context, make(context)));
    return watched.back();
  };
  dsv3::Model model(experiment, experiment.model.vocab.value(), factory, at::kCPU);
  dsv3::load_weights(model, stored);

  Output out;
  const dsv3::Batch batch = read_batch(job["batch"]);
  run_step(model, batch, job["micro_batch"], experiment.mtp.depth, out);
  for (size_t layer = 0; layer < watched.size(); ++layer) {
    if (watched[layer]->choices.empty()) continue;
    const std::string name = std::to_string(layer);
    const at::Tensor counts = watched[layer]->step_counts();
    out.add("choices/" + name, at::cat(watched[layer]->choices));
    out.add("counts/" + name, counts);
    watched[layer]->on_step_end({counts, 0.5});
  }
  add_stored(model, experiment, job, out);
  out.write(job["out"]);
}

}  // namespace

int main() try {
  for (std::string line; std::getline(std::cin, line);) {
    run(dsv3::parse_json(line, "job"));
    std::cout << "done" << std::endl;
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
