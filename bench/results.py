#!/usr/bin/env python3
"""The page of results from what bench/results.sh measured: bench/results.py DIR > PAGE.md.

Reads the JSON files of DIR, measures nothing. A part whose file is missing is named as missing."""
import glob
import json
import math
import os
import sys

MODELS = [("olmoe", "OLMoE"), ("qwen3-30b", "Qwen3-30B"), ("mixtral-8x7b", "Mixtral-8x7B"), ("dsv3", "DSv3"),
          ("64,4,3584,2560", "64/4/3584/2560")]
ROUTINGS = [("uniform", "z0"), ("zipf:1.2", "z1.2"), ("zipf:2", "z2")]
LEAST = 0.98  # below it a row is lost: the goal says no point may be
GOALS = {"fp8_block": [(1, 8, 1.27), (32, 128, 1.16), (512, 512, 1.35), (2048, 8192, 1.30), (1, 8192, 1.25)],
         "bf16": [(1, 8192, 1.15)]}
POLICIES = ["ramp4", "static_uniform", "static_skewed", "single_best", "oracle"]


def load(directory, name):
    path = os.path.join(directory, name + ".json")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def number(value):
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def bold(text, losing):
    return f"**{text}**" if losing else text


def short(config):
    """m32_n128_k128_s5_t320 -> m32 n128 s5; whatever else a name has stays."""
    return " ".join(part for part in config.split("_") if not part.startswith(("k1", "k6", "t")))


def name_of(row):
    for key, name in MODELS:
        if row["model"] == key:
            return name
    return row["model"]


def geometric_mean(values):
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else None


def key_of(row):
    return row["model"], row["tokens"], row["routing"]


