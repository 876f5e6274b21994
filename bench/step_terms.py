#!/usr/bin/env python3
"""The table kTerms of src/backend/cuda/step_choice.cpp, fitted to the profiles that ship.

    python3 bench/step_terms.py [PROFILE.json ...]        (needs numpy and scipy)

One set of constants per shipped config for all shapes, by non-negative least squares of the relative error:

    us = base + wave1 H/128 waves1 + wave2 I/128 waves2 + max(W, R) + (1 - overlap) min(W, R)
    W  = active MB experts with rows            MB: 3e-6 H I, an expert's weights at a byte each
    R  = sum over experts of tile MB tiles + (row MB + IO H) rows, rows in eights

(docs/dispatch.md, cost model `step`). T from 1 to 512; the prefill config also beyond.
"""
import glob
import json
import math
import sys

import numpy as np
from scipy.optimize import nnls

IO_PER_MB = 0.9e-6
SMS = 132
CONFIGS = {  # tile_m, tile_n, stages: name
    "m128_n256_k128_s4_t384": (128, 256, 4),
    "m32_n128_k128_s3_t320": (32, 128, 3),
    "m16_n128_k128_s6_t320": (16, 128, 6),
    "m8_n128_k128_s6_t320": (8, 128, 6),
    "m8_n64_k128_s6_t320": (8, 64, 6),
}


def points(files, config, tile_m, tile_n):
    for file in files:
        with open(file) as f:
            profile = json.load(f)
        model = profile["models"][0]
        hidden, inner = model["hidden"], model["intermediate"]
        names = [row["name"] for row in profile["configs"]["rows"]]
        at = names.index(config)
        for p in profile["points"]:
            us = p["timings_us"][at]
            if us is None or (p["tokens"] > 512 and tile_m != 128):
                continue
            rows = [c for c in p["histogram"] if c > 0]
            tiles = sum(-(-c // tile_m) for c in rows)
            eights = sum(-(-c // 8) * 8 for c in rows)
            mb = 3e-6 * hidden * inner
            units = (-(-2 * inner // tile_n) * tiles, -(-hidden // tile_n) * tiles)
            yield {
                "us": us,
                "io": IO_PER_MB * hidden * eights,
                "hidden": hidden,
                "inner": inner,
                "units": units,
                "factors": (mb * len(rows), mb * tiles, mb * eights),
            }


def fit(data, residency, overlap):
    """base, wave1, wave2, active, tile, row and the rms relative error."""
    hides = np.ones(len(data), bool)  # whether R is the smaller one
    for _ in range(8):
        a, b = [], []
        for p, h in zip(data, hides):
            work, weights = (1 - overlap, 1) if h else (1, 1 - overlap)
            waves = [math.ceil(u / (residency * SMS)) for u in p["units"]]
            f = p["factors"]
            line = [1, waves[0] * p["hidden"] / 128, waves[1] * p["inner"] / 128, weights * f[0], work * f[1], work * f[2]]
            a.append([v / p["us"] for v in line])
            b.append((p["us"] - work * p["io"]) / p["us"])
        x, rest = nnls(np.array(a), np.array(b))
        now = np.array([x[4] * p["factors"][1] + x[5] * p["factors"][2] + p["io"] < x[3] * p["factors"][0] for p in data])
        if (now == hides).all():
            break
        hides = now
    return x, rest / math.sqrt(len(data))


def main():
    files = sys.argv[1:] or sorted(glob.glob("profiles/*.profile.json"))
    for config, (tile_m, tile_n, stages) in CONFIGS.items():
        data = list(points(files, config, tile_m, tile_n))
        best = None
        for residency in (1, 2, 3):
            for overlap in (0, 0.25, 0.5, 0.75, 1):
                x, error = fit(data, residency, overlap)
                if best is None or error < best[0]:
                    best = error, residency, overlap, x
        error, residency, overlap, x = best
        numbers = ", ".join(f"{v:.{d}f}" for v, d in zip(x, (1, 4, 4, 4, 4, 5)))
        print(f"{{{tile_m}, {tile_n}, {stages}, {residency}, {overlap:.2f}, {numbers}}}  // {len(data)} points, rms {100 * error:.1f}%")


if __name__ == "__main__":
    main()
