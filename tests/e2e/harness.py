"""A coordinator with its stages, and the demo, for tests."""

import atexit
import contextlib
import importlib
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile

from processes import BIN, BUILD, PATIENCE, SANITIZER, SOURCE, Process, run, wait_until  # noqa: F401

MODEL = pathlib.Path(os.environ.get("STAGECOACH_TEST_MODEL",
                                    SOURCE / "deploy" / "demo-model" / "checkpoint"))
PROMPT = "Question: What is 27 plus 45? Answer:"


def _make_stubs():
    """Generates Python stubs from proto/ into a temporary folder and puts it on the path."""
    from grpc_tools import protoc

    folder = tempfile.mkdtemp(prefix="stagecoach-stubs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    names = ["inference", "admin", "control"]
    status = protoc.main(
        ["protoc", f"-I{SOURCE / 'proto'}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
        + [f"stagecoach/v1/{name}.proto" for name in names])
    if status != 0:
        raise RuntimeError("protoc refused the messages of proto/")
    sys.path.insert(0, folder)


_make_stubs()
import grpc  # noqa: E402

inference_pb2 = importlib.import_module("stagecoach.v1.inference_pb2")
inference_pb2_grpc = importlib.import_module("stagecoach.v1.inference_pb2_grpc")
admin_pb2 = importlib.import_module("stagecoach.v1.admin_pb2")
control_pb2_grpc = importlib.import_module("stagecoach.v1.control_pb2_grpc")
admin_pb2_grpc = importlib.import_module("stagecoach.v1.admin_pb2_grpc")


def compute_cores(pid):
    """Where each compute thread of a stage may run, such as ["0", "1"] or ["0-1", "0-1"]."""
    cores = []
    for task in sorted(pathlib.Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):  # the thread has ended
            if (task / "comm").read_text().strip() == "compute":
                status = (task / "status").read_text()
                cores.append(re.search(r"Cpus_allowed_list:\s*(\S+)", status).group(1))
    return cores


class Completion:
    """What a Generate stream gave, put together."""

    def __init__(self, messages):
        self.messages = list(messages)
        self.text = "".join(m.text for m in self.messages)
        self.token_ids = [i for m in self.messages for i in m.token_ids]
        self.last = self.messages[-1]


def insecure_channel(address):
    return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])


class Pipeline:
    """A coordinator and its stages. Use as a context manager: on leaving, all must end cleanly."""

    def __init__(self, stages=2, wanted=None, model=MODEL, coordinator=(), stage=(), wait=True,
                 channel=insecure_channel):
        """`stages` are started; the coordinator plans for `wanted` of them, all by default.

        channel(address) makes the channel of the stubs.
        """
        self.stage_options = stage
        self.stages = []
        self.is_killed = set()
        self.folder = tempfile.TemporaryDirectory(prefix="stagecoach-e2e-")
        port_file = pathlib.Path(self.folder.name, "port")
        self.coordinator = Process(
            "coordinator", BIN / "stagecoach-coordinator", "--model", model, "--listen",
            "127.0.0.1:0", "--port-file", port_file, "--stages", wanted or stages,
            "--drain-notice-seconds", 0, *coordinator)
        try:
            wait_until(lambda: port_file.exists() or not self.coordinator.is_running(), 10,
                       "the coordinator listens")
            if not port_file.exists():
                raise AssertionError("the coordinator ended")
            self.address = f"127.0.0.1:{port_file.read_text().strip()}"
            self.channel = channel(self.address)
            self.inference = inference_pb2_grpc.InferenceStub(self.channel)
            self.admin = admin_pb2_grpc.AdminStub(self.channel)
            for index in range(stages):
                self.add_stage(f"stage-{index}")
            if wait:
                self.wait_running()
        except BaseException:
            self.print_logs()
            self.kill_all()
            raise

    def add_stage(self, name, *options):
        stage = Process(name, BIN / "stagecoach-stage", "--coordinator", self.address, "--name",
                        name, "--threads", 1, *self.stage_options, *options)
        self.stages.append(stage)
        return stage

    def pipeline(self):
        return self.admin.GetPipeline(admin_pb2.GetPipelineRequest(), timeout=10 * PATIENCE)

    def is_idle(self):
        """Nothing is computed or kept for any request."""
        pipeline = self.pipeline()
        return (pipeline.request_running_count == 0 and pipeline.request_waiting_count == 0 and
                pipeline.kv_block_used_count == 0 and pipeline.microbatch_in_flight_count == 0)

    def check_running(self):
        """Every process must still be there; once one is gone, further tests say only that."""
        gone = [p.name for p in self.processes() if not p.is_running()]
        if gone:
            raise AssertionError(f"ended unasked: {', '.join(gone)}")

    def wait_running(self, seconds=20):
        wait_until(lambda: self.pipeline().state == admin_pb2.PIPELINE_STATE_RUNNING, seconds,
                   "the pipeline runs")

    def stream(self, prompt=PROMPT, max_tokens=32, timeout=60, **fields):
        """The Generate call. `prompt` is text or a list of token ids; fields are the message's."""
        fields.setdefault("stop", {"max_tokens": max_tokens})
        if isinstance(prompt, str):
            fields["text"] = prompt
        else:
            fields["token_ids"] = {"ids": prompt}
        return self.inference.Generate(inference_pb2.GenerateRequest(**fields),
                                       timeout=timeout * PATIENCE)

    def generate(self, *arguments, **fields):
        return Completion(self.stream(*arguments, **fields))

    def tokenize(self, text):
        request = inference_pb2.TokenizeRequest(text=text)
        return list(self.inference.Tokenize(request, timeout=10 * PATIENCE).token_ids)

    def kill_stage(self, stage):
        stage.kill()
        self.stages.remove(stage)

    def processes(self):
        return [*self.stages, self.coordinator]

    def print_logs(self):
        for process in self.processes():
            lines = process.log().splitlines()[-40:]
            print(f"--- log of {process.name} (exit status {process.popen.poll()})",
                  *lines, sep="\n", file=sys.stderr)

    def kill_all(self):
        for process in self.processes():
            if process.is_running():
                process.kill()

    def stop(self):
        """Ends all; returns what did not end with status 0, as text."""
        self.channel.close()
        bad = []
        for process in self.processes():
            status = process.stop()
            if status != 0:
                bad.append(f"{process.name} ended with status {status}")
        return bad

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.close(has_failed=kind is not None)

    def close(self, has_failed=False):
        """Everything ends; raises and shows the logs when something did not end cleanly."""
        try:
            bad = self.stop()
        except AssertionError as error:
            bad = [str(error)]
        finally:
            self.kill_all()
            self.folder.cleanup()
        if bad or has_failed:
            self.print_logs()
        if bad and not has_failed:
            raise AssertionError("; ".join(bad))


@contextlib.contextmanager
def expect_code(test, code, *words):
    """The block must fail with this gRPC code and a sentence that has all the words."""
    with test.assertRaises(grpc.RpcError) as caught:
        yield
    error = caught.exception
    test.assertEqual(error.code(), code, error.details())
    for word in words:
        test.assertIn(word, error.details())


def demo(*options, timeout=120):
    """deploy/demo --json to its end; the JSON of its one line."""
    result = run(SOURCE / "deploy" / "demo", "--json", *options, timeout=timeout)
    if result.returncode != 0:
        raise AssertionError(f"deploy/demo ended with {result.returncode}:\n{result.stderr}")
    lines = result.stdout.splitlines()
    if len(lines) != 1:
        raise AssertionError(f"deploy/demo --json wrote {len(lines)} lines:\n{result.stdout}")
    return json.loads(lines[0])
