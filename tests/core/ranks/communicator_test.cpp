// Tests the collective operations over Gloo, with ranks as threads.
#include <catch2/catch.hpp>

#include <dsv3/runtime/ranks.h>
#include <dsv3/sdk/error.h>

#include "ranks.h"

namespace dsv3::test {
namespace {

TEST_CASE("sums run in rank order and in fp32, for any size") {
  const int64_t ranks = GENERATE(1, 2, 3, 4);
  const at::ScalarType dtype = GENERATE(at::kFloat, at::kBFloat16, at::kDouble);
  // Small tensors are gathered, large ones are summed in parts. 40,001 is not a multiple of 2 or 4.
  const int64_t count = GENERATE(1, 7, 40'001);
  CAPTURE(ranks, dtype, count);
  const auto sums = results_on(ranks, [&](Communicator& world) {
    at::Tensor tensor = values_of_rank(world.rank(), count, dtype);
    world.all_reduce_sum(tensor);
    return tensor;
  });
  for (const at::Tensor& sum : sums) CHECK(at::equal(sum, expected_sum(ranks, count, dtype)));
}

TEST_CASE("a sum of bf16 values is rounded once") {
  // 256 + 0.75 is 256 in bf16, so a sum in bf16 would stay 256.
  const auto sums = results_on(4, [](Communicator& world) {
    at::Tensor tensor = at::full({3}, world.rank() == 0 ? 256.0 : 0.75, at::kBFloat16);
    world.all_reduce_sum(tensor);
    return tensor;
  });
  for (const at::Tensor& sum : sums) CHECK(at::equal(sum.to(at::kFloat), at::full({3}, 258.0)));
}

TEST_CASE("integers are summed exactly and keep the tensor's shape") {
  const int64_t large = int64_t{1} << 40;
  const auto sums = results_on(3, [&](Communicator& world) {
    at::Tensor tensor = at::full({2, 3}, large + world.rank(), at::kLong);
    world.all_reduce_sum(tensor);
    return tensor;
  });
  for (const at::Tensor& sum : sums)
    CHECK(at::equal(sum, at::full({2, 3}, 3 * large + 3, at::kLong)));
}

TEST_CASE("the maximum is taken by element") {
  const auto maxima = results_on(3, [](Communicator& world) {
    at::Tensor tensor = at::zeros({3});
    tensor[world.rank()] = double(world.rank() + 1);
    world.all_reduce_max(tensor);
    return tensor;
  });
  for (const at::Tensor& maximum : maxima)
    CHECK(at::equal(maximum, at::tensor({1.0, 2.0, 3.0}, at::kFloat)));
}

TEST_CASE("a reduce-scatter leaves each rank its part, also in place") {
  const int64_t ranks = GENERATE(1, 2, 4);
  const bool in_place = GENERATE(false, true);
  constexpr int64_t kPart = 1000;
  CAPTURE(ranks, in_place);
  const auto parts = results_on(ranks, [&](Communicator& world) {
    const at::Tensor input = values_of_rank(world.rank(), kPart * world.size());
    const at::Tensor output =
        in_place ? input.narrow(0, kPart * world.rank(), kPart) : at::empty({kPart});
    world.start_reduce_scatter_sum(output, input)->wait();
    return output;
  });
  CHECK(at::equal(at::cat(parts), expected_sum(ranks, kPart * ranks, at::kFloat)));
}

TEST_CASE("a sum does not depend on how a tensor is cut into operations") {
  constexpr int64_t kRanks = 4, kCount = 64;
  const auto sums = results_on(kRanks, [](Communicator& world) {
    at::Tensor tensor = values_of_rank(world.rank(), kCount);
    for (int64_t i = 0; i < kCount; i += 16) {
      at::Tensor piece = tensor.narrow(0, i, 16);
      world.all_reduce_sum(piece);
    }
    return tensor;
  });
  for (const at::Tensor& sum : sums)
    CHECK(at::equal(sum, expected_sum(kRanks, kCount, at::kFloat)));
}

TEST_CASE("an all-gather concatenates in rank order, also in place") {
  const bool in_place = GENERATE(false, true);
  const auto gathered = results_on(3, [&](Communicator& world) {
    at::Tensor output = at::full({3, 5}, -1.0);
    at::Tensor input = in_place ? output[world.rank()] : at::empty({5});
    input.fill_(double(world.rank()));
    world.start_all_gather(output.view(-1), input)->wait();
    return output;
  });
  for (const at::Tensor& all : gathered)
    CHECK(at::equal(all, at::arange(3, at::kFloat).unsqueeze(1).expand({3, 5})));
}

TEST_CASE("a broadcast copies the root's tensor") {
  const int64_t root = GENERATE(0, 2);
  const auto tensors = results_on(3, [&](Communicator& world) {
    at::Tensor tensor = values_of_rank(world.rank(), 9);
    world.broadcast(tensor, root);
    return tensor;
  });
  for (const at::Tensor& tensor : tensors) CHECK(at::equal(tensor, values_of_rank(root, 9)));
}

/// Rows that rank `from` sends to rank `to`, possibly none.
int64_t rows_between(int64_t from, int64_t to) {
  return (from * 2 + to * 3) % 4;
}

TEST_CASE("an all-to-all moves parts of different sizes, also empty ones") {
  constexpr int64_t kRanks = 4, kWidth = 3;
  const bool silent_rank = GENERATE(false, true);  // one that sends and receives nothing
  const auto rows = [&](int64_t from, int64_t to) {
    return silent_rank && (from == 1 || to == 1) ? 0 : rows_between(from, to);
  };
  const auto received = results_on(kRanks, [&](Communicator& world) {
    std::vector<int64_t> sizes_in, sizes_out;
    std::vector<at::Tensor> parts;
    int64_t total = 0;
    for (int64_t peer = 0; peer < kRanks; ++peer) {
      sizes_in.push_back(rows(world.rank(), peer));
      sizes_out.push_back(rows(peer, world.rank()));
      total += sizes_out.back();
      parts.push_back(at::full({sizes_in.back(), kWidth}, double(10 * world.rank() + peer)));
    }
    const at::Tensor output = at::full({total, kWidth}, -1.0);
    world.start_all_to_all(output, at::cat(parts), sizes_out, sizes_in)->wait();
    return output;
  });
  for (int64_t to = 0; to < kRanks; ++to) {
    std::vector<at::Tensor> expected;
    for (int64_t from = 0; from < kRanks; ++from)
      expected.push_back(at::full({rows(from, to), kWidth}, double(10 * from + to)));
    CHECK(at::equal(received[size_t(to)], at::cat(expected)));
  }
}

TEST_CASE("an all-to-all without sizes exchanges equal parts") {
  const auto received = results_on(3, [](Communicator& world) {
    const at::Tensor input = at::arange(3, at::kLong) + 10 * world.rank();
    at::Tensor output = at::empty({3}, at::kLong);
    world.start_all_to_all(output, input)->wait();
    return output;
  });
  for (int64_t to = 0; to < 3; ++to)
    CHECK(at::equal(received[size_t(to)], at::arange(3, at::kLong) * 10 + to));
}

TEST_CASE("sub-groups order and number their ranks as listed") {
  // {2, 0} and {1, 3} are created together; a rank that is in no group receives null.
  const auto results = results_on(5, [](Communicator& world) {
    const std::vector<int64_t> even{2, 0}, odd{1, 3};
    const bool is_odd = world.rank() == 1 || world.rank() == 3;
    const auto group = world.subgroup(is_odd ? odd : even);
    if (!group) return at::full({1}, -1.0);
    at::Tensor all = at::empty({group->size() + 1});
    all[group->size()] = double(group->rank());
    group->start_all_gather(all.narrow(0, 0, 2), at::full({1}, double(world.rank())))->wait();
    return all;
  });
  const auto list = [](double a, double b, double rank) { return at::tensor({a, b, rank}); };
  CHECK(at::equal(results[0], list(2, 0, 1).to(at::kFloat)));
  CHECK(at::equal(results[1], list(1, 3, 0).to(at::kFloat)));
  CHECK(at::equal(results[2], list(2, 0, 0).to(at::kFloat)));
  CHECK(at::equal(results[3], list(1, 3, 1).to(at::kFloat)));
  CHECK(at::equal(results[4], at::full({1}, -1.0)));
}

TEST_CASE("groups over the same ranks do not mix their operations") {
  // The ranks use the two groups in different orders. With one group, they would exchange wrong
  // values without an error.
  const auto results = results_on(2, [](Communicator& world) {
    const std::vector<int64_t> both{0, 1};
    const auto a = world.subgroup(both), b = world.subgroup(both);
    at::Tensor from_a = at::empty({2}), from_b = at::empty({2});
    std::vector<std::unique_ptr<Work>> works;
    const auto start = [&](Communicator& group, at::Tensor& output, double value) {
      works.push_back(group.start_all_gather(output, at::full({1}, value)));
    };
    if (world.rank() == 0) start(*a, from_a, 1);
    start(*b, from_b, 10 + double(world.rank()));
    if (world.rank() == 1) start(*a, from_a, 2);
    for (const auto& work : works) work->wait();
    return at::stack({from_a, from_b});
  });
  const at::Tensor expected = at::tensor({1.0, 2.0, 10.0, 11.0}, at::kFloat).view({2, 2});
  for (const at::Tensor& result : results) CHECK(at::equal(result, expected));
}

TEST_CASE("many operations may run at once and be waited for in any order") {
  constexpr int64_t kOperations = 50;
  const auto results = results_on(3, [](Communicator& world) {
    std::vector<at::Tensor> outputs;
    std::vector<std::unique_ptr<Work>> works;
    for (int64_t i = 0; i < kOperations; ++i) {
      outputs.push_back(at::empty({8}));
      works.push_back(world.start_reduce_scatter_sum(outputs.back(),
                                                     values_of_rank(world.rank(), 24) * double(i)));
    }
    for (int64_t i = kOperations - 1; i >= 0; --i) works[size_t(i)]->wait();
    return at::stack(outputs);
  });
  for (int64_t rank = 0; rank < 3; ++rank)
    for (int64_t i = 0; i < kOperations; ++i) {
      at::Tensor sum = values_of_rank(0, 24) * double(i);
      for (int64_t other = 1; other < 3; ++other) sum += values_of_rank(other, 24) * double(i);
      CHECK(at::equal(results[size_t(rank)][i], sum.narrow(0, 8 * rank, 8)));
    }
}

TEST_CASE("a lost rank ends the operations of the others with an error that names them") {
  const int64_t lost = GENERATE(0, 1);
  std::vector<std::string> messages(3);
  std::vector<ExitCode> codes(3, ExitCode::failed);
  const auto body = [&](const std::shared_ptr<Communicator>& world) {
    world->barrier();
    if (world->rank() == lost) throw Error("rank out of order", ExitCode::data);
    try {
      for (int i = 0; i < 3; ++i) world->barrier();
    } catch (const Error& error) {
      messages[size_t(world->rank())] = error.what();
      codes[size_t(world->rank())] = error.code();
      throw;
    }
  };
  // The cause is thrown, not its consequences.
  CHECK_THROWS_WITH(on_ranks(3, body), "rank out of order");
  for (int64_t rank = 0; rank < 3; ++rank) {
    if (rank == lost) continue;
    CHECK(codes[size_t(rank)] == ExitCode::peer_lost);
    CHECK_THAT(messages[size_t(rank)],
               Catch::Contains("rank " + std::to_string(rank) + " of 3 on ") &&
                   Catch::Contains("all_gather") && Catch::Contains("group 'world'") &&
                   !Catch::Contains("\n"));
  }
}

TEST_CASE("without other ranks, all operations return the rank's own values") {
  const auto alone = local_communicator();
  CHECK(alone->size() == 1);
  at::Tensor tensor = values_of_rank(0, 5), output = at::empty({5});
  alone->all_reduce_sum(tensor);
  alone->broadcast(tensor, 0);
  alone->barrier();
  alone->start_reduce_scatter_sum(output, tensor)->wait();
  CHECK(at::equal(output, values_of_rank(0, 5)));
  alone->start_all_to_all(output, tensor, {5}, {5})->wait();
  CHECK(at::equal(output, values_of_rank(0, 5)));
}

TEST_CASE("planned ranks have the sizes of real ones and exchange equal values") {
  const auto planned = planned_communicator(4);
  CHECK(planned->size() == 4);
  at::Tensor sum = at::ones({3}), all = at::empty({8});
  planned->all_reduce_sum(sum);
  CHECK(at::equal(sum, at::full({3}, 4.0)));
  planned->start_all_gather(all, at::arange(2, at::kFloat))->wait();
  CHECK(at::equal(all, at::arange(2, at::kFloat).repeat({4})));
  const std::vector<int64_t> pair{0, 2}, others{1, 3};
  CHECK(planned->subgroup(pair)->size() == 2);
  CHECK(planned->subgroup(others) == nullptr);
}

}  // namespace
}  // namespace dsv3::test
