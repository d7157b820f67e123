"""What operators see of a pipeline that works: meters, and its microbatches one by one."""

import concurrent.futures
import time
import unittest

from harness import PATIENCE, Pipeline, admin_pb2, wait_until

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


class MetersTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pipeline = Pipeline(stages=2)
        cls.addClassCleanup(cls.pipeline.close)
        answer = cls.pipeline.admin.GetSteps(admin_pb2.GetStepsRequest(), timeout=10 * PATIENCE)
        cls.cursor = answer.cursor
        cls.begin = time.monotonic()
        run_requests(cls.pipeline)
        wait_until(lambda: cls.pipeline.pipeline().microbatch_count
                   == cls.pipeline.pipeline().step_count, 5, "the stages have reported all steps")
        cls.state = cls.pipeline.pipeline()
        cls.span_ns = (time.monotonic() - cls.begin) * 1e9

    def test_every_microbatch_is_accounted_for(self):
        self.assertGreaterEqual(self.state.microbatch_count, TOKEN_COUNT)
        self.assertEqual(self.state.microbatch_lost_count, 0)
        for stage in self.state.stages:
            self.assertEqual(stage.times.step_count, self.state.microbatch_count)

    def test_the_time_of_each_stage_is_busy_or_idle_for_a_reason(self):
        for stage in self.state.stages:
            times = stage.times
            idle_ns = times.starved_ns + times.wire_ns + times.imbalance_ns
            self.assertGreater(times.busy_ns, 0)
            self.assertLess(times.busy_ns + idle_ns, self.span_ns)
            # Nearly all of the time in which requests ran: what is left is before and after.
            self.assertGreater(times.busy_ns + idle_ns, 0.2 * self.span_ns)
            self.assertEqual(stage.clock_offset_ns, 0)
        busy_ns = sum(stage.times.busy_ns for stage in self.state.stages)
        self.assertGreater(self.state.bubble_ratio, 0)
        self.assertLess(self.state.bubble_ratio, 1)
        self.assertGreater(busy_ns, 0)

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

    def test_steps_are_in_the_order_of_time(self):
        steps = all_steps(self.pipeline, self.cursor)
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
