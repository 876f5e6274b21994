#!/usr/bin/env python3
"""What the prefill kernel's units of work would take: predictions for docs/kernel-log.md, no measurements.

    python3 bench/prefill_units.py [--clock GHZ]

Units of both GEMMs, in the order in which clusters take them, on 66 clusters that share memory's bandwidth (a
unit gets what its products allow, or its share of the bytes). Cycles of a step (128 deep) and of an epilogue are
those of the kernel log, for tall tiles estimated from shared memory's 128 bytes a cycle. Without prologue, x put
in order, combine and launches.
"""
import argparse
import math
import random

BYTES_PER_US = 4.53e6
CLUSTERS = 66
MODELS = {  # experts, top_k, hidden, intermediate
    "OLMoE": (64, 8, 2048, 1024),
    "Qwen3-30B": (128, 8, 2048, 768),
    "Mixtral": (8, 2, 4096, 14336),
    "DSv3": (256, 8, 7168, 2048),
}


def histogram(experts, top_k, tokens, zipf):
    """Rows per expert: each token draws top_k distinct experts, popularity rank^-zipf, ranks shuffled."""
    rng = random.Random(1)
    ranks = list(range(1, experts + 1))
    rng.shuffle(ranks)
    weight = [-zipf * math.log(r) for r in ranks]
    rows = [0] * experts
    for _ in range(tokens):
        key = [w - math.log(-math.log(rng.random() + 1e-300)) for w in weight]
        for e in sorted(range(experts), key=lambda e: -key[e])[:top_k]:
            rows[e] += 1
    return rows


def units_128(rows, slices, steps, cycle):
    """128 x 256 items: couples of row tiles share weights, what is left has a pair of slices per block."""
    pairs = (slices + 3) // 4 * 2
    pair_bytes = 256 * 128 * steps

    def time(n):
        return ((1250 if n > 64 else 750) * steps + 5000) * cycle

    for expert, count in enumerate(rows):
        if count == 0:
            continue
        tiles = -(-count // 128)
        last = count - (tiles - 1) * 128
        couples = (tiles - (0 if tiles == 2 or last > 64 else 1)) // 2
        left = tiles - 2 * couples
        grouped = 0 if couples == 0 else (couples - 1) // 8 * 8
        for _ in range(grouped // 8 * pairs):
            for q in range(8):
                yield expert, time(128), pair_bytes if q == 0 else 0
        for _ in range(0, pairs, 2):
            for _ in range(2):
                for q in range(couples - grouped):
                    yield expert, time(128), pair_bytes if q == 0 else 0
            for q in range(left):
                alone = couples == grouped and q == 0
                yield expert, time(last if left == 1 else 128), 2 * pair_bytes if alone else 0


def units_192(rows, slices, steps, cycle):
    """192 x 128 items, a slice per block; of at most 64 rows: a pair per block."""
    pairs = (slices + 1) // 2
    pair_bytes = 256 * 128 * steps
    for expert, count in enumerate(rows):
        tiles = [192] * (count // 192) + ([count % 192] if count % 192 else [])
        for first in range(0, len(tiles), 16):
            group = tiles[first : first + 16]
            for pair in range(pairs):
                cold = True
                for n in group:
                    if n > 64:
                        yield expert, ({2: 720, 3: 920}[-(-n // 64)] * steps + 3000) * cycle, pair_bytes if cold else 0
                        cold = False
                    elif pair % 2 == 0:
                        yield expert, (760 * steps + 4000) * cycle, 2 * pair_bytes if len(group) == 1 else 0


def mixed(units, rows, tile):
    """Experts with more rows than a tile has, and the others, by turns."""
    kinds = [[u for u in units if (rows[u[0]] > tile) == many] for many in (False, True)]
    many = len(kinds[1])
    taken = [0, 0]
    for n in range(len(units)):
        kind = (n + 1) * many // len(units) - n * many // len(units)
        yield kinds[kind][taken[kind]]
        taken[kind] += 1


def simulate(units):
    """us until the last unit's end."""
    waiting = list(reversed(units))
    running = [[1.0, *waiting.pop()[1:]] for _ in range(min(CLUSTERS, len(waiting)))]
    now = 0.0
    while running:
        rate = [1 / u[1] for u in running]
        wants = sorted((u[2] / u[1], i) for i, u in enumerate(running) if u[2] > 0)
        left = BYTES_PER_US
        for n, (want, _) in enumerate(wants):
            share = left / (len(wants) - n)
            if want > share:
                for _, i in wants[n:]:
                    rate[i] = share / running[i][2]
                break
            left -= want
        step = min(u[0] / r for u, r in zip(running, rate))
        now += step
        still = []
        for u, r in zip(running, rate):
            u[0] -= step * r
            if u[0] > 1e-9:
                still.append(u)
            elif waiting:
                still.append([1.0, *waiting.pop()[1:]])
        running = still
    return now


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clock", type=float, default=1.85, help="GHz (default: 1.85)")
    cycle = 1e-3 / parser.parse_args().clock
    print("us of both GEMMs          128 x 256    mixed  192 x 128    mixed")
    for name, (experts, top_k, hidden, inner) in MODELS.items():
        for tokens in (512, 2048, 8192):
            for zipf in (0, 1.2):
                rows = histogram(experts, top_k, tokens, zipf)
                line = []
                for make, tile in ((units_128, 128), (units_192, 192)):
                    gemms = [
                        list(make(rows, 2 * inner // 128, hidden // 128, cycle)),
                        list(make(rows, hidden // 128, inner // 128, cycle)),
                    ]
                    line.append(simulate(gemms[0] + gemms[1]))
                    line.append(simulate([u for g in gemms for u in mixed(g, rows, tile)]))
                print(f"{name:10} T = {tokens:4} z{zipf:<3}      " + "  ".join(f"{us:9.0f}" for us in line), flush=True)


if __name__ == "__main__":
    main()
