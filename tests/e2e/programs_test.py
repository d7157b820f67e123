"""The programs on the command line: help, mistakes, bad models, and how they end."""

import json
import os
import pathlib
import re
import signal
import socket
import tempfile
import time
import unittest

from checkpoint import copy_model, edit_header, edit_json, truncate, weight_files
from harness import (BIN, MODEL, Pipeline, Process, admin_pb2, compute_cores, run, wait_until)

COORDINATOR = BIN / "stagecoach-coordinator"
STAGE = BIN / "stagecoach-stage"
CLIENT = BIN / "stagecoach"


def coordinator(*options, **kwargs):
    return run(COORDINATOR, "--listen", "127.0.0.1:0", *options, timeout=20, **kwargs)


class CommandLineTest(unittest.TestCase):
    def test_help_and_version_of_every_program(self):
        verbs = [[], ["generate"], ["status"], ["model"], ["tokenize"], ["detokenize"]]
        for command in [[COORDINATOR], [STAGE], *([CLIENT, *verb] for verb in verbs)]:
            result = run(*command, "--help")
            self.assertEqual((result.returncode, result.stderr), (0, ""), command)
            self.assertIn("--help", result.stdout)
            result = run(*command, "--version")
            self.assertEqual((result.returncode, result.stderr), (0, ""), command)
            self.assertRegex(result.stdout, r"^stagecoach.* \d+\.\d+\.\d+\n$")

    def test_mistakes_end_with_status_2_and_name_the_option(self):
        cases = [
            (COORDINATOR, [], "--model"),
            (COORDINATOR, ["--model", MODEL, "--what"], "what"),
            (COORDINATOR, ["--model"], "--model"),
            (COORDINATOR, ["--model", MODEL, "--stages", "0"], "--stages"),
            (COORDINATOR, ["--model", MODEL, "--stages", "1000"], "--stages"),
            (COORDINATOR, ["--model", MODEL, "--stages", "two"], "--stages"),
            (COORDINATOR, ["--model", MODEL, "--kv-dtype", "f64"], "--kv-dtype"),
            (COORDINATOR, ["--model", MODEL, "--activation-dtype", "f16"], "--activation-dtype"),
            (COORDINATOR, ["--model", MODEL, "--log-level", "loud"], "--log-level"),
            (COORDINATOR, ["--model", MODEL, "--load-format", "random"], "--load-format"),
            (COORDINATOR, ["--model", MODEL, "--weights", "int4"], "--weights"),
            (STAGE, ["--coordinator", "127.0.0.1:1", "--what"], "what"),
            (STAGE, ["--coordinator", "127.0.0.1:1", "--threads", "x"], "--threads"),
            (STAGE, ["--coordinator", "127.0.0.1:1", "--log-level", "loud"], "--log-level"),
            (STAGE, ["--coordinator", "127.0.0.1:1", "--cores", "0-"], "--cores is '0-'"),
            (STAGE, ["--coordinator", "127.0.0.1:1", "--cores", "1,0,1"], "core 1 is in it twice"),
            (STAGE, ["--coordinator", "127.0.0.1:1", "--cores", "0-256"], "the limit is 256"),
            (STAGE, ["--coordinator", "127.0.0.1:1", "--cores", "3/2"], "1/2 to 2/2"),
            (STAGE, ["--coordinator", "127.0.0.1:1", "--threads", 3, "--cores", "0-1"],
             "--threads is 3, but --cores is '0-1'"),
        ]
        for program, arguments, word in cases:
            result = run(program, *arguments, timeout=10)
            self.assertEqual(result.returncode, 2, (program.name, arguments))
            self.assertIn(word, result.stderr)
            self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)

    def test_unknown_kernel_is_refused(self):
        result = run(STAGE, "--coordinator", "127.0.0.1:1", "--kernel", "mmx", timeout=10)
        self.assertIn(result.returncode, (1, 2))
        self.assertIn("mmx", result.stderr)
        self.assertIn("portable", result.stderr)

    def test_core_that_is_not_allowed_is_refused(self):
        result = run(STAGE, "--coordinator", "127.0.0.1:1", "--cores", "0,8191", timeout=10)
        self.assertEqual(result.returncode, 1)
        self.assertIn("core 8191", result.stderr)
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)

    def test_layers_must_fit_the_model(self):
        for layers in ["5,4", "8,0", "x", "1,1,1,1,1,1,1,1,1"]:
            result = coordinator("--model", MODEL, "--layers", layers)
            self.assertNotEqual(result.returncode, 0)
            self.assertIn("layers", result.stderr)

    def test_port_in_use_is_said_with_the_address(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            result = run(COORDINATOR, "--model", MODEL, "--listen", address, timeout=20)
            self.assertEqual(result.returncode, 1)
            self.assertIn(address, result.stderr)
            self.assertIn("in use", result.stderr)

    def test_unusable_addresses_are_refused(self):
        for address in ["nonsense", "127.0.0.1:99999", "127.0.0.1"]:
            result = run(COORDINATOR, "--model", MODEL, "--listen", address, timeout=20)
            self.assertNotEqual(result.returncode, 0)
            self.assertIn(address, result.stderr)


class BadModelTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.model = copy_model(folder.name)

    def refuse(self, *words):
        """The coordinator must end at once, with one sentence that has the words."""
        result = coordinator("--model", self.model)
        self.assertEqual(result.returncode, 1, result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)

    def test_missing_folder(self):
        result = coordinator("--model", "/nowhere/model")
        self.assertEqual(result.returncode, 1)
        self.assertIn("/nowhere/model", result.stderr)

    def test_missing_config(self):
        (self.model / "config.json").unlink()
        self.refuse("config.json")

    def test_config_that_is_not_json(self):
        (self.model / "config.json").write_text("{ nope")
        self.refuse("config.json")

    def test_unsupported_architecture(self):
        edit_json(self.model / "config.json", architectures=["MambaForCausalLM"],
                  model_type="mamba")
        self.refuse("config.json", "amba")

    def test_absurd_sizes(self):
        for name, value in [("num_hidden_layers", 0), ("num_hidden_layers", 10**9),
                            ("hidden_size", -1), ("num_attention_heads", "four"),
                            ("num_key_value_heads", 3), ("vocab_size", 2**40)]:
            original = (self.model / "config.json").read_text()
            edit_json(self.model / "config.json", **{name: value})
            with self.subTest(name=name, value=value):
                self.refuse("config.json", name)
            (self.model / "config.json").write_text(original)

    def test_missing_tokenizer(self):
        (self.model / "tokenizer.json").unlink()
        self.refuse("tokenizer.json")

    def test_truncated_tokenizer(self):
        truncate(self.model / "tokenizer.json")
        self.refuse("tokenizer.json")


class BadWeightsTest(unittest.TestCase):
    """Each damage is found by the stage that owns it, shown by the coordinator, and not fatal."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.model = copy_model(folder.name)
        self.weights = weight_files(self.model)[0]

    def fail_with(self, *words):
        with Pipeline(stages=0, wanted=1, wait=False) as pipeline:
            stage = pipeline.add_stage("broken", "--model", self.model)

            def error():
                shown = [s for s in pipeline.pipeline().stages if s.name == "broken"]
                return shown and shown[0].error

            text = wait_until(error, 10, "the failure is shown")
            for word in words:
                self.assertIn(word, text)
            self.assertTrue(pipeline.coordinator.is_running())
            self.assertIn(words[0], stage.log())
            self.assertNotEqual(pipeline.pipeline().state, admin_pb2.PIPELINE_STATE_RUNNING)

    def test_missing_weights(self):
        self.weights.unlink()
        self.fail_with(".safetensors")

    def test_truncated_weights(self):
        truncate(self.weights)
        self.fail_with(self.weights.name)

    def test_weights_without_a_header(self):
        self.weights.write_bytes(b"\xff" * 64)
        self.fail_with(self.weights.name)

    def test_empty_weights(self):
        self.weights.write_bytes(b"")
        self.fail_with(self.weights.name)

    def test_missing_tensor(self):
        name = "model.layers.3.mlp.up_proj.weight"
        edit_header(self.weights, lambda header: header.update(other=header.pop(name)))
        self.fail_with(name)

    def test_wrong_shape(self):
        name = "model.layers.3.mlp.up_proj.weight"
        edit_header(self.weights, lambda header: header[name]["shape"].reverse())
        self.fail_with(name, "shape")

    def test_unsupported_dtype(self):
        name = "model.norm.weight"
        edit_header(self.weights, lambda header: header[name].update(dtype="I64"))
        self.fail_with(name)

    def test_offsets_beyond_the_file(self):
        name = "model.norm.weight"

        def move(header):
            header[name]["data_offsets"] = [2**60, 2**60 + 256]

        edit_header(self.weights, move)
        self.fail_with(self.weights.name)

    def test_config_that_differs_from_the_coordinators(self):
        path = self.model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
        self.fail_with("config.json")


class CoresTest(unittest.TestCase):
    def stage(self, *options):
        process = Process("stage", STAGE, "--coordinator", "127.0.0.1:1", *options)
        self.addCleanup(lambda: process.is_running() and process.kill())
        return process

    def cores_of(self, process, count):
        """Where the compute threads may run, once there are `count` that stay where they are."""
        def settled():
            cores = [compute_cores(process.pid) for _ in range(2)]
            return len(cores[0]) == count and cores[0] == cores[1] and cores[0]

        wait_until(lambda: "computing with" in process.log(), 10, "the stage says how it computes")
        time.sleep(0.1)
        return wait_until(settled, 10, f"{count} compute threads")

    def test_threads_are_pinned_one_to_a_core(self):
        allowed = sorted(os.sched_getaffinity(0))[:3]
        process = self.stage("--cores", ",".join(map(str, allowed)))
        self.assertEqual(sorted(map(int, self.cores_of(process, len(allowed)))), allowed)
        self.assertIn(f"{len(allowed)} thread", process.log())
        process = self.stage("--cores", allowed[-1], "--threads", 1)
        self.assertEqual(self.cores_of(process, 1), [str(allowed[-1])])
        self.assertIn(f"pinned to cores {allowed[-1]},", process.log())

    def test_threads_are_not_pinned_unasked(self):
        process = self.stage("--threads", 2)
        cores = self.cores_of(process, 2)
        here = re.search(r"Cpus_allowed_list:\s*(\S+)",
                         pathlib.Path("/proc/self/status").read_text()).group(1)
        self.assertEqual(cores, [here, here])
        self.assertIn("2 threads, not pinned", process.log())


class EndTest(unittest.TestCase):
    def test_coordinator_without_stages_ends_cleanly(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with tempfile.TemporaryDirectory() as folder:
                port_file = pathlib.Path(folder, "port")
                process = Process("coordinator", COORDINATOR, "--model", MODEL, "--listen",
                                  "127.0.0.1:0", "--port-file", port_file)
                self.addCleanup(lambda p=process: p.is_running() and p.kill())
                wait_until(port_file.exists, 10, "it listens")
                process.signal(number)
                self.assertEqual(process.wait(10), 0, process.log())

    def test_stage_without_a_coordinator_retries_and_ends_cleanly(self):
        process = Process("stage", STAGE, "--coordinator", "127.0.0.1:1")
        self.addCleanup(lambda: process.is_running() and process.kill())
        wait_until(lambda: "127.0.0.1:1" in process.log(), 10, "it says that nobody answers")
        self.assertTrue(process.is_running())
        self.assertEqual(process.stop(), 0, process.log())

    def test_running_services_end_cleanly_and_soon(self):
        with Pipeline(stages=2) as pipeline:
            pipeline.generate()
            begin = time.monotonic()
            for process in pipeline.processes():
                self.assertEqual(process.stop(), 0, process.log())
            self.assertLess(time.monotonic() - begin, 10)

    def test_coordinator_lets_running_requests_finish(self):
        with Pipeline(stages=2) as pipeline:
            stop = {"max_tokens": 200, "ignore_eos": True}
            expected = pipeline.generate("The", stop=stop).token_ids
            stream = pipeline.stream("The", stop=stop)
            messages = [next(stream)]
            pipeline.coordinator.signal(signal.SIGTERM)
            messages += stream
            self.assertEqual([i for m in messages for i in m.token_ids], expected)
            self.assertEqual(pipeline.coordinator.wait(20), 0)


if __name__ == "__main__":
    unittest.main()