def points_table(rows, fitted):
    """fitted: rows of the same points chosen by fits, by key_of; may be empty."""
    heads = ["model", "T", "routing", "us", "p10–p90", "floor us", "× floor", "best open kernel us", "speed-up", "config"]
    if fitted:
        heads += ["by fit us", "by fit config"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        ratio = row["ratio"]
        losing = ratio is not None and ratio < LEAST
        peer = "–" if row["peer_us"] is None else number(row["peer_us"]) + (row["peer"] or "")
        floor = row["floor_us"]
        cells = [name_of(row), str(row["tokens"]), row["routing"], number(row["us"]),
                 f"{number(row['p10_us'])}–{number(row['p90_us'])}", number(floor),
                 "–" if not floor else f"{row['us'] / floor:.2f}", peer, "–" if ratio is None else f"{ratio:.2f}",
                 short(row["config"])]
        if fitted:
            other = fitted.get(key_of(row))
            cells += ["–", "–"] if other is None else [number(other["us"]), short(other["config"])]
        lines.append("| " + " | ".join(bold(c, losing) for c in cells) + " |")
    return "\n".join(lines)


def goals_table(rows, fmt):
    compared = [r for r in rows if r["ratio"] is not None]
    lines = ["| T | points | speed-up, geometric mean | goal |", "|---|---|---|---|"]
    for low, high, goal in GOALS[fmt]:
        mean = geometric_mean([r["ratio"] for r in compared if low <= r["tokens"] <= high])
        if mean is None:
            continue
        count = sum(low <= r["tokens"] <= high for r in compared)
        text = str(low) if low == high else f"{low} to {high}"
        lines.append(f"| {text} | {count} | {bold(f'{mean:.3f}', mean < goal)} | {goal:.2f} |")
    lost = [r for r in compared if r["ratio"] < LEAST]
    lines.append("")
    lines.append(f"{len(lost)} of {len(compared)} points below {LEAST}." if lost else f"No point below {LEAST}.")
    return "\n".join(lines)


def load_all(directory, pattern):
    rows = []
    for path in glob.glob(os.path.join(directory, pattern + ".json")):
        rows += load(directory, os.path.basename(path)[:-5])
    order = [key for key, _ in MODELS]
    rows.sort(key=lambda r: (order.index(r["model"]) if r["model"] in order else len(order)))  # stable: T, routing
    return rows


def kernels(directory):
    parts = []
    for fmt, name in (("fp8_block", "fp8"), ("bf16", "bf16")):
        rows = load_all(directory, f"rule_{name}_*")
        parts.append(f"## Whole block, {fmt}\n")
        if not rows:
            parts.append("Not measured in this run.\n")
            continue
        missing = [title for key, title in MODELS if key not in {r["model"] for r in rows}
                   and not (fmt == "bf16" and key == "dsv3") and not (fmt == "fp8_block" and "/" in title)]
        parts.append(f"{rows[0]['device']}, CUDA graphs of 5, 5, 3, 2 layers with distinct weights and routing, median of "
                     "the replays. Losing rows in bold."
                     + (f" Not measured in this run: {', '.join(missing)}." if missing else "") + "\n")
        fitted = {key_of(r): r for r in load_all(directory, f"fit_{name}_*") if r["fit"] is not None}
        parts.append(points_table(rows, fitted) + "\n")
        parts.append(goals_table(rows, fmt) + "\n")
        both = [r for r in rows if key_of(r) in fitted]
        if both:
            gains = [r["us"] / fitted[key_of(r)]["us"] for r in both]
            parts.append("Chosen by the rules above (without a fit), and by the fits that the same run made: these are "
                         f"{geometric_mean(gains):.3f} times as fast (geometric mean; {min(gains):.3f} to {max(gains):.3f}).\n")
            parts.append("With them:\n\n" + goals_table([fitted[key_of(r)] for r in both], fmt) + "\n")
    return parts


def percent(stats):
    return "–" if stats is None else f"{100 * stats['mean_regret']:.2f} / {100 * stats['max_regret']:.1f}"


def regret(directory):
    judged, tables = {}, {}
    for path in sorted(glob.glob(os.path.join(directory, "regret_*.json"))):
        for case in load(directory, os.path.basename(path)[:-5]):
            judged[case["model"]] = case
    for path in sorted(glob.glob(os.path.join(directory, "evaluate_*.json"))):
        document = load(directory, os.path.basename(path)[:-5])
        cost_model = document["overall"]["cost_model"]
        for model, stats in document["models"].items():
            tables.setdefault(model, {})[cost_model] = stats
    parts = ["## Regret of the choice\n"]
    if not judged:
        return parts + ["Not measured in this run.\n"]
    parts.append("Time of the chosen config over the best one's, minus 1, at points that no fit has seen: T = 3, 12, 48, 96, "
                 "200, 700, 1500, 3000, 6000, each with zipf 0.4, 0.9 and 1.6. Every config of the space is timed, those "
                 "that were hopeless next door left out (they count as 1.5 times the best). Mean and largest, %; 'profile' is everything from an empty cache for the first model "
                 "(kernels, weights, timing, fit), without kernels for the others. wave and step: the fits of those cost "
                 "models behind the measured guard.\n")
    lines = ["| model | configs | profile, s | wave | step | " + " | ".join(POLICIES) + " | noise floor |",
             "|" + "---|" * (len(POLICIES) + 6)]
    for model, name in MODELS:
        case = judged.get(model)
        if case is None:
            continue
        wave = tables.get(model, {}).get("wave")
        policies = (wave or {}).get("policies", {})
        own = wave["dispatcher"] if wave else case["judged"]
        cells = [name, str(case["configs"]), f"{case['seconds']:.0f}",
                 bold(percent(own), own["mean_regret"] > 0.01 or own["max_regret"] > 0.08)]
        step = tables.get(model, {}).get("step")
        cells.append(percent(step["dispatcher"] if step else None))
        cells += [percent(policies.get(p)) for p in POLICIES]
        cells.append(f"{100 * case['judged']['noise_floor']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    parts.append("\n".join(lines) + "\n")
    lines = ["| model | against the single best config | against what runs without a fit | worst point | its regret, % |",
             "|---|---|---|---|---|"]
    for model, name in MODELS:
        case = judged.get(model)
        if case is None or not case["judged"]["points"]:
            continue
        j = case["judged"]
        worst = max(j["points"], key=lambda p: p["regret"])
        lines.append(f"| {name} | {j['speedup_over_single_best']:.3f} ({short(j['single_best'])}) | "
                     f"{bold(format(j['speedup_over_default'], '.3f'), j['speedup_over_default'] < 1)} | "
                     f"{worst['point']}: {short(worst['config'])}, best {short(worst['best'])} | "
                     f"{100 * worst['regret']:.1f} |")
    parts.append("Speed-up of the choice, geometric means over those points:\n\n" + "\n".join(lines) + "\n")
    return parts


def verdict(predicted, gain, noise=0.02):
    """Whether a mode that is predicted to help (or not) does, beyond what two runs differ by."""
    helps = gain > 1 + noise
    return "held" if helps == predicted else bold("missed", True)


def regions(directory):
    parts = ["## The regions put to the test\n"]
    known = load(directory, "regions")
    fp8 = load(directory, "regions_fp8") or []
    few = load(directory, "regions_few") or []
    wide = load(directory, "regions_bf16") or []
    if not (fp8 or few or wide):
        return parts + ["Not measured in this run.\n"]
    parts.append("The three modes of the published regions, each off and on in our kernels, two layers, uniform routing; gain = "
                 "time off / time on; a mode helps where it gains more than 2%. GROUP_M: the prefill kernel with groups "
                 "of 2 and of 16 row tiles (at T = 64 an expert has one row tile or two, so order changes nothing). "
                 "Split-K: the few-token kernel, which cuts an item's depth, against the better of two stream configs. "
                 "Wide tile: bf16, 256 weight rows per item against 128. λκ and κ as `ramp regions` has them; the "
                 "thresholds are λκ > "
                 + (f"{known['thresholds']['group_m_lambda_kappa']:.0f}" if known else "1440")
                 + ", κ ≥ 48 with ω < 0.2, ω > 1.\n")

    def times(rows):
        table = {}
        for r in rows:
            table[(r["model"], r["tokens"], r["config_requested"])] = r
        return table

    f, w = times(fp8), times(wide)
    lines = ["| model | mode | T | predicted | off us | on us | gain | prediction |", "|---|---|---|---|---|---|---|---|"]

    def add(model, mode, tokens, predicted, off, on):
        if off is None or on is None:
            return
        gain = off / on
        lines.append(f"| {model} | {mode} | {tokens} | {'on' if predicted else 'off'} | {number(off)} | {number(on)} | "
                     f"{gain:.3f} | {verdict(predicted, gain)} |")

    def us(row):
        return None if row is None else row["us"]

    groups = ("m128_n256_k128_s4_t384_g2", "m128_n256_k128_s4_t384")
    streams = ("m8_n128_k128_s6_t320", "m24_n128_k128_s6_t320")
    slices = ("m64_n128_k64_s4_t320", "m64_n256_k64_s4_t576")
    models = []
    for r in fp8 + few + wide:
        if r["model"] not in [m["model"] for m in models]:
            models.append(r)
    for m in models:
        name, n1, hidden = m["model"], 2 * m["intermediate"], m["hidden"]
        lam, kappa = math.ceil(n1 / 256), hidden / 128
        for tokens in (64, 4096):
            add(name, "GROUP_M", tokens, lam * kappa > 1440 and tokens > 64, us(f.get((name, tokens, groups[0]))),
                us(f.get((name, tokens, groups[1]))))
        stream = [us(f.get((name, 1, c))) for c in streams]
        split = next((r["us"] for r in few if r["model"] == name and r["tokens"] == 1), None)
        omega = m["top_k"] * lam / 132  # one tile per active expert
        if None not in stream:
            add(name, "split-K", 1, kappa >= 48 and omega < 0.2, min(stream), split)
        for tokens in (8, 512):
            row = w.get((name, tokens, slices[0]))
            if row is None:
                continue
            tiles = row["active"] * max(1, math.ceil(tokens * row["top_k"] / row["active"] / 64))
            add(name, "wide tile", tokens, tiles * lam / 132 > 1, us(row), us(w.get((name, tokens, slices[1]))))
    parts.append("\n".join(lines) + "\n")
    return parts


def main():
    if len(sys.argv) != 2 or not os.path.isdir(sys.argv[1]):
        sys.exit("results: got no directory, expected the one that bench/results.sh wrote; bench/results.py DIR")
    directory = sys.argv[1]
    parts = ["# Results on the GPU\n",
             "Made by `bench/results.sh` (one call measures everything; `bench/results.py DIR` makes this page from its "
             "files). Times are medians of the whole block, from (x, ids, router weights) to y, in µs per layer; how they "
             "are taken is in [bench/README.md](../bench/README.md).\n"]
    parts += kernels(directory) + regret(directory) + regions(directory)
    sys.stdout.write("\n".join(parts))


if __name__ == "__main__":
    main()
