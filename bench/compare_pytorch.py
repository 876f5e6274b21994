#!/usr/bin/env python3
"""The expert block on the CPU: ramp against PyTorch, bf16, same threads, same shapes, same routing, one run.

PyTorch runs the loop over the experts that were hit, as the OLMoE and Qwen3-MoE blocks of Hugging Face Transformers do:
gate and up as one linear layer, silu(gate) * up, down, times the router's weight, index_add_. Both sides get the expert
ids that `ramp workload` draws, the ones that `ramp bench` uses with the same seed; the router itself is in neither time.
bench/README.md has the protocol.
"""
import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

MODELS = {
    "olmoe": {"experts": 64, "top_k": 8, "hidden": 2048, "intermediate": 1024},
    "qwen3-30b": {"experts": 128, "top_k": 8, "hidden": 2048, "intermediate": 768},
}
LEAST_PASSES = 3
MEMORY_SHARE = 0.6  # of the free memory, for one side's weights: the two sides never hold theirs at the same time
MOST_LAYERS = 16
QUIET = 0.9  # share of their cores that measuring threads get on a machine where nothing else runs
TOLERANCE = 0.02  # relative error against fp64 of one small block, over all outputs; bf16 roundings give about 0.004


def say(text):
    print(f"compare_pytorch: {text}", file=sys.stderr, flush=True)


# ---- PyTorch's side; these functions run in processes of their own ----


def expert_loop(torch, x, ids, weights, gate_up, down):
    """One block: x [T, H], ids and weights [T, k], gate_up [E, 2I, H], down [E, H, I]."""
    linear = torch.nn.functional.linear
    y = torch.zeros_like(x)
    mask = torch.nn.functional.one_hot(ids, num_classes=gate_up.shape[0]).permute(2, 1, 0)
    hit = torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()
    for expert in hit:
        expert = expert[0]
        slot, token = torch.where(mask[expert])
        rows = x[token]
        gate, up = linear(rows, gate_up[expert]).chunk(2, dim=-1)
        rows = linear(torch.nn.functional.silu(gate) * up, down[expert])
        y.index_add_(0, token, (rows * weights[token, slot, None]).to(y.dtype))
    return y


