"""The demo command as a new user runs it."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import unittest

import grpc

from checkpoint import copy_model, truncate, weight_files
from harness import (BIN, MODEL, PROMPT, SOURCE, Completion, Process, compute_cores, demo, inference_pb2,
                     inference_pb2_grpc, run, wait_until)

DEMO = SOURCE / "deploy" / "demo"


def services_of_the_demo():
    """Process ids of services whose port file is in the demo's folder, and of their stages."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "stagecoach-coordinator" in command and str(SOURCE / "build" / "demo") in command:
            found.append(int(path.parent.name))
    return found


class DemoTest(unittest.TestCase):
    def test_any_number_of_stages_gives_the_same_tokens(self):
        answers = {stages: demo("--stages", stages) for stages in (1, 2, 4, 8)}
        for stages, answer in answers.items():
            self.assertEqual(answer["token_ids"], answers[1]["token_ids"], stages)
            self.assertEqual(answer["text"], answers[1]["text"])
            ranges = [(s["layer_first"], s["layer_count"]) for s in answer["stages"]]
            self.assertEqual(len(ranges), stages)
            self.assertEqual(ranges[0][0], 0)
            for (first, count), (next_first, _) in zip(ranges, ranges[1:]):
                self.assertEqual(first + count, next_first)
        self.assertIn("72", answers[1]["text"])
        self.assertEqual(services_of_the_demo(), [])

    def test_text_goes_to_standard_output_and_the_rest_to_standard_error(self):
        result = run(DEMO, "--prompt", PROMPT, timeout=120)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("72", result.stdout)
        self.assertRegex(result.stderr, r"stage 0: layers 0-3")
        self.assertRegex(result.stderr, r"stage 1: layers 4-7")
        self.assertRegex(result.stderr, r"[0-9.]+ tokens/s")

    def test_model_of_the_user_is_served(self):
        with tempfile.TemporaryDirectory() as folder:
            model = copy_model(folder)
            first, second = (demo("--stages", n, "--model", model, "--max-tokens=20", "--prompt",
                                  "The") for n in (1, 3))
        self.assertEqual(first["token_ids"], second["token_ids"])
        self.assertLessEqual(len(first["token_ids"]), 20)

    def test_config_alone_is_enough_for_dummy_weights(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(MODEL / "config.json", folder)
            options = ("--load-format", "dummy", "--model", folder, "--max-tokens", "12")
            first, second = (demo("--stages", n, *options) for n in (1, 2))
            other = demo("--token-ids", "4,5", *options)
        self.assertEqual((first["prompt_tokens"], other["prompt_tokens"]), (3, 2))
        self.assertGreater(len(first["token_ids"]), 0)
        self.assertEqual(first["token_ids"], second["token_ids"])
        self.assertEqual(first["text"], "")

    def test_keep_serves_until_interrupted(self):
        popen = subprocess.Popen([DEMO, "--keep", "--json"], stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            answer = json.loads(popen.stdout.readline())
            address = None
            for line in popen.stderr:
                match = re.search(r"coordinator: (127\.0\.0\.1:\d+)", line)
                if match:
                    address = match.group(1)
                    break
            channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
            stub = inference_pb2_grpc.InferenceStub(channel)
            request = inference_pb2.GenerateRequest(text=PROMPT, stop={"max_tokens": 64})
            completion = Completion(stub.Generate(request, timeout=30))
            self.assertEqual(completion.token_ids, answer["token_ids"])
            self.assertGreater(len(completion.messages), 1)
            channel.close()
            self.assertEqual(len(services_of_the_demo()), 1)
            os.killpg(popen.pid, signal.SIGINT)
            self.assertEqual(popen.wait(20), 0)
            self.assertEqual(services_of_the_demo(), [])
        finally:
            if popen.poll() is None:
                os.killpg(popen.pid, signal.SIGKILL)
                popen.wait()
            popen.stdout.close()
            popen.stderr.close()

    def test_stages_have_cores_of_their_own(self):
        def pinned_to(*options):
            stage = Process("stage", BIN / "stagecoach-stage", "--coordinator", "127.0.0.1:1",
                            *options)
            try:
                wait_until(lambda: "computing with" in stage.log(), 10, "the stage says its cores")
                match = re.search(r"pinned to cores (\S+),", stage.log())
                return match and match.group(1)
            finally:
                stage.kill()

        lists = [pinned_to("--cores", f"{number}/2") for number in (1, 2)]
        if None in lists:
            self.skipTest("this machine has no core for each of two stages")
        popen = subprocess.Popen([DEMO, "--keep", "--json"], stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL, text=True, start_new_session=True)
        try:
            popen.stdout.readline()
            children = pathlib.Path(f"/proc/{popen.pid}/task/{popen.pid}/children").read_text()
            cores = [core for pid in children.split() for core in compute_cores(pid)]
            self.assertGreaterEqual(len(cores), 2)
            self.assertEqual(len(set(cores)), len(cores), cores)
            self.assertTrue({text for text in lists if text.isdigit()} <= set(cores), cores)
        finally:
            os.killpg(popen.pid, signal.SIGINT)
            popen.wait(20)
            popen.stdout.close()

    def test_threads_are_those_asked_for(self):
        result = run(DEMO, "--stages", "1", "--threads", "3", timeout=120)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("3 threads", result.stderr)

    def test_interrupt_stops_everything(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            popen = subprocess.Popen([DEMO, "--keep"], stdout=subprocess.PIPE,
                                     stderr=subprocess.DEVNULL, text=True, start_new_session=True)
            try:
                wait_until(services_of_the_demo, 60, "the demo has started its services")
                popen.send_signal(number)
                self.assertIn(popen.wait(20), (0, 130, 143))
                self.assertEqual(services_of_the_demo(), [])
            finally:
                if popen.poll() is None:
                    os.killpg(popen.pid, signal.SIGKILL)
                    popen.wait()
                popen.stdout.close()

    def test_broken_model_is_named_and_nothing_stays(self):
        with tempfile.TemporaryDirectory() as folder:
            model = copy_model(folder)
            for path in weight_files(model):
                truncate(path)
            result = run(DEMO, "--model", model, timeout=120)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(".safetensors", result.stderr)
        self.assertEqual(services_of_the_demo(), [])

    def test_more_stages_than_layers_is_refused(self):
        result = run(DEMO, "--stages", "9", timeout=120)
        self.assertNotEqual(result.returncode, 0)
        self.assertRegex(result.stderr, r"9 stages|stages.*9")

    def test_wrong_options_end_with_status_2(self):
        for arguments in [("--stages", "0"), ("--stages", "x"), ("--stages",), ("--what",),
                          ("--threads", "0"), ("--threads", "many"), ("--max-tokens", "-1"),
                          ("--load-format", "x"), ("--weights", "x"), ("--model", "/nowhere")]:
            result = run(DEMO, *arguments)
            self.assertEqual(result.returncode, 2, arguments)
            self.assertIn(arguments[0], result.stderr)


if __name__ == "__main__":
    unittest.main()
