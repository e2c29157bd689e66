"""Reimplements how dsv3 selects the held-out documents, orders documents and packs them into rows
(dsv3/sdk/documents.h), so that tests can compute the rows of a run."""

import torch

MASK = (1 << 64) - 1


def mix(x):
    """The SplitMix64 finaliser."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def absorb(state, word):
    return mix((state ^ word) + 0x9E3779B97F4A7C15 & MASK)


def random_bits(*words):
    state = len(words)
    for word in words:
        state = absorb(state, word)
    return state


def document_hash(data):
    state = len(data)
    whole = len(data) // 8 * 8
    for i in range(0, whole, 8):
        mixed = (state ^ int.from_bytes(data[i:i + 8], "little")) * 0x9E3779B97F4A7C15 & MASK
        state = (mixed << 29 | mixed >> 35) & MASK
    return absorb(mix(state), int.from_bytes(data[whole:], "little"))


def held_out(data, share):
    return (document_hash(data) >> 11) * 2.0**-53 < share


def order(count, seed, epoch):
    """Yield a permutation of range(count): a Feistel network, repeated until the result is below `count`."""
    half = 1 if count < 4 else ((count - 1).bit_length() + 1) // 2
    mask, key = (1 << half) - 1, random_bits(seed, epoch)
    for position in range(count):
        while True:
            left, right = position >> half, position & mask
            for step in range(8):
                left, right = right, left ^ (random_bits(key, step, right) & mask)
            position = left << half | right
            if position < count:
                break
        yield position


def training_rows(documents, seed, rows, length):
    """Return tokens and document ids [rows, length + 1] from an endless stream. A row's last token is the next row's
    first token."""
    tokens, ids, epoch = [], [], 0
    while len(tokens) <= rows * length:
        for place, document in enumerate(order(len(documents), seed, epoch)):
            tokens += documents[document]
            ids += [epoch * len(documents) + place] * len(documents[document])
        epoch += 1
    return cut(tokens, ids, rows, length)


def validation_rows(documents, length, multiple):
    """Return all rows in one pass, padded to a multiple of `multiple` rows with token 0 and document id -1."""
    tokens, ids = [], []
    for place, document in enumerate(order(len(documents), 0, 0)):
        tokens += documents[document]
        ids += [place] * len(documents[document])
    rows = -(-(len(tokens) - 1) // length)
    rows = -(-rows // multiple) * multiple
    missing = rows * length + 1 - len(tokens)
    return cut(tokens + [0] * missing, ids + [-1] * missing, rows, length)


def cut(tokens, ids, rows, length):
    def stack(values):
        return torch.tensor([values[row * length:(row + 1) * length + 1] for row in range(rows)])
    return stack(tokens), stack(ids)