def random_pool(torch, values):
    """bf16 numbers with random sign and mantissa and magnitudes of 2^-7 to 2^-5, as int64 (four in each)."""
    pool = torch.empty(values // 4, dtype=torch.int64)
    torch.manual_seed(0)
    pool.random_(-(1 << 63), (1 << 63) - 1)
    lanes = [0x80FF << 16 * i for i in range(4)]
    base = [0x3C00 << 16 * i for i in range(4)]
    signed = lambda v: v - (1 << 64) if v >> 63 else v
    pool.bitwise_and_(signed(sum(lanes))).bitwise_or_(signed(sum(base)))
    return pool.view(torch.bfloat16)


def random_layers(torch, model, count):
    """Distinct memory for every layer; values are copies of one random pool, each from another offset."""
    e, h, i = model["experts"], model["hidden"], model["intermediate"]
    pool = random_pool(torch, 1 << 26)
    offset = 0

    def tensor(*shape):
        nonlocal offset
        t = torch.empty(shape, dtype=torch.bfloat16)
        flat = t.view(-1)
        done = 0
        while done < flat.numel():
            n = min(flat.numel() - done, pool.numel() - offset)
            flat[done : done + n].copy_(pool[offset : offset + n])
            done += n
            offset = (offset + n) % pool.numel()
        offset = (offset + 7919 * 32) % pool.numel()
        return t

    return [(tensor(e, 2 * i, h), tensor(e, h, i)) for _ in range(count)]


def percentile(values, q):
    values = sorted(values)
    position = q * (len(values) - 1)
    low = math.floor(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (position - low) * (values[high] - values[low])


def worker(spec):
    import numpy
    import torch

    torch.set_num_threads(spec["threads"])
    torch.set_num_interop_threads(1)
    layers = random_layers(torch, spec["model"], spec["layers"])
    points = []
    with torch.inference_mode():
        for tokens in spec["tokens"]:
            x = torch.randn(tokens, spec["model"]["hidden"]).bfloat16()
            routing = []
            for files in spec["routing"][str(tokens)]:
                ids = torch.from_numpy(numpy.load(files["ids"]).astype(numpy.int64))
                weights = torch.from_numpy(numpy.load(files["weights"])).bfloat16()
                routing.append((ids, weights))
            active = statistics.fmean(len(ids.unique()) for ids, _ in routing)

            def one_pass():
                start = time.perf_counter()
                for (ids, weights), (gate_up, down) in zip(routing, layers):
                    expert_loop(torch, x, ids, weights, gate_up, down)
                return (time.perf_counter() - start) * 1e6 / len(layers)

            one_pass()
            times = []
            begin = time.perf_counter()
            while len(times) < LEAST_PASSES or time.perf_counter() - begin < spec["seconds"]:
                times.append(one_pass())
            points.append(
                {
                    "tokens": tokens,
                    "active": active,
                    "us": percentile(times, 0.5),
                    "p10_us": percentile(times, 0.1),
                    "p90_us": percentile(times, 0.9),
                    "passes": len(times),
                }
            )
    print(json.dumps(points))


def facts(spec):
    """Versions; with ONEDNN_VERBOSE=1 in the environment oneDNN adds a line for every product of its own."""
    import torch

    torch.set_num_threads(spec["threads"])
    model = spec["model"]
    w = torch.randn(2 * model["intermediate"], model["hidden"]).bfloat16()
    with torch.inference_mode():
        for rows in spec["rows"]:
            print(f"rows {rows}", flush=True)
            torch.nn.functional.linear(torch.randn(rows, model["hidden"]).bfloat16(), w)
    print("facts " + json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)


def small_block(spec):
    """A small checkpoint, inputs, PyTorch's y and an fp64 y, all as files in spec["dir"]."""
    import numpy
    import torch

    e, k, h, i, tokens = (spec[n] for n in ("experts", "top_k", "hidden", "intermediate", "tokens"))
    torch.manual_seed(1)
    torch.set_num_threads(spec["threads"])
    gate_up = (torch.randn(e, 2 * i, h) / math.sqrt(h)).bfloat16()
    down = (torch.randn(e, h, i) / math.sqrt(i)).bfloat16()
    x = torch.randn(tokens, h).bfloat16()
    ids = torch.rand(tokens, e).argsort(dim=1)[:, :k].contiguous()
    weights = torch.rand(tokens, k).softmax(dim=1).bfloat16()
    with torch.inference_mode():
        y = expert_loop(torch, x, ids, weights, gate_up, down)
        exact = expert_loop(torch, x.double(), ids, weights.double(), gate_up.double(), down.double())

    def save(name, array):
        numpy.save(os.path.join(spec["dir"], name + ".npy"), array)

    save("x", x.view(torch.uint16).numpy())
    save("ids", ids.numpy())
    save("weights", weights.float().numpy())
    save("torch_y", y.float().numpy())
    save("exact_y", exact.numpy())
    config = {
        "model_type": "olmoe",
        "hidden_size": h,
        "intermediate_size": i,
        "num_experts": e,
        "num_experts_per_tok": k,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "norm_topk_prob": False,
        "torch_dtype": "bfloat16",
    }
    with open(os.path.join(spec["dir"], "config.json"), "w") as f:
        json.dump(config, f)
    tensors = {"model.layers.0.mlp.gate.weight": torch.zeros(e, h).bfloat16()}
    for n in range(e):
        prefix = f"model.layers.0.mlp.experts.{n}."
        tensors[prefix + "gate_proj.weight"] = gate_up[n, :i]
        tensors[prefix + "up_proj.weight"] = gate_up[n, i:]
        tensors[prefix + "down_proj.weight"] = down[n]
    header, blobs, at = {}, [], 0
    for name, t in tensors.items():
        blob = t.contiguous().view(torch.uint16).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(spec["dir"], "model.safetensors"), "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + b"".join(blobs))


# ---- the comparison ----


def python_side(mode, spec, threads, huge_pages, verbose=False):
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    # PyTorch asks for huge pages only if told so; ramp always does.
    env["THP_MEM_ALLOC_ENABLE"] = "1" if huge_pages else "0"
    if verbose:
        env["ONEDNN_VERBOSE"] = "1"
    r = subprocess.run(
        [sys.executable, os.path.abspath(__file__), "--side", mode, json.dumps(spec)],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    if r.returncode != 0:
        sys.exit(f"compare_pytorch: PyTorch's side ({mode}) ended with {r.returncode}")
    return r.stdout


def ramp(options, *args):
    r = subprocess.run([options.ramp, *args, "--json", "--quiet"], stdout=subprocess.PIPE, text=True)
    if r.returncode != 0:
        sys.exit(f"compare_pytorch: ramp {' '.join(args)} ended with {r.returncode}")
    return json.loads(r.stdout)


def expert_bytes(model):
    return 3 * model["hidden"] * model["intermediate"] * 2


def last_level_cache(info):
    best = (0, 0)
    for c in info["cpu"]["caches"]:
        if c["type"] != "instruction":
            instances = -(-info["cpu"]["cores"] // c["shared_by"])
            best = max(best, (c["level"], c["bytes"] * instances))
    return best[1]


def plan_layers(model, info, options):
    if options.layers:
        return options.layers
    wanted = max(2, -(-2 * last_level_cache(info) // (model["top_k"] * expert_bytes(model))))
    fits = int(MEMORY_SHARE * info["cpu"]["memory_available_bytes"] / (model["experts"] * expert_bytes(model)))
    return max(1, min(wanted, fits, MOST_LAYERS))


def draw_routing(options, model, layers, directory):
    """The ids and weights of `ramp bench --seed S`: it takes seed S + l for layer l."""
    routing = {}
    for tokens in options.tokens:
        routing[str(tokens)] = []
        for layer in range(layers):
            base = os.path.join(directory, f"{model['name']}-{tokens}-{layer}")
            files = {"ids": base + "-ids.npy", "weights": base + "-weights.npy"}
            ramp(
                options, "workload", "uniform", "--experts", str(model["experts"]), "--top-k", str(model["top_k"]),
                "--tokens", str(tokens), "--seed", str(options.seed + layer),
                "--save", files["ids"], "--save-weights", files["weights"],
            )
            routing[str(tokens)].append(files)
    return routing


def check_numbers(options, directory):
    import numpy

    spec = {"dir": directory, "experts": 8, "top_k": 2, "hidden": 256, "intermediate": 128, "tokens": 33}
    python_side("small", dict(spec, threads=options.threads), options.threads, options.huge_pages)
    at = lambda name: os.path.join(directory, name)
    ramp(
        options, "run", "--checkpoint", directory, "--backend", "cpu", "--threads", str(options.threads),
        "--x", at("x.npy"), "--ids", at("ids.npy"), "--topk-weights", at("weights.npy"),
        "--output", at("ramp_y.npy"), "--output-dtype", "f32",
    )
    exact = numpy.load(at("exact_y.npy"))
    y = {side: numpy.load(at(f"{side}_y.npy")).astype(numpy.float64) for side in ("ramp", "torch")}
    norm = numpy.linalg.norm
    result = {f"{side}_error": norm(v - exact) / norm(exact) for side, v in y.items()}
    result["difference"] = norm(y["ramp"] - y["torch"]) / norm(exact)
    result["ok"] = bool(result["ramp_error"] < TOLERANCE and result["torch_error"] < TOLERANCE)
    result["shape"] = {n: spec[n] for n in ("experts", "top_k", "hidden", "intermediate", "tokens")}
    return result


def onednn_facts(options, model):
    rows = sorted({1, 2} | {max(1, round(t * model["top_k"] / model["experts"])) for t in options.tokens})
    out = python_side("facts", {"model": model, "rows": rows, "threads": options.threads}, options.threads,
                      options.huge_pages, verbose=True)
    result, current = {"onednn_isa": None, "kernels": {}}, None
    for line in out.splitlines():
        if line.startswith("rows "):
            current = line[5:]
            result["kernels"][current] = "not oneDNN"
        elif line.startswith("facts "):
            result.update(json.loads(line[6:]))
        elif line.startswith("onednn_verbose") and "cpu,isa:" in line:
            result["onednn_isa"] = line.split("cpu,isa:")[1]
        elif line.startswith("onednn_verbose") and ",exec," in line and ",matmul," in line and current:
            result["kernels"][current] = line.split(",matmul,")[1].split(",")[0]
    return result


def median_round(rounds):
    """The round whose median time is the (lower) median."""
    return sorted(rounds, key=lambda p: p["us"])[(len(rounds) - 1) // 2]


def compare_model(options, name, info, directory):
    model = dict(MODELS[name], name=name)
    layers = plan_layers(model, info, options)
    say(f"{name}: {layers} layers, {layers * model['experts'] * expert_bytes(model) / 1e9:.1f} GB of weights a side")
    routing = draw_routing(options, model, layers, directory)
    ours = {t: [] for t in options.tokens}
    theirs = {t: [] for t in options.tokens}
    read = []

    def run_ramp():
        rows = ramp(
            options, "bench", "--backend", "cpu", "--format", "bf16", "--model", name, "--routing", "uniform",
            "--tokens", ",".join(map(str, options.tokens)), "--threads", str(options.threads), "--no-check",
            "--layers", str(layers), "--seconds", str(options.seconds), "--seed", str(options.seed),
        )
        for row in rows:
            if row["layers"] != layers:
                sys.exit(f"compare_pytorch: ramp bench took {row['layers']} layers instead of {layers}: memory is short; "
                         "give --layers")
            ours[row["tokens"]].append(row)
            read.append(row["read_gbps"])

    def run_torch():
        spec = {"model": model, "layers": layers, "tokens": options.tokens, "seconds": options.seconds,
                "routing": routing, "threads": options.threads}
        for point in json.loads(python_side("time", spec, options.threads, options.huge_pages)):
            theirs[point["tokens"]].append(point)

    for r in range(options.rounds):
        say(f"{name}: round {r + 1} of {options.rounds}")
        for side in (run_torch, run_ramp) if r % 2 == 0 else (run_ramp, run_torch):
            side()
    points = []
    for tokens in options.tokens:
        a, b = median_round(ours[tokens]), median_round(theirs[tokens])
        if abs(a["active"] - b["active"]) > 1e-6:
            sys.exit(f"compare_pytorch: {a['active']} active experts in ramp, {b['active']} in PyTorch: not the same routing")
        nbytes = a["active"] * expert_bytes(model)
        flops = 2 * tokens * model["top_k"] * 3 * model["hidden"] * model["intermediate"]
        point = {"model": name, "tokens": tokens, "layers": layers, "active": a["active"], "weight_bytes": nbytes,
                 "config": a["config"], "isa": a["isa"],
                 "weights_beyond_cache": nbytes * layers > last_level_cache(info)}
        for side, p in (("ramp", a), ("torch", b)):
            point[side] = {n: p[n] for n in ("us", "p10_us", "p90_us", "passes")}
            point[side]["gbps"] = nbytes / p["us"] / 1e3
            point[side]["gflops"] = flops / p["us"] / 1e3
        ratios = [t["us"] / o["us"] for o, t in zip(ours[tokens], theirs[tokens])]
        point["ratio"] = statistics.median(ratios)
        point["ratios"] = ratios
        points.append(point)
    return points, read


def table(report):
    machine = report["machine"]
    out = [
        f"{machine['cpu']}, {report['threads']} threads, bf16; torch {report['torch']['torch']}, "
        f"oneDNN: {report['torch']['onednn_isa'] or 'no information'}",
        "PyTorch's product for n rows of an expert: "
        + ", ".join(f"{n}: {k}" for n, k in report["torch"]["kernels"].items()),
        f"read {report['read_gbps']:.1f} GB/s (the best of this run); bf16 peak: "
        + ", ".join(f"{n} {v:.0f} GFLOP/s" if v else f"{n} not available" for n, v in machine["peaks"].items()),
        f"load average {machine['load_before']:.1f} before, {machine['load_after']:.1f} after",
    ]
    if machine["cpu_share"] < QUIET:
        out.append(f"NOT a comparison to quote: other programs ran (threads that measured had {machine['cpu_share']:.0%} of "
                   "their cores); PyTorch's threads wait for each other at every product and suffer most from that")
    out += [
        "",
        "| model | T | active | ramp us (p10-p90) | PyTorch us (p10-p90) | PyTorch / ramp | ramp GB/s | of read "
        "| PyTorch GB/s | of read | ramp GFLOP/s | PyTorch GFLOP/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for p in report["points"]:
        cells = [p["model"], str(p["tokens"]), f"{p['active']:.1f}"]
        cells += [f"{p[s]['us']:.0f} ({p[s]['p10_us']:.0f}-{p[s]['p90_us']:.0f})" for s in ("ramp", "torch")]
        cells.append(f"{p['ratio']:.2f}" + ("" if p["weights_beyond_cache"] else " *"))
        for side in ("ramp", "torch"):
            cells += [f"{p[side]['gbps']:.1f}", f"{p[side]['read_share']:.0%}"]
        cells += [f"{p[s]['gflops']:.0f}" for s in ("ramp", "torch")]
        out.append("| " + " | ".join(cells) + " |")
    if not all(p["weights_beyond_cache"] for p in report["points"]):
        out.append("* the active weights of all layers fit the last-level cache")
    c = report["check"]
    out += ["", "one small block against fp64, relative error: ramp "
            f"{c['ramp_error']:.1e}, PyTorch {c['torch_error']:.1e}; from each other {c['difference']:.1e}: "
            + ("ok" if c["ok"] else "FAILED")]
    return "\n".join(out)


def compare(options):
    info = ramp(options, "info")
    measured = info["measured"]
    options.threads = options.threads or info["cpu"]["cores"]
    load = os.getloadavg()[0]
    if measured["cpu_share"] < QUIET:
        say(f"other programs run here (the threads that measured had {measured['cpu_share']:.0%} of their cores): "
            "these figures will not be those of the machine")
    report = {"threads": options.threads, "rounds": options.rounds, "seconds": options.seconds, "seed": options.seed,
              "huge_pages": options.huge_pages, "points": []}
    with tempfile.TemporaryDirectory() as directory:
        report["check"] = check_numbers(options, directory)
        report["torch"] = onednn_facts(options, MODELS[options.models[0]])
        read = [measured["read_gbps"]]
        for name in options.models:
            points, seen = compare_model(options, name, info, directory)
            report["points"] += points
            read += seen
    after = ramp(options, "info")["measured"]
    best = lambda key: None if measured[key] is None else max(measured[key], after[key])
    report["read_gbps"] = max(read + [after["read_gbps"]])
    for p in report["points"]:
        for side in ("ramp", "torch"):
            p[side]["read_share"] = p[side]["gbps"] / report["read_gbps"]
    report["machine"] = {
        "cpu": info["cpu"]["model"],
        "cores": info["cpu"]["cores"],
        "last_level_cache_bytes": last_level_cache(info),
        "peaks": {"dot products": best("bf16_dot_gflops"), "AMX tiles": best("bf16_amx_gflops")},
        "cpu_share": min(measured["cpu_share"], after["cpu_share"]),
        "load_before": load,
        "load_after": os.getloadavg()[0],
    }
    print(json.dumps(report, indent=2) if options.json else table(report))
    return 0 if report["check"]["ok"] else 1


def main():
    if len(sys.argv) == 4 and sys.argv[1] == "--side":
        {"time": worker, "facts": facts, "small": small_block}[sys.argv[2]](json.loads(sys.argv[3]))
        return 0
    numbers = lambda text: [int(t) for t in text.split(",")]
    names = lambda text: text.split(",")
    p = argparse.ArgumentParser(prog="compare_pytorch", description=__doc__.split("\n\n")[0])
    p.add_argument("--ramp", default="build/bin/ramp", help="the ramp command (default: %(default)s)")
    p.add_argument("--models", type=names, default=list(MODELS), help="comma-separated: " + ", ".join(MODELS))
    p.add_argument("--tokens", type=numbers, default=[1, 8, 64, 512], help="comma-separated (default: 1,8,64,512)")
    p.add_argument("--threads", type=int, default=0, help="of both sides (default: one per available core)")
    p.add_argument("--rounds", type=int, default=3, help="both sides once per round, in turn (default: %(default)s)")
    p.add_argument("--seconds", type=float, default=1.5, help="per point and round (default: %(default)s)")
    p.add_argument("--layers", type=int, default=0,
                   help="layers with distinct weights (default: until one token's experts are twice the last-level cache, "
                   "as far as memory allows)")
    p.add_argument("--seed", type=int, default=0, help="of the routing (default: %(default)s)")
    p.add_argument("--no-huge-pages", dest="huge_pages", action="store_false",
                   help="leave PyTorch's allocator as it is, without huge pages")
    p.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = p.parse_args()
    unknown = [n for n in options.models if n not in MODELS]
    if unknown:
        p.error(f"unknown model {unknown[0]!r}; known: {', '.join(MODELS)}")
    return compare(options)


if __name__ == "__main__":
    sys.exit(main())
