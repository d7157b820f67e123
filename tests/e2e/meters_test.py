"""What operators see of a pipeline that works: meters, and its microbatches one by one."""

import concurrent.futures
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

from harness import BIN, PATIENCE, Pipeline, admin_pb2, run, wait_until

REQUEST_COUNT = 8
TOKEN_COUNT = 40


def run_requests(pipeline, count=REQUEST_COUNT, tokens=TOKEN_COUNT):
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: pipeline.generate(max_tokens=tokens,
                                                         stop={"max_tokens": tokens,
                                                               "ignore_eos": True}),
                             range(count)))


def all_steps(pipeline, cursor):
    """Every microbatch after the cursor that has been reported."""
    steps = []
    while True:
        answer = pipeline.admin.GetSteps(admin_pb2.GetStepsRequest(cursor=cursor),
                                         timeout=10 * PATIENCE)
        cursor = answer.cursor
        steps += answer.steps
        if not answer.steps:
            return steps


def scrape(pipeline, path="/metrics"):
    """The text, without a proxy in between."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    address = pipeline.pipeline().metrics_address
    with opener.open(f"http://{address}{path}", timeout=10 * PATIENCE) as answer:
        return answer.read().decode()


LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"'
SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(" + LABEL + "(?:," + LABEL + r")*)\})? (\S+)")
SUFFIXES = {"histogram": ["_bucket", "_sum", "_count"], "summary": ["_sum", "_count", ""]}


def parse_metrics(text):
    """{name: (type, {(sample name, labels): value})}, or an error where the text breaks the format:
    every family has HELP, then TYPE, then all of its samples; no series appears twice."""
    families, name, helped = {}, None, None
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped, words = line.split(" ", 3)[2:]
            assert words and helped not in families, line
        elif line.startswith("# TYPE "):
            name, kind = line.split(" ")[2:]
            assert name == helped and kind in ("counter", "gauge", "histogram", "summary"), line
            families[name] = (kind, {})
        else:
            match = SAMPLE.fullmatch(line)
            assert match, f"not a sample: {line}"
            kind, samples = families[name]
            assert match[1] in [name + suffix for suffix in SUFFIXES.get(kind, [""])], line
            labels = tuple(sorted((found[0], found[1])
                                  for found in re.findall(LABEL, match[2] or "")))
            assert (match[1], labels) not in samples, f"twice: {line}"
            samples[match[1], labels] = float(match[match.lastindex])
    return families


def check_conventions(families):
    """Names and units as Prometheus asks for: base units, _total for counters alone."""
    for name, (kind, samples) in families.items():
        assert samples, f"{name} has no samples"
        if name.startswith("vllm:"):
            continue
        assert name.startswith("stagecoach_"), name
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(ms|milliseconds|ns|nanoseconds|us|percent|kb|mb)(_|$)", name), name
        if kind == "histogram":
            assert name.endswith("_seconds"), name
            check_histogram(name, samples)
        if kind in ("counter", "histogram", "summary"):
            assert all(value >= 0 for value in samples.values()), name


def check_histogram(name, samples):
    buckets = [(float(dict(labels)["le"]), value) for (sample, labels), value in samples.items()
               if sample == name + "_bucket"]
    assert buckets == sorted(buckets), name
    assert buckets[-1] == (float("inf"), samples[name + "_count", ()]), name
    counts = [value for _, value in buckets]
    assert counts == sorted(counts), name


class ParserTest(unittest.TestCase):
    """The parser must refuse what is wrong, or the test below says nothing."""

    def test_it_reads_names_labels_and_values(self):
        families = parse_metrics('# HELP a_total h h\n# TYPE a_total counter\n'
                                 'a_total{x="1",y="b\\"c"} 2.5\na_total 1e-09\n')
        self.assertEqual(families["a_total"][1][("a_total", (("x", "1"), ("y", 'b\\"c')))], 2.5)

    def test_it_refuses_what_breaks_the_format(self):
        head = "# HELP a h\n# TYPE a gauge\n"
        for text in ["a 1\n", "# TYPE a gauge\na 1\n", head + "b 1\n", head + "a 1\na 1\n",
                     head + "a\n", head + 'a{x="1} 2\n', head + "a 1", head + "a x\n",
                     head + "a 1\n" + head + "a{x=\"1\"} 1\n"]:
            with self.assertRaises((AssertionError, KeyError, ValueError), msg=text):
                parse_metrics(text)

    def test_it_refuses_what_breaks_the_conventions(self):
        for name, kind in [("stagecoach_x", "counter"), ("stagecoach_x_total", "gauge"),
                           ("stagecoach_wait_ms", "gauge"), ("other_x", "gauge")]:
            with self.assertRaises(AssertionError, msg=name):
                check_conventions({name: (kind, {(name, ()): 1.0})})


def slices_of(events):
    """{track: slices in the order of time}; those of one track must not overlap."""
    tracks = {}
    for event in events:
        if event["ph"] == "X":
            tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    for slices in tracks.values():
        slices.sort(key=lambda event: event["ts"])
        for before, after in zip(slices, slices[1:]):
            # Times are rounded to nanoseconds.
            assert before["ts"] + before["dur"] <= after["ts"] + 0.002, (before, after)
    return tracks


def check_trace(test, trace, stage_count):
    """Everything that a reader of the Chrome trace format relies on. Returns the compute slices of
    each stage."""
    events = trace["traceEvents"]
    for event in events:
        test.assertIn(event["ph"], "MXbestf")
        test.assertIsInstance(event["pid"], int)
        test.assertIsInstance(event["tid"], int)
        test.assertIsInstance(event["name"], str)
        if event["ph"] != "M":
            test.assertGreaterEqual(event["ts"], 0)
        if event["ph"] == "X":
            test.assertGreaterEqual(event["dur"], 0)
    names = {(event["pid"], event["tid"]): event["args"]["name"] for event in events
             if event["name"] == "thread_name"}
    tracks = slices_of(events)
    test.assertEqual(len(names), stage_count)
    test.assertLessEqual(set(tracks), set(names))
    compute = []
    for index, track in enumerate(sorted(names)):
        test.assertTrue(names[track].startswith(f"stage {index} ("), names[track])
        compute.append([event for event in tracks.get(track, []) if event["cat"] == "compute"])
        idle = {event["name"] for event in tracks.get(track, []) if event["cat"] == "idle"}
        test.assertLessEqual(idle, {"starved", "wire", "imbalance"})
    check_wires(test, events, compute)
    return compute


def check_wires(test, events, compute):
    """A frame's way begins where a stage ends the step, and ends before the next begins it."""
    begins = {event["id"]: event for event in events if event["ph"] == "b"}
    ends = {event["id"]: event for event in events if event["ph"] == "e"}
    test.assertEqual(set(begins), set(ends))
    wires = {(event["name"], event["args"]["step"]): (event["ts"], ends[key]["ts"])
             for key, event in begins.items()}
    test.assertEqual(len(wires), len(begins))
    for index, slices in enumerate(compute):
        for event in slices:
            step = event["args"]["step"]
            begin, end = wires[f"wire to stage {index}", step]
            test.assertLessEqual(begin, end)
            test.assertLessEqual(end, event["ts"] + 0.002)
            after = "the coordinator" if index + 1 == len(compute) else f"stage {index + 1}"
            test.assertAlmostEqual(wires[f"wire to {after}", step][0], event["ts"] + event["dur"],
                                   delta=0.002)


class TraceTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pipeline = Pipeline(stages=3)
        cls.addClassCleanup(cls.pipeline.close)

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="stagecoach-trace-")
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name, "out.json")

    def start(self, *options):
        """The command, when it records already."""
        popen = subprocess.Popen([BIN / "stagecoach", "trace", "--coordinator",
                                  self.pipeline.address, *options, self.path],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: popen.poll() is None and (popen.kill(), popen.wait()))
        wait_until(lambda: self.path.exists() or popen.poll() is not None, 10, "the file is there")
        time.sleep(0.2 * PATIENCE)
        return popen

    def test_a_trace_has_one_slice_for_each_microbatch_and_stage(self):
        before = self.pipeline.pipeline().step_count
        popen = self.start("--seconds", str(1.5 * PATIENCE), "--json")
        run_requests(self.pipeline)
        output, errors = popen.communicate(timeout=30 * PATIENCE)
        self.assertEqual(popen.returncode, 0, errors)
        count = self.pipeline.pipeline().step_count - before
        summary = json.loads(output)
        self.assertEqual(summary["microbatches"], count)
        self.assertEqual(summary["lost"], 0)
        compute = check_trace(self, json.loads(self.path.read_text()), 3)
        for slices in compute:
            self.assertEqual(len(slices), count)
            steps = [event["args"]["step"] for event in slices]
            self.assertEqual(steps, sorted(steps))
            self.assertTrue(all(event["args"]["rows"] >= 1 for event in slices))

    def test_ctrl_c_ends_a_trace_early_and_keeps_it(self):
        popen = self.start("--seconds", "60")
        self.pipeline.generate(max_tokens=5)
        popen.send_signal(signal.SIGINT)
        output, errors = popen.communicate(timeout=30 * PATIENCE)
        self.assertEqual(popen.returncode, 0, errors)
        self.assertRegex(output, r"out\.json: \d+ microbatches of ")
        compute = check_trace(self, json.loads(self.path.read_text()), 3)
        self.assertGreaterEqual(len(compute[0]), 5)

    def test_a_trace_of_a_quiet_pipeline_is_empty_and_valid(self):
        popen = self.start("--seconds", "0.1")
        _, errors = popen.communicate(timeout=30 * PATIENCE)
        self.assertEqual(popen.returncode, 0, errors)
        compute = check_trace(self, json.loads(self.path.read_text()), 3)
        self.assertEqual(compute, [[], [], []])

    def test_mistakes_are_named(self):
        result = run(BIN / "stagecoach", "trace")
        self.assertEqual(result.returncode, 2)
        self.assertIn("FILE is missing", result.stderr)
        result = run(BIN / "stagecoach", "trace", "--coordinator", self.pipeline.address,
                     "/nonexistent/out.json")
        self.assertEqual(result.returncode, 1)
        self.assertIn("/nonexistent/out.json", result.stderr)


class StatusTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pipeline = Pipeline(stages=2)
        cls.addClassCleanup(cls.pipeline.close)
        run_requests(cls.pipeline)
        wait_until(lambda: cls.pipeline.pipeline().microbatch_count, 5, "the stages have reported")

    def command(self, *options):
        return [BIN / "stagecoach", "status", "--coordinator", self.pipeline.address, *options]

    def test_it_shows_where_the_time_goes(self):
        result = run(*self.command())
        self.assertEqual(result.returncode, 0, result.stderr)
        for words in (r"model checkpoint: running", r"last \d+ s: [\d.]+ tokens/s, ",
                      r"bubble [\d.]+ %, filling and draining alone [\d.]+ %",
                      r"first token +8 +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+",
                      r"next token +312 ", r"\n0  +#* +[\d.]+ %  +[\d.]+ %  +[\d.]+ %"):
            self.assertRegex(result.stdout, words)
        shares = re.findall(r"^[01]  +#* +([\d.]+) %  +([\d.]+) %  +([\d.]+) %  +([\d.]+) %",
                            result.stdout, re.MULTILINE)
        self.assertEqual(len(shares), 2)
        for share in shares:
            self.assertAlmostEqual(sum(map(float, share)), 100, delta=0.3)

    def watch(self, *options, **kwargs):
        popen = subprocess.Popen(self.command("--watch", "--interval", "0.05", *options), **kwargs)
        self.addCleanup(lambda: popen.poll() is None and (popen.kill(), popen.wait()))
        return popen

    def test_watch_without_a_terminal_repeats_plain_text(self):
        popen = self.watch(stdout=subprocess.PIPE, text=True)
        with popen.stdout:
            headlines = 0
            for line in popen.stdout:
                self.assertNotIn("\033", line)
                headlines += line.startswith("model checkpoint: running")
                if headlines == 3:
                    break
            popen.send_signal(signal.SIGINT)
            popen.stdout.read()
        self.assertEqual(popen.wait(10 * PATIENCE), 0)

    def test_watch_with_json_writes_a_line_each_time(self):
        popen = self.watch("--json", stdout=subprocess.PIPE, text=True)
        with popen.stdout:
            lines = [json.loads(popen.stdout.readline()) for _ in range(3)]
        # The reader went away: that is an end like any other.
        self.assertEqual(popen.wait(10 * PATIENCE), 0)
        self.assertEqual(lines[0]["model_name"], "checkpoint")
        self.assertEqual(lines[2]["stages"][1]["times"]["step_count"],
                         lines[2]["microbatch_count"])

    def test_watch_on_a_terminal_draws_over_the_last_picture(self):
        master, slave = pty.openpty()
        popen = self.watch(stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        text = b""
        while text.count(b"\033[H") < 3:
            text += os.read(master, 65536)
        popen.send_signal(signal.SIGINT)
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            text += part
            if not part:
                break
        os.close(master)
        self.assertEqual(popen.wait(10 * PATIENCE), 0)
        self.assertTrue(text.startswith(b"\033[?1049h\033[?25l\033[H"))
        self.assertTrue(text.endswith(b"\033[?25h\033[?1049l"))
        self.assertIn(b"model checkpoint: running", text)

    def test_watch_goes_on_without_a_coordinator(self):
        popen = subprocess.Popen([BIN / "stagecoach", "status", "--coordinator", "127.0.0.1:1",
                                  "--watch", "--interval", "0.05"], stdout=subprocess.PIPE,
                                 text=True)
        self.addCleanup(lambda: popen.poll() is None and (popen.kill(), popen.wait()))
        with popen.stdout:
            lines = [popen.stdout.readline() for _ in range(3)]
            popen.send_signal(signal.SIGTERM)
            popen.stdout.read()
        self.assertEqual(popen.wait(10 * PATIENCE), 0)
        self.assertIn("127.0.0.1:1", lines[0])
        self.assertIn("(UNAVAILABLE)", lines[2])


class PrefixCacheTest(unittest.TestCase):
    def test_prompts_from_the_prefix_cache_are_counted(self):
        # Longer than a block of 32 positions, twice the same.
        prompt = list(range(1, 101))
        with Pipeline(stages=1) as pipeline:
            for _ in range(2):
                pipeline.generate(prompt, max_tokens=2)
            state = pipeline.pipeline()
        self.assertEqual(state.prefix_token_count, 200)
        self.assertEqual(state.prefix_hit_token_count, 96)
        self.assertEqual(state.kv_block_used_count, 0)
        self.assertEqual(state.kv_block_cached_count, 3)


class MetersTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pipeline = Pipeline(stages=2, coordinator=["--metrics", "127.0.0.1:0"])
        cls.addClassCleanup(cls.pipeline.close)
        answer = cls.pipeline.admin.GetSteps(admin_pb2.GetStepsRequest(), timeout=10 * PATIENCE)
        run_requests(cls.pipeline)
        wait_until(lambda: cls.pipeline.pipeline().microbatch_count
                   == cls.pipeline.pipeline().step_count, 5, "the stages have reported all steps")
        cls.state = cls.pipeline.pipeline()
        cls.steps = all_steps(cls.pipeline, answer.cursor)

    def test_every_microbatch_is_accounted_for(self):
        self.assertGreaterEqual(self.state.microbatch_count, TOKEN_COUNT)
        self.assertEqual(self.state.microbatch_lost_count, 0)
        for stage in self.state.stages:
            self.assertEqual(stage.times.step_count, self.state.microbatch_count)

    def test_the_time_of_each_stage_is_busy_or_idle_for_a_reason(self):
        busy_sum_ns = all_sum_ns = 0
        for index, stage in enumerate(self.state.stages):
            times = stage.times
            sum_ns = times.busy_ns + times.starved_ns + times.wire_ns + times.imbalance_ns
            span_ns = self.steps[-1].stages[index].end_ns - self.steps[0].stages[index].begin_ns
            self.assertLessEqual(sum_ns, span_ns)
            # Less where all requests had ended before the last one came.
            self.assertGreater(sum_ns, 0.5 * span_ns)
            self.assertEqual(times.busy_ns, sum(step.stages[index].end_ns
                                                - step.stages[index].begin_ns
                                                for step in self.steps))
            self.assertEqual(stage.clock_offset_ns, 0)
            busy_sum_ns += times.busy_ns
            all_sum_ns += sum_ns
        self.assertAlmostEqual(self.state.bubble_ratio, 1 - busy_sum_ns / all_sum_ns)

    def test_requests_and_tokens_are_counted_and_timed(self):
        tokens = REQUEST_COUNT * TOKEN_COUNT
        self.assertEqual(self.state.completion_token_count, tokens)
        self.assertEqual(sum(self.state.first_token.counts), REQUEST_COUNT)
        self.assertEqual(sum(self.state.queue.counts), REQUEST_COUNT)
        self.assertEqual(sum(self.state.request.counts), REQUEST_COUNT)
        self.assertEqual(sum(self.state.inter_token.counts), tokens - REQUEST_COUNT)
        self.assertGreater(self.state.request.sum_seconds, self.state.first_token.sum_seconds)
        self.assertAlmostEqual(
            self.state.request.sum_seconds,
            self.state.first_token.sum_seconds + self.state.inter_token.sum_seconds, places=3)
        self.assertGreater(self.state.completion_tokens_per_second, 0)

    def test_prometheus_gets_the_same_in_its_text(self):
        families = parse_metrics(scrape(self.pipeline))
        check_conventions(families)

        def value(name, **labels):
            family = re.sub("_(count|sum)$", "", name)
            return families[family][1][name, tuple(sorted(labels.items()))]

        state = self.state
        self.assertEqual(value("stagecoach_completion_tokens_total"),
                         state.completion_token_count)
        self.assertEqual(value("stagecoach_time_to_first_token_seconds_count"), REQUEST_COUNT)
        self.assertAlmostEqual(value("stagecoach_inter_token_seconds_sum"),
                               state.inter_token.sum_seconds)
        self.assertEqual(value("stagecoach_microbatch_seconds_count"), state.step_count)
        self.assertEqual(value("stagecoach_requests_total", outcome="done"), REQUEST_COUNT)
        self.assertEqual(value("stagecoach_pipeline_running"), 1)
        for stage in state.stages:
            index = str(stage.stage_index)
            self.assertAlmostEqual(value("stagecoach_stage_busy_seconds_total", stage=index),
                                   stage.times.busy_ns / 1e9)
            for cause in ("starved", "wire", "imbalance"):
                self.assertAlmostEqual(
                    value("stagecoach_stage_idle_seconds_total", stage=index, cause=cause),
                    getattr(stage.times, f"{cause}_ns") / 1e9)
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            self.assertEqual(value(f"vllm:{name}", model_name=state.model_name), 0)
        self.assertIn("vllm:cache_config_info", families)

    def test_other_paths_are_not_found(self):
        for path in ("/", "/metrics/", "/metric", "/%2e%2e/metrics"):
            with self.assertRaises(urllib.error.HTTPError) as caught:
                scrape(self.pipeline, path)
            self.assertEqual(caught.exception.code, 404)
            caught.exception.close()

    def test_steps_are_in_the_order_of_time(self):
        steps = self.steps
        self.assertEqual(len(steps), self.state.step_count)
        self.assertEqual([step.step for step in steps], list(range(1, len(steps) + 1)))
        for step in steps:
            self.assertEqual(len(step.stages), 2)
            times = [step.sent_ns]
            for stage in step.stages:
                times += [stage.received_ns, stage.begin_ns, stage.end_ns]
            times.append(step.result_ns)
            self.assertEqual(times, sorted(times))
        for earlier, later in zip(steps, steps[1:]):
            for before, after in zip(earlier.stages, later.stages):
                self.assertLessEqual(before.end_ns, after.begin_ns)

    def test_an_idle_pipeline_is_neither_busy_nor_idle(self):
        time.sleep(0.6)
        state = self.pipeline.pipeline()
        for before, after in zip(self.state.stages, state.stages):
            self.assertEqual(before.times, after.times)
        self.assertEqual(state.microbatch_oldest_age_seconds, 0)


if __name__ == "__main__":
    unittest.main()
