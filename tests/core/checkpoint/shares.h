// Checkpoints of several ranks, for tests.
#pragma once

#include "core/checkpoint/fixture.h"

inline constexpr int64_t kElements = 10;

/// One rank's content: its part of the tensor "model/w" [2, 5], and a whole tensor of its own.
struct Share {
  std::vector<float> part, own;
  dsv3::CheckpointContent content;

  Share(int64_t rank, int64_t ranks, int64_t step) {
    const int64_t begin = rank * kElements / ranks, end = (rank + 1) * kElements / ranks;
    for (int64_t i = begin; i < end; ++i) part.push_back(float(i + 100 * step));
    own = {float(rank), float(step)};
    content.step = step;
    content.tokens = 10 * step;
    content.tensors["model/own" + std::to_string(rank)] = {"F32", {2}, own.data(), 8};
    content.state = {{"rank", rank}};
    if (rank == 0) content.files["notes.txt"] = "notes";
    if (begin == end) return;
    content.tensors["model/w/" + std::to_string(begin)] = {
        "F32", {end - begin}, part.data(), uint64_t(4 * (end - begin))};
    content.pieces["model/w"] = {.shape = {2, 5}, .pieces = {{"", begin, end}}};
  }
};
