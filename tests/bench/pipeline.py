"""Measures two stages of one core each under steady decode: see --help."""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "tests" / "e2e"))
from harness import BUILD, Pipeline  # noqa: E402

LAYERS = 22
STAGES = 2
PROMPT_TOKENS = 16
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32,
    "num_key_value_heads": 4, "num_hidden_layers": LAYERS, "vocab_size": 32000,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "eos_token_id": 2,
}
SCHEDULES = {
    "direct": ("--feedback", "direct"),
    "coordinator": ("--feedback", "coordinator"),
    "naive": ("--schedule", "naive"),
}


class Load:
    """Requests that all decode at once; each notes when its tokens came."""

    def __init__(self, pipeline, count, tokens):
        self.times = [[] for _ in range(count)]
        self.errors = []
        self.threads = [threading.Thread(target=self._ask, args=(pipeline, i, tokens))
                        for i in range(count)]

    def _ask(self, pipeline, index, tokens):
        prompt = [100 + (index * 37 + i * 11) % 30000 for i in range(PROMPT_TOKENS)]
        stop = {"max_tokens": tokens, "ignore_eos": True}
        try:
            for message in pipeline.stream(prompt, stop=stop, timeout=300):
                self.times[index].extend([time.monotonic()] * len(message.token_ids))
        except Exception as error:  # noqa: BLE001: told by run()
            self.errors.append(error)

    def run(self):
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def rate(self):
        """Tokens/s while all of them decode."""
        begin = max(times[2] for times in self.times)
        end = min(times[-1] for times in self.times)
        count = sum(begin < t <= end for times in self.times for t in times)
        return count / (end - begin)


def measure(model, schedule, options):
    """Tokens/s, rows of a decode microbatch, and what the pipeline says of itself."""
    coordinator = ("--load-format", "dummy", "--weights", options.weights, "--activation-dtype",
                   options.activations, "--context", 2048, *SCHEDULES[schedule])
    with Pipeline(stages=0, wanted=STAGES, model=model, coordinator=coordinator,
                  wait=False) as pipeline:
        for index in range(STAGES):
            pipeline.add_stage(f"stage-{index}", "--cores", index)
        pipeline.wait_running(120)
        Load(pipeline, options.requests, 6).run()
        before = pipeline.pipeline()
        load = Load(pipeline, options.requests, options.tokens)
        load.run()
        after = pipeline.pipeline()
    tokens = after.completion_token_count - before.completion_token_count
    return {"tokens_per_s": load.rate(),
            "rows": tokens / (after.step_count - before.step_count)}


def alone(rows, options):
    """Tokens/s of the slower stage, the last one, when it computes such microbatches back to back."""
    low = int(rows)
    batches = [low] if rows == low else [low, low + 1]
    output = subprocess.run(
        [str(BUILD / "tests" / "bench" / "stage_bench"), "decode", "--layers", str(LAYERS // STAGES),
         "--batch", ",".join(map(str, batches)), "--threads", "1", "--weights", options.weights,
         "--activations", options.activations, "--context", str(PROMPT_TOKENS + options.tokens // 2),
         "--seconds", "3", "--json"], capture_output=True, text=True, check=True, timeout=300).stdout
    points = json.loads(output.splitlines()[-1])["points"]
    seconds = [batch / point["tokens_per_s"]["median"] for batch, point in zip(batches, points)]
    if len(seconds) == 1:
        return rows / seconds[0]
    return rows / (seconds[0] + (rows - low) * (seconds[1] - seconds[0]))


def run_round(model, options):
    result = {name: measure(model, name, options) for name in SCHEDULES}
    direct = result["direct"]
    direct["alone_tokens_per_s"] = alone(direct["rows"], options)
    direct["efficiency"] = direct["tokens_per_s"] / direct["alone_tokens_per_s"]
    for name in ("coordinator", "naive"):
        direct[f"to_{name}"] = direct["tokens_per_s"] / result[name]["tokens_per_s"]
    return result


def main():
    parser = argparse.ArgumentParser(
        prog="tests/bench/run pipeline",
        description="Two stages of one core each hold a model of 1.1 billion random weights; "
        "requests decode at once. Tokens/s with token feedback straight to the first stage, "
        "through the coordinator, and with the naive schedule, beside what the slower stage does "
        "alone with the same microbatches.")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48, help="of each request (default 48)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", default="checkpoint",
                        help="checkpoint, int8 or int8-weight-only (default checkpoint, bf16)")
    parser.add_argument("--activations", default="f32", help="f32 or bf16 (default f32)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory(prefix="stagecoach-bench-") as folder:
        pathlib.Path(folder, "config.json").write_text(json.dumps(CONFIG))
        for number in range(options.rounds):
            result = run_round(folder, options)
            rounds.append(result)
            direct = result["direct"]
            print(f"round {number + 1}: " + ", ".join(
                f"{name} {r['tokens_per_s']:.1f} tok/s ({r['rows']:.1f} rows)"
                for name, r in result.items()) +
                f"; slower stage alone {direct['alone_tokens_per_s']:.1f}", flush=True)
    medians = {key: statistics.median(r["direct"][key] for r in rounds)
               for key in ("efficiency", "to_coordinator", "to_naive")}
    print(f"of the slower stage alone: {100 * medians['efficiency']:.1f} %; "
          f"{medians['to_coordinator']:.2f} times feedback through the coordinator, "
          f"{medians['to_naive']:.2f} times the naive schedule")
    if options.json:
        print(json.dumps({"benchmark": "pipeline", **medians, "rounds": rounds}))


if __name__ == "__main__":
    main()
