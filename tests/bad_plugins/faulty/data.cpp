// Includes a working component, with its registration function renamed to avoid a name clash.
#define dsv3_register_plugin working_data
#include "../../../plugins/data/synthetic/synthetic.cpp"
#undef dsv3_register_plugin

#include "faults.h"

namespace faulty {
namespace {

class Faulty final : public dsv3::Data {
 public:
  using Options = FaultyOptions;
  Faulty(const FaultyOptions& options, const dsv3::DataContext& context)
      : fault_(options), context_(context), working_({}, context) {}

  dsv3::Batch next() override {
    fault_.work();
    dsv3::Batch batch = working_.next();
    if (!batch.tokens.defined()) return batch;
    if (fault_.is("id_beyond")) batch.tokens[0][0] = context_.vocab;
    if (fault_.is("id_negative")) batch.tokens[0][0] = -1;
    if (fault_.is("wrong_dtype")) batch.tokens = batch.tokens.to(at::kInt);
    if (fault_.is("wrong_shape")) batch.tokens = batch.tokens.narrow(1, 0, context_.sequence);
    if (fault_.is("wrong_device")) batch.tokens = batch.tokens.to(at::kMeta);
    if (fault_.is("ids_wrong_shape")) batch.document_ids = at::zeros({1}, at::kLong);
    if (fault_.is("ends")) batch.tokens = at::Tensor();
    if (fault_.is("depends_on_rank"))
      batch.tokens = (batch.tokens + context_.rank).remainder(context_.vocab);
    return batch;
  }
  nlohmann::json state() const override {
    return fault_.is("forgets_its_place") ? nlohmann::json{{"rows", 0}} : working_.state();
  }
  void load_state(const nlohmann::json& state) override { working_.load_state(state); }

 private:
  Fault fault_;
  dsv3::DataContext context_;
  dsv3::plugins::SyntheticData working_;
};

}  // namespace

void register_data(dsv3::Registrar& registrar) {
  registrar.data<Faulty>("faulty", "Data source with a configurable fault");
}

}  // namespace faulty
